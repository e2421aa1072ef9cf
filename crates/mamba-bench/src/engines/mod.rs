//! Who solves a problem: this project, and the peers that it is compared with.

#[cfg(feature = "flex")]
pub mod cpu_scan;
pub mod launches;
pub mod model;
pub mod model_peer;
pub mod op;
pub mod op_peer;
pub mod ours;
pub(crate) mod process;
pub mod pytorch;
