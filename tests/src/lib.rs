//! What the end-to-end tests, and later chaos and benches, share: real processes on real files and ports, and clients
//! of the REST API. Everything waits on events; a deadline only keeps a broken test from hanging.

#![expect(clippy::unwrap_used, clippy::panic, reason = "this crate is nothing but tests")]

pub mod api;
pub mod fuzz;
pub mod hostile;
pub mod noise;
pub mod process;
pub mod raw;
pub mod stream;

use std::path::PathBuf;
use std::time::Duration;

/// How long anything may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The programs under test. Cargo builds them for this package and tells a test crate alone where they are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `packrun`.
    pub packrun: PathBuf,
    /// `packrun-agent`.
    pub agent: PathBuf,
}

/// What `future` comes to.
///
/// # Panics
/// When that takes longer than [`DEADLINE`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened within {DEADLINE:?}"),
    }
}
