
pub mod ops;
