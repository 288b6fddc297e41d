//! The pure state machine. No I/O, no clock, no async, no randomness.

pub mod plan;
