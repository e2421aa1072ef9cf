//! Failures of a device, in words that say what to do.
//!
//! Backends tell of them in text alone: in the messages of panics and of errors that surface when a result is read.

/// A device that cannot be used, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFailure {
    /// An allocation failed.
    #[error("the device is out of memory{}", wanted(*.bytes))]
    OutOfMemory {
        /// The size of the allocation, where the backend told it.
        bytes: Option<u64>,
    },
    /// An allocation is larger than any that the device makes.
    #[error("the device makes no single buffer{}", size(*.bytes))]
    TooLarge {
        /// The size of the allocation, where the backend told it.
        bytes: Option<u64>,
    },
    /// A library, a GPU or a fitting driver is missing; the text says which, and what to do.
    #[error("{0}")]
    Missing(&'static str),
    /// The device stopped working, for the reason given.
    #[error(
        "the device stopped working ({0}): start again, and look at the driver's log if it repeats"
    )]
    Lost(String),
}

fn wanted(bytes: Option<u64>) -> String {
    bytes.map_or(String::new(), |bytes| {
        format!(" ({} MiB more were asked for)", bytes.div_ceil(1 << 20))
    })
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or(" that large".into(), |bytes| {
        format!(" of {} MiB", bytes.div_ceil(1 << 20))
    })
}

const TOO_LARGE: [&str; 2] = [
    "can't allocate buffer of size",
    "greater than the maximum buffer size",
];

const OUT_OF_MEMORY: [&str; 6] = [
    "out of device memory",
    "out of memory",
    "out-of-memory",
    "out_of_memory",
    "outofmemory",
    "not enough memory",
];

/// What precedes the size in such a message.
const BEFORE_SIZE: [&str; 3] = ["memory allocating ", "buffer of size: ", "buffer size "];

/// Parts of messages, in lower case, and what they mean.
const MISSING: [(&str, &str); 15] = [
    (
        "load the \"cuda\" shared library",
        "there is no NVIDIA driver (libcuda) on this machine: install one, or choose another device with --device",
    ),
    (
        "load the \"nvrtc\" shared library",
        "the compiler of the CUDA toolkit (libnvrtc) is not found: install the toolkit, or put its lib64 folder into \
         LD_LIBRARY_PATH",
    ),
    (
        "adapterunavailable",
        "there is no such GPU, or no driver of its graphics interface: leave out its number, or install the driver \
         (for Linux, that of Vulkan)",
    ),
    (
        "cuda installation not found",
        "the CUDA toolkit is not found: install it, or set CUDA_PATH to its folder",
    ),
    (
        "missing symbol cu",
        "the NVIDIA driver is too old for this build: update it",
    ),
    (
        "missing symbol nvrtc",
        "the CUDA toolkit is too old for this build: update it",
    ),
    (
        "cuda_error_no_device",
        "the NVIDIA driver sees no GPU: check CUDA_VISIBLE_DEVICES and `nvidia-smi`, or choose another device with \
         --device",
    ),
    (
        "cuda_error_invalid_device",
        "there is no GPU of this number: `nvidia-smi -L` counts them from 0",
    ),
    (
        "cuda_error_unsupported_ptx_version",
        "the NVIDIA driver is older than the CUDA toolkit: update the driver, or use an older toolkit",
    ),
    (
        "cuda_error_system_driver_mismatch",
        "the NVIDIA driver and its library (libcuda) are of different versions: restart the machine, or install them \
         again",
    ),
    (
        "cuda_error_system_not_ready",
        "the NVIDIA driver is not ready: check `nvidia-smi` and, with NVSwitch, that nvidia-fabricmanager runs",
    ),
    (
        "cuda_error_stub_library",
        "libcuda is the toolkit's stub, not the driver's: take the folder `stubs` out of LD_LIBRARY_PATH",
    ),
    (
        "invalid value for --gpu-architecture",
        "the CUDA toolkit is too old for this GPU: update it",
    ),
    (
        "cannot open source file",
        "the headers of the CUDA toolkit are not found: install the toolkit, or set CUDA_PATH to its folder",
    ),
    (
        "could not open source file",
        "the headers of the CUDA toolkit are not found: install the toolkit, or set CUDA_PATH to its folder",
    ),
];

const LOST: [&str; 6] = [
    "the device is poisoned",
    "the device was poisoned",
    "cuda_error_illegal_address",
    "cuda_error_launch_failed",
    "cuda_error_ecc_uncorrectable",
    "device lost",
];

impl DeviceFailure {
    /// The failure that a backend's message tells of, if it is one of those known here.
    pub fn recognise(message: &str) -> Option<Self> {
        let lower = message.to_lowercase();
        let tells = |signs: &[&str]| signs.iter().any(|sign| lower.contains(sign));
        let bytes = BEFORE_SIZE
            .iter()
            .find_map(|before| number_after(&lower, before));
        if tells(&TOO_LARGE) {
            return Some(Self::TooLarge { bytes });
        }
        if tells(&OUT_OF_MEMORY) {
            return Some(Self::OutOfMemory { bytes });
        }
        if let Some((_, meaning)) = MISSING.iter().find(|(sign, _)| lower.contains(sign)) {
            return Some(Self::Missing(meaning));
        }
        tells(&LOST).then(|| Self::Lost(innermost(message)))
    }
}

fn number_after(text: &str, before: &str) -> Option<u64> {
    let (_, rest) = text.split_once(before)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The last line of a backend's message that tells something: causes come after what they cause.
pub(crate) fn innermost(message: &str) -> String {
    let mut lines = message.lines().rev().map(str::trim);
    let told = lines.find(|line| {
        !line.is_empty() && !line.starts_with("Backtrace") && *line != "No backtrace available"
    });
    told.unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(message: &str) -> String {
        DeviceFailure::recognise(message)
            .expect("a failure of the device")
            .to_string()
    }

    #[test]
    fn memory_is_told_with_its_size() {
        let message = "An error happened during execution\nCaused by:\n  An IO error happened\nCaused by:\n  \
             out of device memory allocating 3221225472 bytes\nNo backtrace available";
        assert_eq!(
            told(message),
            "the device is out of memory (3072 MiB more were asked for)"
        );
        for message in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "wgpu error: Out of Memory",
            "An out-of-memory error happened during launch",
        ] {
            assert_eq!(told(message), "the device is out of memory");
        }
    }

    #[test]
    fn a_buffer_too_large_is_told_with_its_size() {
        assert_eq!(
            told("can't allocate buffer of size: 2147483648\nNo backtrace available"),
            "the device makes no single buffer of 2048 MiB"
        );
    }

    #[test]
    fn what_is_missing_is_told_in_one_line() {
        for (message, part) in [
            (
                "Unable to dynamically load the \"cuda\" shared library - searched for ..",
                "no NVIDIA driver",
            ),
            (
                "called `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable \
                 device is detected\")",
                "sees no GPU",
            ),
            (
                "Unable to load the PTX: DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, ..)",
                "update the driver",
            ),
        ] {
            let told = told(message);
            assert!(told.contains(part) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn a_lost_device_is_told_with_the_innermost_reason() {
        let message = "The device is poisoned\nCaused by:\n  an illegal address\nBacktrace:\nNo backtrace available";
        assert!(told(message).contains("(an illegal address)"));
    }

    #[test]
    fn other_messages_are_left_alone() {
        for message in ["index out of bounds", "the loss became NaN", ""] {
            assert_eq!(DeviceFailure::recognise(message), None);
        }
    }
}
