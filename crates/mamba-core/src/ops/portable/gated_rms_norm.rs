//! The gate and the grouped normalisation of Mamba-2: `rms_norm(x silu(z))` or `rms_norm(x) silu(z)`.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::Prim;
use crate::ops::extension::{GatedNormGrads, GatedNormInputs};

/// Rows of a group each, `[rows * groups, group_size]`, and the weight as `[1, d_model]`.
struct Groups<B: Backend> {
    x: Prim<B>,
    z: Prim<B>,
    gamma: Prim<B>,
    group_size: usize,
    rows: usize,
}

impl<B: Backend> Groups<B> {
    fn new(inputs: &GatedNormInputs<B>) -> Self {
        let gamma = Prim::<B>(inputs.gamma.clone());
        let [d_model] = gamma.dims();
        let group_size = inputs.options.group_size;
        let rows = inputs.x.shape().num_elements() / d_model;
        let groups = |x: &FloatTensor<B>| {
            Prim::<B>(x.clone()).reshape([rows * d_model / group_size, group_size])
        };
        Self {
            x: groups(&inputs.x),
            z: groups(&inputs.z),
            gamma: gamma.reshape([1, d_model]),
            group_size,
            rows,
        }
    }

    fn d_model(&self) -> usize {
        let [_, d_model] = self.gamma.dims();
        d_model
    }

    /// `x gamma`, in groups as `x` is.
    fn weighted(&self, x: &Prim<B>) -> Prim<B> {
        let [groups, group_size] = x.dims();
        let whole = &x.reshape([self.rows, self.d_model()]) * &self.gamma;
        whole.reshape([groups, group_size])
    }

    /// One over the root of the mean square of each group, `[groups, 1]`.
    fn factor(&self, x: &Prim<B>, epsilon: f64) -> Prim<B> {
        let mean = (x * x).sum_dim(1).scale(1.0 / self.group_size as f64);
        mean.shift(epsilon).sqrt().recip()
    }

    /// With `n = x factor` and `g` the gradient of `n`: `factor (g - n mean(g n))`.
    fn unnormalised(&self, n: &Prim<B>, factor: &Prim<B>, g: &Prim<B>) -> Prim<B> {
        let mean = (g * n).sum_dim(1).scale(1.0 / self.group_size as f64);
        &(g - &(n * &mean)) * factor
    }

    /// The sum over rows, `[d_model]`.
    fn over_rows(&self, x: &Prim<B>) -> FloatTensor<B> {
        let d_model = self.d_model();
        x.reshape([self.rows, d_model])
            .sum_dim(0)
            .reshape([d_model])
            .0
    }
}

pub(crate) fn forward<B: Backend>(inputs: GatedNormInputs<B>) -> FloatTensor<B> {
    let groups = Groups::new(&inputs);
    let epsilon = inputs.options.epsilon;
    let gate = groups.z.silu();
    let y = match inputs.options.norm_before_gate {
        true => &groups.weighted(&(&groups.x * &groups.factor(&groups.x, epsilon))) * &gate,
        false => {
            let gated = &groups.x * &gate;
            groups.weighted(&(&gated * &groups.factor(&gated, epsilon)))
        }
    };
    B::float_reshape(y.0, inputs.x.shape())
}

pub(crate) fn backward<B: Backend>(
    inputs: GatedNormInputs<B>,
    grad_y: FloatTensor<B>,
) -> GatedNormGrads<B> {
    let groups = Groups::new(&inputs);
    let epsilon = inputs.options.epsilon;
    let shape = inputs.x.shape();
    let (gate, slope) = (groups.z.silu(), groups.z.silu_grad());
    let [rows, columns] = groups.x.dims();
    let grad_y = Prim::<B>(grad_y).reshape([rows, columns]);
    let (x, z, gamma) = match inputs.options.norm_before_gate {
        true => {
            let factor = groups.factor(&groups.x, epsilon);
            let n = &groups.x * &factor;
            let ungated = &grad_y * &gate;
            let x = groups.unnormalised(&n, &factor, &groups.weighted(&ungated));
            let z = &(&grad_y * &groups.weighted(&n)) * &slope;
            (x, z, groups.over_rows(&(&ungated * &n)))
        }
        false => {
            let gated = &groups.x * &gate;
            let factor = groups.factor(&gated, epsilon);
            let n = &gated * &factor;
            let grad = groups.unnormalised(&n, &factor, &groups.weighted(&grad_y));
            let z = &(&grad * &groups.x) * &slope;
            (&grad * &gate, z, groups.over_rows(&(&grad_y * &n)))
        }
    };
    GatedNormGrads {
        x: B::float_reshape(x.0, shape.clone()),
        z: B::float_reshape(z.0, shape),
        gamma,
    }
}
