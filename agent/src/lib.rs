//! The agent of packrun. Its rooms are listed in ARCHITECTURE.md, "The house".
//!
//! [`run`] is a whole agent in this process; [`main`] is the program `packrun-agent`.

pub mod artifacts;
pub mod cli;
pub mod config;
pub mod executor;
pub mod host;
pub mod link;
pub mod log;
pub mod serve;
pub mod spool;

pub use cli::main;
pub use config::AgentConfig;
pub use link::Stop;
pub use serve::{AgentError, run};
