//! Training language models: from text to a run folder.

#![warn(missing_docs)]
#![recursion_limit = "256"]

pub mod cache;
pub mod checkpoint;
pub mod compiling;
pub mod corpus;
pub mod curve;
mod dashboard;
pub mod data;
pub mod encoded;
pub mod evaluate;
pub mod experiment;
mod files;
pub mod hardware;
pub mod history;
pub mod hub;
pub mod interrupt;
pub mod learner;
pub mod load;
pub mod logging;
pub mod optimizer;
pub mod renderer;
pub mod run;
pub mod schedule;
pub mod summary;
pub mod tokenizer;
pub mod train;
pub mod windows;
