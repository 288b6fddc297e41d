//! Logs, events and the content of artifacts.

mod cursor;
mod feed;
