//! Who computes behind a device, and which one is taken where none is named.

use burn::tensor::Device;

use super::{DeviceError, device_names, start};

/// Adapters that only imitate a GPU on the CPU, by what their names contain in small letters.
const SOFTWARE: [&str; 4] = ["llvmpipe", "lavapipe", "swiftshader", "basic render"];

/// The devices that compute on the CPU without imitating a GPU.
const CPU: [&str; 2] = ["flex", "ndarray"];

/// The device that is taken where none is named.
#[derive(Clone, Debug)]
pub struct DefaultDevice {
    /// Its name, as in [`device_names`].
    pub name: &'static str,
    /// The device, started.
    pub device: Device,
    /// One line for the user, where it is not the first of the build.
    pub notice: Option<String>,
}

/// What the driver of a started device calls the card or processor; none of a backend that does not tell.
#[cfg(feature = "cube")]
pub fn adapter(device: &Device) -> Option<String> {
    device.identity().map(|it| it.name)
}

/// None: the backends of this build have no adapters.
#[cfg(not(feature = "cube"))]
pub fn adapter(_device: &Device) -> Option<String> {
    None
}

/// Whether an adapter of that name only imitates a GPU on the CPU, where the CPU backends are much faster.
pub fn is_software(adapter: &str) -> bool {
    let adapter = adapter.to_lowercase();
    SOFTWARE.iter().any(|name| adapter.contains(name))
}

/// The CPU backend to take instead of a software adapter, if there is one in this build.
pub fn cpu_name() -> Option<&'static str> {
    device_names().into_iter().find(|name| CPU.contains(name))
}

/// Starts the first device of the build; one that turns out to be a software adapter only where the build has no CPU backend.
///
/// # Errors
///
/// As [`start`]. None where the build has no backend at all.
pub fn start_default() -> Option<Result<DefaultDevice, DeviceError>> {
    let mut notice = None;
    for name in device_names() {
        let device = match start(name) {
            Ok(device) => device,
            Err(error) => return Some(Err(error)),
        };
        let software = adapter(&device).filter(|adapter| is_software(adapter));
        if let (Some(adapter), Some(cpu)) = (software, cpu_name()) {
            notice.get_or_insert_with(|| {
                format!(
                    "{name} is a software adapter ({adapter}): taking {cpu}, which is faster here; --device {name} insists"
                )
            });
            continue;
        }
        return Some(Ok(DefaultDevice {
            name,
            device,
            notice,
        }));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_adapters_are_known_by_their_names() {
        for name in [
            "llvmpipe (LLVM 20.1.2, 256 bits)",
            "SwiftShader Device (Subzero)",
            "Microsoft Basic Render Driver",
        ] {
            assert!(is_software(name), "{name}");
        }
        for name in [
            "NVIDIA H100 80GB HBM3",
            "AMD Radeon 780M (RADV)",
            "Apple M4",
        ] {
            assert!(!is_software(name), "{name}");
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_backend_names_no_adapter_and_is_the_one_to_take() {
        assert_eq!(adapter(&Device::flex()), None);
        assert_eq!(cpu_name(), Some("flex"));
    }
}
