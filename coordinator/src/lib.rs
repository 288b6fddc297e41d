//! The coordinator of packrun. Its rooms are listed in README.md, "The house".

pub mod artifacts;
pub mod core;
pub mod store;
pub mod pack;
pub mod logs;
