//! The log block: the one format of log entries, from the agent's pipe over its journal, the QUIC stream and the
//! coordinator's segments to the reader. It is encoded once, delimits itself, and is copied as bytes from then on.
//!
//! All integers are little-endian:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | length of the whole block |
//! | 4 | 4 | crc32c of everything behind this field |
//! | 8 | 16 | job run |
//! | 24 | 4 | attempt, 1 or more |
//! | 28 | 4 | number of entries, 1 to 4,096 |
//! | 32 | 8 | sequence number of the first entry |
//! | 40 | 8 | time of the first entry, microseconds since 1970 by the agent's clock |
//! | 48 | 8 | time of the last entry |
//! | 56 | 8 each | entries: `u32` microseconds since the first, `u32` of length (bits 0–23), stream (24–25), continued (31) |
//! | … | | the texts, one behind the other, without newlines at their ends |
//!
//! Invariants of a [`Block`]: the crc holds, the lengths add up, times never run backwards, no text is over
//! [`limit::ENTRY_TEXT_BYTES_MAX`], all texts together are within [`limit::BLOCK_TEXT_BYTES_MAX`].

mod lossy;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::lossy::invalid_bytes;
use crate::id::{AttemptId, AttemptNumber, JobRunId};
use crate::limit;
use crate::time::Timestamp;

/// Bytes of a block's header.
pub const HEADER_BYTES: usize = 56;

/// Bytes of one entry in a block, without its text.
pub const ENTRY_BYTES: usize = 8;

const LENGTH_MASK: u32 = 0x00ff_ffff;
const STREAM_SHIFT: u32 = 24;
const STREAM_MASK: u32 = 3;
const CONTINUED_BIT: u32 = 1 << 31;
const UNUSED_BITS: u32 = !(LENGTH_MASK | STREAM_MASK << STREAM_SHIFT | CONTINUED_BIT);

/// Where an entry was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// The attempt's standard output.
    Stdout,
    /// The attempt's standard error.
    Stderr,
    /// A remark of packrun's own, as where a log reached its limit.
    System,
}

/// One line of an attempt's output, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number within the attempt, from 0 without gaps.
    pub seq: u64,
    /// When it was read from the pipe, by the agent's clock.
    pub time: Timestamp,
    /// Where it was written to.
    pub stream: LogStream,
    /// Whether the line goes on in the next entry of the same stream: no newline followed this text.
    pub continued: bool,
    /// The bytes as they were written, without the newline; mostly UTF-8.
    pub text: Bytes,
}

/// Why bytes are no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BlockError {
    /// The header announces a length that no block has.
    #[error("a block of {bytes} bytes is outside the limits")]
    Length {
        /// The announced length.
        bytes: usize,
    },
    /// The bytes were changed on their way.
    #[error("the block's checksum does not match its content")]
    Checksum,
    /// The fields contradict each other or the limits.
    #[error("malformed block: {0}")]
    Malformed(&'static str),
}

/// A whole block that was checked, as bytes. Clones share them.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    bytes: Bytes,
}

