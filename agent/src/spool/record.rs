//! Records of the journal, and their bytes: `u32` length of what follows, `u32` crc32c of what follows, a byte for
//! the kind, and the payload: a log block as it is, or a message of the protocol's codec. Little-endian.

use bytes::{BufMut, Bytes};
use packrun_protocol::block::Block;
use packrun_protocol::codec;
use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::limit;
use packrun_protocol::state::Outcome;
use packrun_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::segment::SpoolError;

/// Bytes in front of a record's kind.
pub(super) const PREFIX_BYTES: usize = 8;

/// Largest kind and payload.
pub(super) const BODY_BYTES_MAX: usize = 1 + limit::FRAME_BYTES_MAX;

const KIND_BLOCK: u8 = 0;
const KIND_EVENT: u8 = 1;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The attempt was received from a coordinator of this epoch. It is started only after this is written.
    Assigned {
        /// Which.
        attempt: AttemptId,
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// Its main process was started.
    Started(Started),
    /// A piece of its log.
    Block(Block),
    /// It ended; nothing of it follows.
    Ended {
        /// Which.
        attempt: AttemptId,
        /// To what.
        outcome: Outcome,
    },
    /// The coordinator has recorded its end, or has given it to another agent: it is forgotten.
    Settled(AttemptId),
}

impl Record {
    /// The attempt that it is about.
    #[must_use]
    pub fn attempt(&self) -> AttemptId {
        match self {
            Self::Assigned { attempt, .. } | Self::Ended { attempt, .. } | Self::Settled(attempt) => *attempt,
            Self::Started(started) => started.attempt,
            Self::Block(block) => block.attempt(),
        }
    }

    /// Appends the record to `buffer`.
    pub(super) fn write(&self, buffer: &mut Vec<u8>) -> Result<(), SpoolError> {
        let event = match self {
            Self::Block(block) => {
                frame(buffer, KIND_BLOCK, block.as_bytes());
                return Ok(());
            }
            Self::Assigned { attempt, epoch } => Event::Assigned { attempt: *attempt, epoch: *epoch },
            Self::Started(started) => Event::Started(*started),
            Self::Ended { attempt, outcome } => Event::Ended { attempt: *attempt, outcome: outcome.clone() },
            Self::Settled(attempt) => Event::Settled(*attempt),
        };
        frame(buffer, KIND_EVENT, &codec::encode(&event)?);
        Ok(())
    }
}

/// The start of an attempt's main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Which attempt.
    pub attempt: AttemptId,
    /// The process's number.
    pub pid: u32,
    /// When the kernel started it, in clock ticks since boot (`/proc/PID/stat`, field 22): with the number it
    /// names the process beyond its death.
    pub start_ticks: u64,
    /// When it was started, by the agent's clock.
    pub at: Timestamp,
}

/// What is in a segment: a record, or the announcement of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// The next so many records are the latest phases of all attempts that live; of others nothing holds.
    Checkpoint {
        records: u32,
    },
    Record(Record),
}

/// The items that are not blocks, as they are encoded.
#[derive(Serialize, Deserialize)]
enum Event {
    Checkpoint { records: u32 },
    Assigned { attempt: AttemptId, epoch: Epoch },
    Started(Started),
    Ended { attempt: AttemptId, outcome: Outcome },
    Settled(AttemptId),
}

impl Item {
    /// Appends the announcement of a checkpoint of so many records to `buffer`.
    pub(super) fn write_checkpoint(records: u32, buffer: &mut Vec<u8>) -> Result<(), SpoolError> {
        frame(buffer, KIND_EVENT, &codec::encode(&Event::Checkpoint { records })?);
        Ok(())
    }

    /// The item with this kind and payload, whose crc was found good.
    pub(super) fn parse(body: Bytes) -> Result<Self, SpoolError> {
        let payload = body.slice(1.min(body.len())..);
        match body.first() {
            Some(&KIND_BLOCK) => Ok(Self::Record(Record::Block(Block::parse(payload)?))),
            Some(&KIND_EVENT) => Ok(match codec::decode(&payload)? {
                Event::Checkpoint { records } => Self::Checkpoint { records },
                Event::Assigned { attempt, epoch } => Self::Record(Record::Assigned { attempt, epoch }),
                Event::Started(started) => Self::Record(Record::Started(started)),
                Event::Ended { attempt, outcome } => Self::Record(Record::Ended { attempt, outcome }),
                Event::Settled(attempt) => Self::Record(Record::Settled(attempt)),
            }),
            _ => Err(SpoolError::Kind),
        }
    }
}

fn frame(buffer: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
    buffer.reserve(PREFIX_BYTES + 1 + payload.len());
    buffer.put_u32_le(1 + payload.len() as u32);
    buffer.put_u32_le(crc);
    buffer.put_u8(kind);
    buffer.extend_from_slice(payload);
}
