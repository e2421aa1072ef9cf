pub mod norm;
pub mod sampling;
pub mod transformer;
