//! The coordinator of packrun. Its rooms are listed in README.md, "The house".

pub mod api;
pub mod artifacts;
pub mod core;
pub mod engine;
pub mod fleet;
pub mod logs;
pub mod pack;
pub mod store;
