//! Who solves a problem: this project, and the peers that it is compared with.

pub mod ours;
pub mod pytorch;
