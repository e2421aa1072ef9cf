pub mod cache;
pub mod corpus;
pub mod encoded;
pub mod tokenizer;
pub mod windows;
