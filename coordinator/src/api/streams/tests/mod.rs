//! The streams over HTTP, on a real engine, store and log store, and an agent played by the test.

mod artifacts;
mod changes;
mod client;
mod logs;
mod open;
mod stage;
mod stream;
