//! The language that packrun's coordinator and agents speak, shared by both sides and by nothing else.
//!
//! | file | what it is for |
//! | --- | --- |
//! | [`id`], [`name`], [`path`] | what is meant, what it is called, where it lies |
//! | [`state`], [`time`] | what became of it, and when |
//! | [`job`] | what an attempt has to do |
//! | [`block`] | log entries, from the pipe to the reader |
//! | [`control`], [`stream`] | what is said, and on which stream |
//! | [`join_token`] | how an agent becomes one |
//! | [`cert`], [`quic`] | certificates; TLS and streams of frames |
//! | [`limit`], [`bounded`] | every bound of the wire |
//! | [`codec`], [`frame`] | values to bytes, bytes to messages |
//!
//! Whatever comes from outside is checked while it is decoded: a value of one of these types is valid.

pub mod block;
pub mod bounded;
pub mod cert;
pub mod codec;
pub mod control;
pub mod frame;
pub mod id;
pub mod job;
pub mod join_token;
mod lean;
pub mod limit;
pub mod matcher;
pub mod name;
pub mod path;
pub mod quic;
pub mod state;
pub mod stream;
pub mod time;
