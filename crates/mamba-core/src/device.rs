//! Devices by name, as users give them.

mod adapter;

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor};

use crate::failure::{DeviceFailure, innermost};

pub use adapter::{DefaultDevice, adapter, cpu_name, is_software, start_default};

/// Devices that were started in this process.
static STARTED: Mutex<Vec<Device>> = Mutex::new(Vec::new());

/// Held while [`start`] has the process's panic hook.
static HOOK: Mutex<()> = Mutex::new(());

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No compiled-in backend has that name.
    #[error(
        "unknown device `{name}`: this build knows {}; other backends are features of the build \
         (`--features wgpu`)", known.join(", ")
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// What this build offers.
        known: Vec<&'static str>,
    },
    /// What follows the colon is no index.
    #[error("device `{0}`: expected a number after the colon, as in `cuda:1`")]
    Index(String),
    /// There is only one of that backend.
    #[error(
        "device `{0}`: there is one CPU, which has no number; leave out the colon and what follows"
    )]
    Numbered(String),
    /// The backend is compiled in, but the machine has nothing for it.
    #[error("device `{name}` does not start: {reason}")]
    Unusable {
        /// What was asked for.
        name: String,
        /// What its driver said.
        reason: String,
    },
}

/// The names that [`device`] takes in this build, the default first; but see [`start_default`].
pub fn device_names() -> Vec<&'static str> {
    let mut names = Vec::new();
    names.extend(cfg!(feature = "cuda").then_some("cuda"));
    names.extend(cfg!(feature = "rocm").then_some("rocm"));
    names.extend(cfg!(feature = "metal").then_some("metal"));
    names.extend(cfg!(feature = "vulkan").then_some("vulkan"));
    names.extend(cfg!(feature = "wgpu").then_some("wgpu"));
    names.extend(cfg!(feature = "flex").then_some("flex"));
    names.extend(cfg!(feature = "ndarray").then_some("ndarray"));
    names
}

/// The device of a name such as `flex`, `wgpu` or `cuda:1`, without gradients.
///
/// The device is not started: see [`start`].
///
/// # Errors
///
/// If no compiled-in backend has that name, or the index is no number.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => {
            let index = index.parse().map_err(|_| DeviceError::Index(name.into()))?;
            (backend, Some(index))
        }
        None => (name, None),
    };
    if index.is_some() && matches!(backend, "flex" | "cpu" | "ndarray") {
        return Err(DeviceError::Numbered(name.into()));
    }
    open(backend, index).ok_or_else(|| DeviceError::Unknown {
        name: name.into(),
        known: device_names(),
    })
}

#[allow(unused_variables)] // which backends take an index depends on the features
fn open(backend: &str, index: Option<usize>) -> Option<Device> {
    match backend {
        #[cfg(feature = "flex")]
        "flex" | "cpu" => Some(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "as in ops::backends")]
        "ndarray" => Some(Device::ndarray()),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(index.unwrap_or(0))),
        #[cfg(feature = "rocm")]
        "rocm" => Some(Device::rocm(index.unwrap_or(0))),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(gpu(index))),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(gpu(index))),
        #[cfg(feature = "metal")]
        "metal" => Some(Device::metal(gpu(index))),
        _ => None,
    }
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn gpu(index: Option<usize>) -> burn::tensor::DeviceKind {
    use burn::tensor::DeviceKind;
    index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu)
}

/// [`device`], proved to work by one small computation.
///
/// # Errors
///
/// As [`device`], or if the driver or the hardware is missing.
pub fn start(name: &str) -> Result<Device, DeviceError> {
    let device = device(name)?;
    let on_device = device.clone();
    // Backends report a missing driver by panicking, some on a thread of their own and long before
    // the panic that reaches us: the first message is the one that tells.
    let first = Arc::new(Mutex::new(None));
    let seen = first.clone();
    // Two at once would each take the other's hook for the one to put back.
    let turn = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Ok(mut seen) = seen.lock() {
            seen.get_or_insert_with(|| panic.payload_as_str().map(String::from));
        }
    }));
    let outcome = std::thread::spawn(move || {
        (Tensor::<1>::ones([2], &on_device) + 1.0)
            .into_data()
            .iter::<f32>()
            .sum::<f32>()
    })
    .join();
    std::panic::set_hook(hook);
    drop(turn);
    match outcome {
        Ok(4.0) => {
            STARTED
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(device.clone());
            Ok(device)
        }
        Ok(sum) => Err(DeviceError::Unusable {
            name: name.into(),
            reason: format!("it computed 2 + 2 as {sum}"),
        }),
        Err(_) => Err(DeviceError::Unusable {
            name: name.into(),
            reason: first
                .lock()
                .ok()
                .and_then(|mut first| first.take().flatten())
                .map_or("its driver gave no reason".into(), |message| {
                    let failure = DeviceFailure::recognise(&message);
                    failure.map_or_else(|| innermost(&message), |failure| failure.to_string())
                }),
        }),
    }
}

/// Waits until the devices that [`start`]ed have done all they were given; for a program, before it ends.
///
/// A GPU is given work in advance. CUDA's driver shuts down while the process exits, and CubeCL's thread panics
/// if it then still has something to hand on.
pub fn finish() {
    let started = std::mem::take(&mut *STARTED.lock().unwrap_or_else(PoisonError::into_inner));
    for device in started {
        // A device that failed was told of where its results were read.
        let _ = device.sync();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = device("tpu").unwrap_err().to_string();
        assert!(
            message.contains("`tpu`") && message.contains("flex"),
            "{message}"
        );
    }

    #[test]
    fn an_index_must_be_a_number() {
        assert_eq!(device("cuda:x"), Err(DeviceError::Index("cuda:x".into())));
    }

    #[test]
    fn a_cpu_has_no_index() {
        assert_eq!(
            device("flex:3"),
            Err(DeviceError::Numbered("flex:3".into()))
        );
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_starts() {
        assert_eq!(start("flex"), Ok(Device::flex()));
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_panic_hook_is_put_back_behind_starts_at_once() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static TOLD: AtomicUsize = AtomicUsize::new(0);
        let turn = HOOK.lock().unwrap();
        let theirs = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            match panic.payload_as_str() == Some("for the hook alone") {
                true => drop(TOLD.fetch_add(1, Ordering::Relaxed)),
                false => theirs(panic),
            }
        }));
        drop(turn);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..20).for_each(|_| drop(start("flex"))));
            }
        });
        // Another test may start a device right now.
        let _turn = HOOK.lock().unwrap();
        let _ = std::panic::catch_unwind(|| panic!("for the hook alone"));
        assert_eq!(TOLD.load(Ordering::Relaxed), 1);
    }
}
