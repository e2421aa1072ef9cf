use super::{assert_len, silu, silu_slope};

/// Inputs of [`gated_rms_norm`], in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct GatedRmsNormInputs<'a> {
    /// Vectors that are normalised, each for itself.
    pub rows: usize,
    /// Entries of a vector.
    pub columns: usize,
    /// Entries that are normalised together; a divisor of `columns`.
    pub group_size: usize,
    /// `[rows, columns]`.
    pub x: &'a [f64],
    /// The gate before SiLU: `[rows, columns]`.
    pub z: &'a [f64],
    /// `[columns]`.
    pub gamma: &'a [f64],
    /// Added to the mean square.
    pub epsilon: f64,
    /// Whether the gate multiplies what is normalised already.
    pub norm_before_gate: bool,
}

/// Gradients of the inputs of [`gated_rms_norm`], each in its input's shape.
#[derive(Clone, Debug)]
pub struct GatedRmsNormGradients {
    /// `[rows, columns]`.
    pub x: Vec<f64>,
    /// `[rows, columns]`.
    pub z: Vec<f64>,
    /// `[columns]`.
    pub gamma: Vec<f64>,
}

/// `v r gamma` with `v = x silu(z)`, or `x r gamma silu(z)` with `v = x`, where `r` is one over the root of the
/// mean square of `v` over each group: `[rows, columns]`.
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions.
pub fn gated_rms_norm(inputs: &GatedRmsNormInputs) -> Vec<f64> {
    inputs.assert_valid("gated_rms_norm");
    let mut y = Vec::with_capacity(inputs.x.len());
    for begin in (0..inputs.x.len()).step_by(inputs.group_size) {
        let scale = inputs.scale(begin);
        for i in begin..begin + inputs.group_size {
            let gate = match inputs.norm_before_gate {
                true => silu(inputs.z[i]),
                false => 1.0,
            };
            y.push(inputs.value(i) * scale * inputs.gamma[i % inputs.columns] * gate);
        }
    }
    y
}

/// Gradients of a loss through [`gated_rms_norm`], given that of its output.
///
/// # Panics
///
/// As [`gated_rms_norm`].
pub fn gated_rms_norm_backward(
    inputs: &GatedRmsNormInputs,
    grad_y: &[f64],
) -> GatedRmsNormGradients {
    let (rows, columns) = (inputs.rows, inputs.columns);
    inputs.assert_valid("gated_rms_norm_backward");
    assert_len(
        "gated_rms_norm_backward",
        "grad_y",
        grad_y,
        &[rows, columns],
    );
    let mut grads = GatedRmsNormGradients {
        x: vec![0.0; rows * columns],
        z: vec![0.0; rows * columns],
        gamma: vec![0.0; columns],
    };
    for begin in (0..inputs.x.len()).step_by(inputs.group_size) {
        let group = begin..begin + inputs.group_size;
        let scale = inputs.scale(begin);
        // Of the value times scale, and of that times gamma.
        let through_gate = |i: usize| match inputs.norm_before_gate {
            true => grad_y[i] * silu(inputs.z[i]),
            false => grad_y[i],
        };
        let weighted = |i: usize| through_gate(i) * inputs.gamma[i % columns];
        let dot: f64 = group.clone().map(|i| weighted(i) * inputs.value(i)).sum();
        for i in group {
            let normalised = inputs.value(i) * scale;
            grads.gamma[i % columns] += through_gate(i) * normalised;
            // The derivative of the scale by v_i is -scale^3 v_i / group_size.
            let through_scale = dot * scale.powi(3) * inputs.value(i) / inputs.group_size as f64;
            let grad = weighted(i) * scale - through_scale;
            let slope = silu_slope(inputs.z[i]);
            if inputs.norm_before_gate {
                grads.x[i] = grad;
                grads.z[i] = grad_y[i] * inputs.gamma[i % columns] * normalised * slope;
            } else {
                grads.x[i] = grad * silu(inputs.z[i]);
                grads.z[i] = grad * inputs.x[i] * slope;
            }
        }
    }
    grads
}

impl GatedRmsNormInputs<'_> {
    /// What is squared and normalised.
    fn value(&self, i: usize) -> f64 {
        match self.norm_before_gate {
            true => self.x[i],
            false => self.x[i] * silu(self.z[i]),
        }
    }

    /// Of the group that begins at entry `begin`.
    fn scale(&self, begin: usize) -> f64 {
        let group = begin..begin + self.group_size;
        let squares: f64 = group.map(|i| self.value(i).powi(2)).sum();
        (squares / self.group_size as f64 + self.epsilon)
            .sqrt()
            .recip()
    }

    fn assert_valid(&self, function: &str) {
        assert_len(function, "x", self.x, &[self.rows, self.columns]);
        assert_len(function, "z", self.z, &[self.rows, self.columns]);
        assert_len(function, "gamma", self.gamma, &[self.columns]);
        assert!(
            self.group_size > 0 && self.columns.is_multiple_of(self.group_size),
            "{function}: group_size must divide the columns"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::finite_differences::{assert_gradient, dot, uniform};

    const ROWS: usize = 3;
    const COLUMNS: usize = 6;

    #[test]
    fn gradients_equal_finite_differences() {
        let x = uniform(1, ROWS * COLUMNS, -2.0, 2.0);
        let z = uniform(2, ROWS * COLUMNS, -3.0, 3.0);
        let gamma = uniform(3, COLUMNS, 0.5, 1.5);
        let weights = uniform(4, ROWS * COLUMNS, -1.0, 1.0);
        for (group_size, norm_before_gate) in [(6, false), (2, false), (3, true), (6, true)] {
            let shape = GatedRmsNormInputs {
                rows: ROWS,
                columns: COLUMNS,
                group_size,
                x: &x,
                z: &z,
                gamma: &gamma,
                epsilon: 0.1,
                norm_before_gate,
            };
            let loss = |x: &[f64], z: &[f64], gamma: &[f64]| {
                dot(
                    &gated_rms_norm(&GatedRmsNormInputs {
                        x,
                        z,
                        gamma,
                        ..shape
                    }),
                    &weights,
                )
            };
            let grads = gated_rms_norm_backward(&shape, &weights);
            assert_gradient("x", &x, &grads.x, |x| loss(x, &z, &gamma));
            assert_gradient("z", &z, &grads.z, |z| loss(&x, z, &gamma));
            assert_gradient("gamma", &gamma, &grads.gamma, |gamma| loss(&x, &z, gamma));
        }
    }
}