impl Block {
    /// How long the block is that begins with these bytes, header included; `None` when they are fewer than
    /// its first four.
    ///
    /// # Errors
    /// When no block has that length, so that nobody waits or allocates for it.
    pub fn length(start: &[u8]) -> Result<Option<usize>, BlockError> {
        let Some(length) = start.first_chunk() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*length) as usize;
        if (HEADER_BYTES + ENTRY_BYTES..=limit::BLOCK_BYTES_MAX).contains(&bytes) {
            Ok(Some(bytes))
        } else {
            Err(BlockError::Length { bytes })
        }
    }

    /// Takes the first block out of `buffer`; `None` while it is not whole.
    ///
    /// # Errors
    /// When the bytes at the front are no block; the buffer is of no use after it.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, BlockError> {
        match Self::length(buffer)? {
            Some(length) if length <= buffer.len() => Self::parse(buffer.split_to(length).freeze()).map(Some),
            _ => Ok(None),
        }
    }

    /// The block that these bytes are, all of it checked.
    ///
    /// # Errors
    /// When they are not exactly one valid block.
    pub fn parse(bytes: Bytes) -> Result<Self, BlockError> {
        if Self::length(&bytes)? != Some(bytes.len()) {
            return Err(BlockError::Malformed("its length is not that of its bytes"));
        }
        let block = Self { bytes };
        if crc32c::crc32c(block.bytes.get(8..).unwrap_or_default()) != block.u32_at(4) {
            return Err(BlockError::Checksum);
        }
        block.check()?;
        Ok(block)
    }

    fn check(&self) -> Result<(), BlockError> {
        let count = self.count() as usize;
        let texts = (HEADER_BYTES + count.saturating_mul(ENTRY_BYTES)).min(self.bytes.len());
        let text_bytes = self.bytes.len() - texts;
        if AttemptNumber::new(self.u32_at(24)).is_none() {
            return Err(BlockError::Malformed("attempt 0"));
        }
        if count == 0 || count > limit::BLOCK_ENTRIES_MAX || texts != HEADER_BYTES + count * ENTRY_BYTES {
            return Err(BlockError::Malformed("its number of entries"));
        }
        if text_bytes > limit::BLOCK_TEXT_BYTES_MAX {
            return Err(BlockError::Malformed("its text is too long"));
        }
        if self.first_seq().checked_add(count as u64).is_none() {
            return Err(BlockError::Malformed("its sequence numbers overflow"));
        }
        let (first, last) = (self.i64_at(40), self.i64_at(48));
        if Timestamp::from_micros(first).as_micros() != first
            || Timestamp::from_micros(last).as_micros() != last
        {
            return Err(BlockError::Malformed("its times are outside the range"));
        }
        let (mut latest, mut total) = (0, 0);
        for index in 0..count {
            let (since_first, word) = self.raw_entry(index);
            let length = (word & LENGTH_MASK) as usize;
            if since_first < latest || (index == 0 && since_first != 0) {
                return Err(BlockError::Malformed("its times run backwards"));
            }
            if length > limit::ENTRY_TEXT_BYTES_MAX || word & UNUSED_BITS != 0 || stream_of(word).is_none() {
                return Err(BlockError::Malformed("an entry's length or stream"));
            }
            latest = since_first;
            total += length;
        }
        if total != text_bytes {
            return Err(BlockError::Malformed("its lengths do not add up"));
        }
        if first.checked_add(i64::from(latest)) != Some(last) {
            return Err(BlockError::Malformed("its last time is not that of its last entry"));
        }
        Ok(())
    }

    /// The block as it travels and lies on disks.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whose output it holds.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        let mut job_run = [0; 16];
        job_run.copy_from_slice(&self.bytes[8..24]);
        let number = AttemptNumber::new(self.u32_at(24)).unwrap_or(AttemptNumber::FIRST);
        AttemptId { job_run: JobRunId::from_bytes(job_run), number }
    }

    /// How many entries it has, 1 or more.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.u32_at(28)
    }

    /// The number of its first entry.
    #[must_use]
    pub fn first_seq(&self) -> u64 {
        u64::from_le_bytes(self.chunk(32))
    }

    /// The number after that of its last entry.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.first_seq().saturating_add(u64::from(self.count()))
    }

    /// The time of its first entry.
    #[must_use]
    pub fn first_time(&self) -> Timestamp {
        Timestamp::from_micros(self.i64_at(40))
    }

    /// The time of its last entry.
    #[must_use]
    pub fn last_time(&self) -> Timestamp {
        Timestamp::from_micros(self.i64_at(48))
    }

    /// What its entries count for against the limit of their log: their texts, and [`ENTRY_BYTES`] for each.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        (self.bytes.len() - HEADER_BYTES) as u64
    }

    /// Its entries in order; their texts share the block's bytes.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let mut text_at = HEADER_BYTES + self.count() as usize * ENTRY_BYTES;
        (0..self.count()).map(move |index| {
            let (since_first, word) = self.raw_entry(index as usize);
            let end = text_at + (word & LENGTH_MASK) as usize;
            let text = self.bytes.slice(text_at..end);
            text_at = end;
            Entry {
                seq: self.first_seq() + u64::from(index),
                time: self.first_time().shifted(i64::from(since_first)),
                stream: stream_of(word).unwrap_or(LogStream::System),
                continued: word & CONTINUED_BIT != 0,
                text,
            }
        })
    }

    fn raw_entry(&self, index: usize) -> (u32, u32) {
        let at = HEADER_BYTES + index * ENTRY_BYTES;
        (self.u32_at(at), self.u32_at(at + 4))
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.chunk(at))
    }

    fn i64_at(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.chunk(at))
    }

    /// Callers stay within the length that [`Block::check`] has seen; anything else reads as zeros.
    fn chunk<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Block({} {}..{}, {} bytes)",
            self.attempt(),
            self.first_seq(),
            self.next_seq(),
            self.bytes.len()
        )
    }
}

