//! The coordinator of packrun. Its rooms are listed in ARCHITECTURE.md, "The house".

pub mod api;
pub mod artifacts;
pub mod cli;
pub mod core;
mod crowd;
pub mod engine;
pub mod fleet;
pub mod logs;
pub mod pack;
pub mod store;
