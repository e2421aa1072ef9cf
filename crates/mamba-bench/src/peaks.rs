//! What a device can do at most, measured in the same run as what is compared with it.

use anyhow::{Context, Result};
use burn::tensor::{Device, Distribution, Tensor};
use mamba_core::Precision;
use mamba_core::ops::linear;

#[cfg(feature = "flex")]
use crate::measure::clocked;
use crate::measure::{Measurement, queued};
use crate::pace::Pace;

/// The fastest copy and the fastest arithmetic that we get out of a device.
pub struct Peaks {
    /// A stream copy: its duration and its bytes, read and written.
    pub copy: (Measurement, f64),
    /// Multiplications and additions: their duration and their number.
    pub arithmetic: (Measurement, f64),
    /// What stood for arithmetic.
    pub arithmetic_name: &'static str,
}

impl Peaks {
    /// Measures both, in as many rounds as thorough measurements have, if `pace` has fewer: on Flex with all threads, a copy between two blocks and fused multiply-adds on registers; elsewhere an
    /// elementwise operation and a product of square matrices of `precision`, Burn's or mamba-core's, whichever is faster.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn measure(
        pace: &Pace,
        quick: bool,
        precision: Precision,
        name: &str,
        device: &Device,
    ) -> Result<Self> {
        let pace = &Pace {
            rounds: pace.rounds.max(Pace::THOROUGH.rounds),
            turn: pace.turn.max(Pace::THOROUGH.turn / 2),
            ..*pace
        };
        #[cfg(feature = "flex")]
        if matches!(name, "flex" | "cpu") {
            return on_host(pace, quick);
        }
        on_tensors(pace, quick, precision, name, device)
    }

    /// Bytes a second, in the fastest round.
    pub fn bytes_per_second(&self) -> f64 {
        self.copy.1 / self.copy.0.ms.min() * 1e3
    }

    /// Operations a second, in the fastest round.
    pub fn flops_per_second(&self) -> f64 {
        self.arithmetic.1 / self.arithmetic.0.ms.min() * 1e3
    }

    /// The least milliseconds of a problem that moves `bytes` and computes `flops`.
    pub fn roof_ms(&self, bytes: f64, flops: f64) -> f64 {
        1e3 * (bytes / self.bytes_per_second()).max(flops / self.flops_per_second())
    }
}

/// Values of a block that is copied: far more than caches hold.
const fn block(quick: bool) -> usize {
    if quick { 1 << 24 } else { 1 << 26 }
}

#[cfg(feature = "flex")]
fn on_host(pace: &Pace, quick: bool) -> Result<Peaks> {
    use mamba_core::ops::cpu::simd::LANES;
    use rayon::prelude::*;

    use crate::roofline::Floor;

    /// Vector instructions of a call: about ten milliseconds of two cores.
    const INSTRUCTIONS: f64 = 2e8;
    /// Values that a thread copies at once: a few pages, shared out as they come.
    const PART: usize = 1 << 16;
    let source = vec![1f32; block(quick)];
    let mut target = vec![0f32; block(quick)];
    let copy = pace.measure_one(clocked(|| {
        let parts = target.par_chunks_mut(PART).zip(source.par_chunks(PART));
        parts.for_each(|(target, source)| target.copy_from_slice(source));
        std::hint::black_box(&target);
        Ok(())
    }))?;
    let floor = Floor::new(INSTRUCTIONS);
    let arithmetic = pace.measure_one(clocked(|| {
        floor.run();
        Ok(())
    }))?;
    Ok(Peaks {
        copy: (copy, 8.0 * block(quick) as f64),
        arithmetic: (arithmetic, INSTRUCTIONS * (2 * LANES) as f64),
        arithmetic_name: "multiply-adds on registers",
    })
}

fn on_tensors(
    pace: &Pace,
    quick: bool,
    precision: Precision,
    name: &str,
    device: &Device,
) -> Result<Peaks> {
    let side = match (crate::results::is_cpu(name), quick) {
        (true, _) => 1024,
        (false, true) => 2048,
        (false, false) => 8192,
    };
    let finish = || device.sync().context("the device did not finish");
    // Before a result goes: what nobody will read may not be computed.
    let launch = || device.flush().context("the device did not take work");
    let source = Tensor::<1>::ones([block(quick)], device);
    let double = || {
        let copy = source.clone() * 2.0;
        launch()?;
        drop(copy);
        Ok(())
    };
    double().and_then(|()| finish())?;
    let copy = pace.measure_one(queued(double, finish))?;
    drop(source);
    let random = || {
        Tensor::<2>::random([side, side], Distribution::Uniform(-1.0, 1.0), device)
            .cast(precision.dtype())
    };
    let (left, right) = (random(), random());
    type Product = fn(Tensor<2>, Tensor<2>) -> Tensor<2>;
    let mut fastest: Option<(Measurement, &'static str)> = None;
    // Burn's takes matrices of any kind, mamba-core's the instructions that some devices keep for them.
    for (name, product) in [
        ("product of matrices", Tensor::matmul as Product),
        ("product of matrices by mamba-core", |left, right| {
            linear(left, right, None)
        }),
    ] {
        let multiply = || {
            let product = product(left.clone(), right.clone());
            launch()?;
            drop(product);
            Ok(())
        };
        multiply().and_then(|()| finish())?;
        let measured = pace.measure_one(queued(multiply, finish))?;
        let best = |it: &Measurement| it.ms.min();
        if fastest
            .as_ref()
            .is_none_or(|(so_far, _)| best(&measured) < best(so_far))
        {
            fastest = Some((measured, name));
        }
    }
    let (arithmetic, arithmetic_name) = fastest.expect("two were measured");
    Ok(Peaks {
        copy: (copy, 8.0 * block(quick) as f64),
        arithmetic: (arithmetic, 2.0 * (side as f64).powi(3)),
        arithmetic_name,
    })
}