fn stream_of(word: u32) -> Option<LogStream> {
    match word >> STREAM_SHIFT & STREAM_MASK {
        0 => Some(LogStream::Stdout),
        1 => Some(LogStream::Stderr),
        2 => Some(LogStream::System),
        _ => None,
    }
}

/// Collects entries until a block is full or its writer wants it out.
#[derive(Debug)]
pub struct BlockBuilder {
    attempt: AttemptId,
    next_seq: u64,
    first_time: Timestamp,
    last_time: Timestamp,
    entries: BytesMut,
    texts: BytesMut,
}

impl BlockBuilder {
    /// A builder of the blocks of `attempt`, the first of which begins with the entry `next_seq`.
    #[must_use]
    pub fn new(attempt: AttemptId, next_seq: u64) -> Self {
        let (entries, texts) = (BytesMut::new(), BytesMut::new());
        Self { attempt, next_seq, first_time: Timestamp::MIN, last_time: Timestamp::MIN, entries, texts }
    }

    /// Whether nothing was pushed since the last block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number that the next entry will have.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether an entry with `text_bytes` at `time` still goes into this block.
    #[must_use]
    pub fn has_room(&self, time: Timestamp, text_bytes: usize) -> bool {
        self.is_empty()
            || (self.entries.len() < limit::BLOCK_ENTRIES_MAX * ENTRY_BYTES
                && self.texts.len() + text_bytes <= limit::BLOCK_TEXT_BYTES_MAX
                && self.since_first(time).is_some())
    }

    /// Adds an entry, which takes the next number. A `time` before the last entry's becomes that one: within an
    /// attempt time never runs backwards. The caller has asked [`BlockBuilder::has_room`]; a text over
    /// [`limit::ENTRY_TEXT_BYTES_MAX`] is the caller's to cut.
    ///
    /// # Errors
    /// When there is no room, or the text is too long: nothing was added.
    pub fn push(
        &mut self,
        time: Timestamp,
        stream: LogStream,
        continued: bool,
        text: &[u8],
    ) -> Result<(), BlockError> {
        if text.len() > limit::ENTRY_TEXT_BYTES_MAX || !self.has_room(time, text.len()) {
            return Err(BlockError::Length { bytes: text.len() });
        }
        self.last_time = self.last_time.max(time);
        if self.is_empty() {
            self.first_time = self.last_time;
        }
        let since_first = self.since_first(time).unwrap_or(0);
        let stream = match stream {
            LogStream::Stdout => 0,
            LogStream::Stderr => 1,
            LogStream::System => 2,
        };
        let continued = if continued { CONTINUED_BIT } else { 0 };
        self.entries.put_u32_le(since_first);
        self.entries.put_u32_le(text.len() as u32 | stream << STREAM_SHIFT | continued);
        self.texts.extend_from_slice(text);
        self.next_seq += 1;
        Ok(())
    }

    /// The block of all entries pushed since the last one; `None` when there are none.
    pub fn finish(&mut self) -> Option<Block> {
        if self.is_empty() {
            return None;
        }
        let count = self.entries.len() / ENTRY_BYTES;
        let length = HEADER_BYTES + self.entries.len() + self.texts.len();
        let mut bytes = BytesMut::with_capacity(length);
        bytes.put_u32_le(length as u32);
        bytes.put_u32_le(0);
        bytes.put_slice(&self.attempt.job_run.to_bytes());
        bytes.put_u32_le(self.attempt.number.get());
        bytes.put_u32_le(count as u32);
        bytes.put_u64_le(self.next_seq - count as u64);
        bytes.put_i64_le(self.first_time.as_micros());
        bytes.put_i64_le(self.last_time.as_micros());
        bytes.put_slice(&self.entries);
        bytes.put_slice(&self.texts);
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.entries.clear();
        self.texts.clear();
        Some(Block { bytes: bytes.freeze() })
    }

    fn since_first(&self, time: Timestamp) -> Option<u32> {
        let time = time.max(self.last_time).as_micros();
        u32::try_from(time - self.first_time.as_micros()).ok()
    }
}

#[cfg(test)]
mod tests;
