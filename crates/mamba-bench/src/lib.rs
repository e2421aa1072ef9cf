//! Paired measurements of mamba-lab and its peers.
//!
//! A *suite* takes named [`problems`] to [`engines`], ours and others', and measures them in turns
//! within one run on the same threads. Nothing is timed before its [`proofs`] have passed in that
//! run.
#![recursion_limit = "256"]

pub mod engines;
pub mod machine;
pub mod measure;
pub mod problems;
pub mod proofs;
pub mod report;
pub mod roofline;
pub mod suites;
