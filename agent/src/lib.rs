//! The agent of packrun. Its rooms are listed in README.md, "The house".

pub mod spool;
pub mod executor;
pub mod artifacts;
