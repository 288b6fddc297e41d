//! Where blocks of an attempt lie.

use packrun_protocol::block::Block;
use packrun_protocol::id::AttemptId;
use packrun_protocol::time::Timestamp;

use super::merge::MergeKey;
use super::segment::{Position, RecordHeader, record_bytes};
use super::span::Span;

/// Blocks of one attempt that follow one another, in a stretch of the log that may have others in between; see
/// `span` for how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub at: Position,
    /// Its length in bytes, to the end of its last block.
    pub length: u32,
    /// How many of them are the attempt's own.
    pub bytes: u32,
    /// Number of its first entry.
    pub first_seq: u64,
    /// How many entries it has.
    pub entries: u64,
    /// Arrival number of its first block within the pack run.
    pub first_arrival: u64,
    /// How many arrival numbers there are from its first block's to its last's.
    pub arrivals: u32,
    /// Time of its first entry, corrected.
    pub first_time: Timestamp,
    /// Time of its last entry, corrected.
    pub last_time: Timestamp,
}

impl Extent {
    /// The extent of one record.
    pub(super) fn of(at: Position, header: &RecordHeader, block: &Block) -> Self {
        Self {
            at,
            length: record_bytes(block),
            bytes: record_bytes(block),
            first_seq: block.first_seq(),
            entries: u64::from(block.count()),
            first_arrival: header.arrival,
            arrivals: 1,
            first_time: block.first_time().shifted(header.correction),
            last_time: block.last_time().shifted(header.correction),
        }
    }

    /// The number after that of its last entry.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.first_seq.saturating_add(self.entries)
    }

    /// The number after that of its last block.
    #[must_use]
    pub fn next_arrival(&self) -> u64 {
        self.first_arrival.saturating_add(u64::from(self.arrivals))
    }

    /// Whether its last entry, as one of `attempt`, comes behind `after` in the chronological order.
    pub(super) fn reaches_behind(&self, attempt: AttemptId, after: Option<MergeKey>) -> bool {
        let last = MergeKey { time: self.last_time, attempt, seq: self.next_seq().saturating_sub(1) };
        after.is_none_or(|after| last > after)
    }

    /// Takes the attempt's next block in, of which this is the extent, if it follows and the span may grow.
    pub(super) fn join(&mut self, next: &Self) -> bool {
        let follows = self.next_seq() == next.first_seq && self.next_arrival() <= next.first_arrival;
        let arrivals = u32::try_from(next.next_arrival() - self.first_arrival);
        let (true, Ok(arrivals), Some(span)) = (follows, arrivals, self.span().with(&next.span())) else {
            return false;
        };
        self.length = span.length;
        self.bytes = span.bytes;
        self.entries += next.entries;
        self.arrivals = arrivals;
        self.last_time = next.last_time;
        true
    }

    pub(super) fn span(&self) -> Span {
        Span { at: self.at, length: self.length, bytes: self.bytes }
    }
}
