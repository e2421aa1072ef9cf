//! Adam and AdamW with parameters that do not decay, and clipping by the global norm.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, Tensor};

use crate::experiment::{OptimizerKind, TrainingConfig};

/// Keeps the clipping factor finite when every gradient is zero; the value PyTorch uses.
const NORM_EPSILON: f32 = 1e-6;

/// Whether weight decay applies to the parameter at `path`.
///
/// Vectors never decay: they are biases, norm weights, `D` and the bias of dt. Among matrices,
/// `A_log` does not, nor anything that belongs to a norm.
pub fn decays(path: &str, rank: usize) -> bool {
    let path = path.to_ascii_lowercase();
    let excluded = path
        .split('.')
        .any(|name| name.contains("norm") || matches!(name, "a_log" | "d" | "dt_bias" | "bias"));
    rank >= 2 && !excluded
}

/// The paths of the parameters of `module` that do not decay.
pub fn no_decay_paths<M: Module>(module: &M) -> Vec<String> {
    let mut collector = NoDecayCollector::default();
    module.visit(&mut collector);
    collector.paths
}

/// The optimizer of `training` for `module`, with weight decay where [`decays`] says so.
pub fn build_optimizer<M: Module>(training: &TrainingConfig, module: &M) -> ModuleOptimizer {
    let decay = training.weight_decay as f32;
    let no_decay = ParamGroup::from_paths(no_decay_paths(module));
    match training.optimizer {
        OptimizerKind::Adam => {
            let config = AdamConfig::new()
                .with_beta_1(training.beta_1 as f32)
                .with_beta_2(training.beta_2 as f32)
                .with_epsilon(training.epsilon as f32);
            let decayed = if decay == 0.0 {
                config.clone()
            } else {
                config
                    .clone()
                    .with_weight_decay(Some(WeightDecayConfig::new(decay)))
            };
            decayed.init().with_group(no_decay, config.build(), None)
        }
        OptimizerKind::AdamW => {
            let config = AdamWConfig::new()
                .with_beta_1(training.beta_1 as f32)
                .with_beta_2(training.beta_2 as f32)
                .with_epsilon(training.epsilon as f32);
            let decayed = config.clone().with_weight_decay(decay);
            decayed
                .init()
                .with_group(no_decay, config.with_weight_decay(0.0).build(), None)
        }
    }
}

/// Scales all gradients by one factor so that their joint Euclidean norm is at most `max_norm`.
///
/// The factor stays on the device: nothing is read back.
pub fn clip_global_norm<M: Module>(
    module: &M,
    grads: GradientsParams,
    max_norm: f64,
) -> GradientsParams {
    let mut squares = SquaredNorm {
        grads: &grads,
        total: None,
    };
    module.visit(&mut squares);
    let Some(total) = squares.total else {
        return grads;
    };
    let factor = (total.sqrt().add_scalar(NORM_EPSILON).recip() * max_norm).clamp_max(1.0);
    let mut scale = Scale { grads, factor };
    module.visit(&mut scale);
    scale.grads
}

#[derive(Default)]
struct NoDecayCollector {
    path: Vec<String>,
    paths: Vec<String>,
}

impl ModuleVisitor for NoDecayCollector {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        if !decays(&path, D) {
            self.paths.push(path);
        }
    }
}

struct SquaredNorm<'a> {
    grads: &'a GradientsParams,
    total: Option<Tensor<1>>,
}

impl ModuleVisitor for SquaredNorm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.get::<D>(param.id) else {
            return;
        };
        // Squares of half-precision gradients overflow or vanish. Sums of axes are added in one order on every device; those of
        // whole tensors, on GPUs, in whatever order their parts end.
        let width = grad.dims().last().copied().unwrap_or(1) as i32;
        let rows: Tensor<2> = grad.cast(DType::F32).reshape([-1, width]);
        let squares = rows.square().sum_dim(1).squeeze_dim::<1>(1).sum_dim(0);
        self.total = Some(match self.total.take() {
            Some(total) => total + squares,
            None => squares,
        });
    }
}

