//! How many kernels a piece of work launches.

use anyhow::Result;
use burn::tensor::Device;

/// The kernels that CubeCL launches while `work` runs and the device finishes it; none on devices that are not CubeCL's.
/// Those of other threads of this process would count, too.
///
/// # Errors
///
/// If the work or the device fails.
#[cfg(feature = "cube")]
pub fn count(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<Option<f64>> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::Context;
    use cubecl::logging::{LaunchObservation, LaunchObserver};

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl LaunchObserver for Counter {
        fn launched(&self, _kernel: &'static str) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let finish = || device.sync().context("the device did not finish");
    finish()?;
    let counter = Arc::new(Counter::default());
    let observation = LaunchObservation::new(counter.clone());
    let done = work().and_then(|()| finish());
    drop(observation);
    done?;
    let launched = counter.0.load(Ordering::Relaxed);
    Ok((launched > 0).then_some(launched as f64))
}

/// Nothing: this build has no device that launches kernels.
///
/// # Errors
///
/// None; as where there are such devices.
#[cfg(not(feature = "cube"))]
pub fn count(_: &Device, _: impl FnMut() -> Result<()>) -> Result<Option<f64>> {
    Ok(None)
}
