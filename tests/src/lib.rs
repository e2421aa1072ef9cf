//! What the workspace's tests share: fixtures computed by PyTorch, the tolerances of each
//! operation, and the device under test.
#![recursion_limit = "256"]

pub mod devices;
pub mod fixtures;
pub mod hugging_face;
pub mod mixers;
pub mod tensors;
pub mod tolerances;