struct Scale {
    grads: GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            let factor = self.factor.clone().cast(grad.dtype()).reshape([1; D]);
            self.grads.register(param.id, grad * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
    use burn::tensor::{Device, Distribution, TensorData};

    #[derive(Module, Debug)]
    struct Mixer {
        in_proj: Linear,
        a_log: Param<Tensor<2>>,
        d: Param<Tensor<1>>,
        dt_proj: Linear,
        norm: LayerNorm,
    }

    fn mixer(device: &Device) -> Mixer {
        let linear = || LinearConfig::new(4, 4).init(device);
        Mixer {
            in_proj: linear(),
            a_log: Param::from_tensor(Tensor::ones([4, 2], device)),
            d: Param::from_tensor(Tensor::ones([4], device)),
            dt_proj: linear(),
            norm: LayerNormConfig::new(4).init(device),
        }
    }

    fn training(optimizer: OptimizerKind, weight_decay: f64) -> TrainingConfig {
        TrainingConfig {
            optimizer,
            weight_decay,
            ..TrainingConfig::default()
        }
    }

    #[test]
    fn only_matrices_outside_norms_and_a_log_decay() {
        let paths = no_decay_paths(&mixer(&Device::default()));
        let expected = [
            "in_proj.bias",
            "a_log",
            "d",
            "dt_proj.bias",
            "norm.gamma",
            "norm.beta",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn rule_follows_names_and_rank() {
        for path in [
            "layers.0.mixer.in_proj.weight",
            "embedding.weight",
            "mixer.conv1d.weight",
        ] {
            assert!(decays(path, 2), "{path}");
        }
        for path in [
            "mixer.a_log",
            "mixer.A_log",
            "mixer.d",
            "mixer.dt_bias",
            "norm_f.weight",
        ] {
            assert!(!decays(path, 2), "{path}");
        }
        assert!(!decays("mixer.in_proj.weight", 1));
    }

    #[test]
    fn zero_gradient_moves_only_what_decays() {
        let device = Device::default().autodiff();
        for (kind, moved) in [(OptimizerKind::AdamW, 0.95), (OptimizerKind::Adam, 0.9)] {
            let module = mixer(&device);
            let before: Vec<f32> = module
                .in_proj
                .weight
                .val()
                .into_data()
                .try_to_vec()
                .unwrap();
            let mut grads = GradientsParams::new();
            let plain = device.clone().inner();
            grads.register(module.in_proj.weight.id, Tensor::<2>::zeros([4, 4], &plain));
            grads.register(module.a_log.id, Tensor::<2>::zeros([4, 2], &plain));
            grads.register(module.d.id, Tensor::<1>::zeros([4], &plain));

            let mut optimizer = build_optimizer(&training(kind, 0.5), &module);
            let module = optimizer.step(0.1, module, grads);

            module
                .a_log
                .val()
                .into_data()
                .assert_eq(&TensorData::from([[1f32; 2]; 4]), true);
            module
                .d
                .val()
                .into_data()
                .assert_eq(&TensorData::from([1f32; 4]), true);
            let after: Vec<f32> = module
                .in_proj
                .weight
                .val()
                .into_data()
                .try_to_vec()
                .unwrap();
            for (before, after) in before.iter().zip(after) {
                // AdamW shrinks by `1 - lr * decay`; the first Adam step has the size of `lr`.
                let expected = match kind {
                    OptimizerKind::AdamW => before * moved,
                    OptimizerKind::Adam => before - 0.1 * before.signum(),
                };
                assert!(
                    (after - expected).abs() < 1e-4,
                    "{kind:?}: {before} -> {after}"
                );
            }
        }
    }

    #[test]
    fn clipping_caps_the_global_norm_and_keeps_the_direction() {
        let device = Device::default().autodiff();
        let module = mixer(&device);
        let plain = device.inner();
        let weight: Tensor<2> = Tensor::random([4, 4], Distribution::Normal(0.0, 3.0), &plain);
        let bias: Tensor<1> = Tensor::random([4], Distribution::Normal(0.0, 3.0), &plain);
        let bias_id = module.in_proj.bias.as_ref().unwrap().id;
        let grads = || {
            let mut grads = GradientsParams::new();
            grads.register(module.in_proj.weight.id, weight.clone());
            grads.register(bias_id, bias.clone());
            grads
        };
        let read = |grads: &GradientsParams| -> Vec<f32> {
            let weight = grads.get::<2>(module.in_proj.weight.id).unwrap();
            let bias = grads.get::<1>(bias_id).unwrap();
            Tensor::cat(vec![weight.flatten(0, 1), bias], 0)
                .into_data()
                .try_to_vec()
                .unwrap()
        };
        let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();

        let before = read(&grads());
        let clipped = read(&clip_global_norm(&module, grads(), 0.5));
        assert!((norm(&clipped) - 0.5).abs() < 1e-5);
        let factor = 0.5 / norm(&before);
        for (before, after) in before.iter().zip(&clipped) {
            assert!((before * factor - after).abs() < 1e-5);
        }

        assert_eq!(read(&clip_global_norm(&module, grads(), 1e6)), before);
    }
}
