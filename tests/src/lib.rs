//! What the workspace's tests share: fixtures computed by PyTorch and the tolerances of each
//! operation.

pub mod fixtures;
pub mod tolerances;
