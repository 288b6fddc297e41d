//! How much of the log one reading takes: the rule by which a span grows.
//!
//! A *span* is a stretch of one segment that begins and ends with records of its owner, an attempt or a pack run,
//! and may have foreign ones in between, which readers skip by their headers. So an index of the log grows with
//! the bytes in it and not with the blocks, although the blocks of many attempts come in turns.
//!
//! The rule: a span takes the owner's next record when it lies in the same segment, the span's own bytes are
//! still below [`OWN_BYTES_MAX`] (64 KiB), and its foreign bytes don't become more than [`FOREIGN_PER_OWN`] (8)
//! times its own and [`FOREIGN_FREE_BYTES`] (64 KiB) more: to pass over those takes no longer than to begin
//! another reading. From that follows:
//!
//! - A span has at most 161 KiB of own records (64 KiB and a record), and is at most 1.5 MiB long.
//! - Who reads spans reads no more than 9 times what they get and 64 KiB for each.
//! - An owner beside up to 8 that write as much has a span for every 64 KiB and one for every segment it is in.
//!   Beside more it has, in the worst case, one for every write of the appender, which puts the blocks of one
//!   attempt behind one another. In a trial, 8 attempts with 240,000 blocks of one short entry had 840 extents.

use super::segment::Position;

/// A span with so many own bytes takes no more, so that a seek reads little more than it wants, and a merge
/// holds little of each attempt.
pub(super) const OWN_BYTES_MAX: u32 = 64 << 10;
/// How many times its own bytes the foreign ones in a span may be.
pub(super) const FOREIGN_PER_OWN: u64 = 8;
/// How many foreign bytes a span may have beyond that.
pub(super) const FOREIGN_FREE_BYTES: u64 = 64 << 10;

/// A stretch of a segment, and how much of it is its owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Where its first record begins.
    pub(super) at: Position,
    /// Bytes to the end of its last record.
    pub(super) length: u32,
    /// Bytes of the owner's records.
    pub(super) bytes: u32,
}

impl Span {
    /// This span and the owner's `next` record in one, if the rule allows it.
    pub(super) fn with(&self, next: &Self) -> Option<Self> {
        if self.at.segment != next.at.segment || self.bytes >= OWN_BYTES_MAX {
            return None;
        }
        let own = u64::from(self.bytes) + u64::from(next.bytes);
        let between = next.at.offset.checked_sub(self.end())?;
        let length = u64::from(self.length) + between + u64::from(next.length);
        if length - own > FOREIGN_PER_OWN * own + FOREIGN_FREE_BYTES {
            return None;
        }
        let (length, bytes) = (u32::try_from(length).ok()?, u32::try_from(own).ok()?);
        Some(Self { at: self.at, length, bytes })
    }

    fn end(&self) -> u64 {
        self.at.offset + u64::from(self.length)
    }
}
