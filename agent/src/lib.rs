//! The agent of packrun. Its rooms are listed in README.md, "The house".

pub mod artifacts;
pub mod executor;
pub mod spool;
