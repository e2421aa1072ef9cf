//! Paired measurements of mamba-lab and its peers.
//!
//! A *suite* takes named [`problems`] to [`engines`], ours and others', and measures them within one run. Nothing is timed
//! before its [`proofs`] have passed in that run. [`results`] are written as they come, and drawn by [`plot`].
#![recursion_limit = "256"]

pub mod attempt;
pub mod beside;
pub mod engines;
pub mod fit;
pub mod limit;
pub mod machine;
pub mod measure;
pub mod options;
pub mod pace;
pub mod peaks;
pub mod plot;
pub mod probe;
pub mod problems;
pub mod progress;
pub mod proofs;
pub mod readme;
pub mod report;
pub mod results;
#[cfg(feature = "flex")]
pub mod roofline;
pub mod run;
pub mod session;
pub mod suites;
