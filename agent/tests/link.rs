//! A whole agent against a small coordinator: every word between the two is real.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "link/artifacts.rs"]
mod artifacts;
#[path = "link/attempts.rs"]
mod attempts;
#[path = "link/fake.rs"]
mod fake;
#[path = "link/hostile.rs"]
mod hostile;
#[path = "link/hostile_trust.rs"]
mod hostile_trust;
#[path = "link/hostile_work.rs"]
mod hostile_work;
#[path = "link/identity.rs"]
mod identity;
#[path = "link/jobs.rs"]
mod jobs;
#[path = "link/program.rs"]
mod program;
