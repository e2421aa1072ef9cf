use super::assert_len;

/// Inputs of [`rms_norm`], in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormInputs<'a> {
    /// Vectors that are normalised, each for itself.
    pub rows: usize,
    /// Entries of a vector.
    pub columns: usize,
    /// `[rows, columns]`.
    pub x: &'a [f64],
    /// `[columns]`.
    pub gamma: &'a [f64],
    /// Added to the mean square.
    pub epsilon: f64,
}

/// Gradients of the inputs of [`rms_norm`], each in its input's shape.
#[derive(Clone, Debug)]
pub struct RmsNormGradients {
    /// `[rows, columns]`.
    pub x: Vec<f64>,
    /// `[columns]`.
    pub gamma: Vec<f64>,
}

/// `x / sqrt(mean(x^2) + epsilon) * gamma` of each row, `[rows, columns]`.
///
/// # Panics
///
/// Panics if a slice's length does not match the dimensions.
pub fn rms_norm(inputs: &RmsNormInputs) -> Vec<f64> {
    inputs.assert_valid("rms_norm");
    let mut y = Vec::with_capacity(inputs.x.len());
    for x in inputs.each_row(inputs.x) {
        let scale = inputs.scale(x);
        y.extend(
            x.iter()
                .zip(inputs.gamma)
                .map(|(x, gamma)| x * scale * gamma),
        );
    }
    y
}

/// Gradients of a loss through [`rms_norm`], given that of its output.
///
/// # Panics
///
/// As [`rms_norm`].
pub fn rms_norm_backward(inputs: &RmsNormInputs, grad_y: &[f64]) -> RmsNormGradients {
    let (rows, columns) = (inputs.rows, inputs.columns);
    inputs.assert_valid("rms_norm_backward");
    assert_len("rms_norm_backward", "grad_y", grad_y, &[rows, columns]);
    let mut grads = RmsNormGradients {
        x: Vec::with_capacity(inputs.x.len()),
        gamma: vec![0.0; columns],
    };
    for (x, grad_y) in inputs.each_row(inputs.x).zip(inputs.each_row(grad_y)) {
        let scale = inputs.scale(x);
        let mut dot = 0.0;
        for j in 0..columns {
            grads.gamma[j] += grad_y[j] * x[j] * scale;
            dot += grad_y[j] * inputs.gamma[j] * x[j];
        }
        for j in 0..columns {
            let direct = grad_y[j] * inputs.gamma[j] * scale;
            // The derivative of the scale by x_j is -scale^3 x_j / columns.
            let through_scale = dot * scale.powi(3) * x[j] / columns as f64;
            grads.x.push(direct - through_scale);
        }
    }
    grads
}

impl RmsNormInputs<'_> {
    fn each_row<'a>(&self, values: &'a [f64]) -> impl Iterator<Item = &'a [f64]> {
        values.chunks(self.columns.max(1))
    }

    fn scale(&self, x: &[f64]) -> f64 {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / self.columns as f64;
        (mean + self.epsilon).sqrt().recip()
    }

    fn assert_valid(&self, function: &str) {
        assert_len(function, "x", self.x, &[self.rows, self.columns]);
        assert_len(function, "gamma", self.gamma, &[self.columns]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::finite_differences::{assert_gradient, dot, uniform};

    const ROWS: usize = 3;
    const COLUMNS: usize = 5;

    fn inputs<'a>(x: &'a [f64], gamma: &'a [f64]) -> RmsNormInputs<'a> {
        RmsNormInputs {
            rows: ROWS,
            columns: COLUMNS,
            x,
            gamma,
            epsilon: 0.1,
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let x = uniform(1, ROWS * COLUMNS, -2.0, 2.0);
        let gamma = uniform(2, COLUMNS, 0.5, 1.5);
        let weights = uniform(3, ROWS * COLUMNS, -1.0, 1.0);
        let loss = |x: &[f64], gamma: &[f64]| dot(&rms_norm(&inputs(x, gamma)), &weights);
        let grads = rms_norm_backward(&inputs(&x, &gamma), &weights);
        assert_gradient("x", &x, &grads.x, |x| loss(x, &gamma));
        assert_gradient("gamma", &gamma, &grads.gamma, |gamma| loss(&x, gamma));
    }

    #[test]
    fn the_mean_square_of_a_row_becomes_one() {
        let x = uniform(4, ROWS * COLUMNS, -20.0, 20.0);
        let exact = RmsNormInputs {
            epsilon: 0.0,
            ..inputs(&x, &[1.0; COLUMNS])
        };
        for row in rms_norm(&exact).chunks(COLUMNS) {
            assert!((dot(row, row) / COLUMNS as f64 - 1.0).abs() < 1e-14);
        }
    }
}
