//! The spool: one journal per agent with all that must survive the death of a process of the agent, which are
//! assignments, starts, log blocks and ends. The executor writes it; the link reads it, by following its files
//! and never the writer's memory, so that the two may be two processes.
//!
//! A journal is a folder of numbered segment files. A segment is its header and then records, each written whole
//! and in order. It is not synced: the page cache outlives the process, and a power cut takes the jobs with it.
//!
//! Invariants:
//! - A segment begins with a checkpoint: every attempt that lives, in its latest phase. So a segment is of no use,
//!   and is removed, once each of its blocks is acknowledged or belongs to a settled attempt.
//! - An attempt that was settled never returns: its number is spent.
//! - A record counts only when it is whole. What follows the last whole record of a segment that nobody writes
//!   any more was cut off by a crash, and is skipped.
//! - The bytes of all segments that can't be removed yet are bounded by the caller, who asks
//!   [`Journal::is_full`] and slows the jobs down; nothing is ever dropped for want of room.

mod follow;
mod index;
mod journal;
mod record;
mod segment;

pub use follow::Follower;
pub use index::{BlockAt, Index, Life, Phase};
pub use journal::{Journal, JournalConfig};
pub use record::{Record, Started};
pub use segment::{Position, SpoolError};

#[cfg(test)]
mod tests;
