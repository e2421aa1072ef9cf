//! Who solves a problem: this project, and the peers that it is compared with.

#[cfg(feature = "flex")]
pub mod cpu_scan;
pub mod hugging_face;
pub mod model;
pub mod op;
pub mod ours;
pub mod pytorch;
