//! Which problems meet which engines.

pub mod cpu_tutorial;
