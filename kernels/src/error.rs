//! What a caller is told when a kernel cannot run.

/// Why a kernel was not launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A tensor's shape does not fit the others.
    #[error("{name} must have shape {expected:?}, got {got:?}")]
    Shape {
        /// The argument.
        name: &'static str,
        /// What the other arguments ask for.
        expected: Vec<usize>,
        /// What was given.
        got: Vec<usize>,
    },
    /// A tensor lies in memory in an order that the kernel does not read.
    #[error("{name} must be {expected}, got strides {got:?}")]
    Strides {
        /// The argument.
        name: &'static str,
        /// What the kernel reads.
        expected: &'static str,
        /// What was given.
        got: Vec<usize>,
    },
    /// A size is outside the range that the kernel handles.
    #[error("{name} must be {expected}, got {got}")]
    Size {
        /// The size.
        name: &'static str,
        /// The range.
        expected: &'static str,
        /// What was given.
        got: usize,
    },
    /// The device cannot run the kernel.
    #[error("the kernel needs {needed} {resource}, the device has {available}")]
    Device {
        /// What is short.
        resource: &'static str,
        /// How much of it the kernel needs.
        needed: usize,
        /// How much there is.
        available: usize,
    },
    /// The kernels do not cover a problem, which is no fault of its.
    #[error("the kernels do not cover {0}")]
    NotCovered(&'static str),
    /// The device runs no matrix product.
    #[error("no matrix product runs on the device: {reason}")]
    Product {
        /// What the last routine tried said.
        reason: String,
    },
}
