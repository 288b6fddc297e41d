//! The form in which the extents of an attempt that has ended are kept, by someone to whom they are bytes.
//!
//! No extents are no bytes. Otherwise a byte for the version, then the fields of one extent behind the other, each
//! a varint (LEB128). These rows stay as long as the log does, so most fields are differences to where the extent
//! before ended, which are small: an extent takes about 20 bytes. What may be less than there is zigzag.
//!
//! | field | as |
//! | --- | --- |
//! | segment | difference to the last extent's |
//! | offset | difference to the last extent's end, or to 0 in another segment |
//! | length | itself |
//! | bytes | what the length is more |
//! | first number, first arrival number, first time | difference to what the last extent ended with |
//! | entries, arrivals | themselves |
//! | last time | difference to the first |

use packrun_protocol::time::Timestamp;
use thiserror::Error;

use super::extent::Extent;
use super::segment::Position;

const VERSION: u8 = 1;

/// Why bytes are not the extents of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ExtentsError {
    /// They end too early, or say what no extent is.
    #[error("damaged list of log extents; restore the store from a backup")]
    Damaged,
    /// A later version has written them.
    #[error("a list of log extents of version {0}; start the packrun that wrote it")]
    Newer(u8),
}

/// The bytes of an attempt's extents, as [`super::LogStore::seal`] gives them.
#[must_use]
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !extents.is_empty() {
        bytes.push(VERSION);
    }
    let mut last = Last::default();
    for extent in extents {
        put_difference(&mut bytes, extent.at.segment, last.at.segment);
        put_difference(&mut bytes, extent.at.offset, last.offset_in(extent.at.segment));
        put(&mut bytes, u64::from(extent.length));
        put_difference(&mut bytes, u64::from(extent.length), u64::from(extent.bytes));
        put_difference(&mut bytes, extent.first_seq, last.next_seq);
        put(&mut bytes, extent.entries);
        put_difference(&mut bytes, extent.first_arrival, last.next_arrival);
        put(&mut bytes, u64::from(extent.arrivals));
        put_difference(&mut bytes, extent.first_time.as_micros() as u64, last.time);
        put_difference(&mut bytes, extent.last_time.as_micros() as u64, extent.first_time.as_micros() as u64);
        last = Last::of(extent);
    }
    bytes
}

/// The extents of these bytes.
///
/// # Errors
/// When they are not what [`encode_extents`] gives. They may come from anywhere: what is taken for them is at most
/// some fifteen times their own memory.
pub fn decode_extents(bytes: &[u8]) -> Result<Vec<Extent>, ExtentsError> {
    let mut rest = match bytes.split_first() {
        None => return Ok(Vec::new()),
        Some((&VERSION, rest)) => rest,
        Some((&version, _)) if version > VERSION => return Err(ExtentsError::Newer(version)),
        Some(_) => return Err(ExtentsError::Damaged),
    };
    let (mut extents, mut last) = (Vec::new(), Last::default());
    while !rest.is_empty() {
        let extent = take_extent(&mut rest, &last).ok_or(ExtentsError::Damaged)?;
        last = Last::of(&extent);
        extents.push(extent);
    }
    if extents.is_empty() { Err(ExtentsError::Damaged) } else { Ok(extents) }
}

/// What the fields of the next extent are told by.
#[derive(Default)]
struct Last {
    at: Position,
    end: u64,
    next_seq: u64,
    next_arrival: u64,
    time: u64,
}

impl Last {
    fn of(extent: &Extent) -> Self {
        Self {
            at: extent.at,
            end: extent.at.offset.wrapping_add(u64::from(extent.length)),
            next_seq: extent.next_seq(),
            next_arrival: extent.next_arrival(),
            time: extent.last_time.as_micros() as u64,
        }
    }

    fn offset_in(&self, segment: u64) -> u64 {
        if segment == self.at.segment { self.end } else { 0 }
    }
}

fn take_extent(rest: &mut &[u8], last: &Last) -> Option<Extent> {
    let segment = take_difference(rest, last.at.segment)?;
    let at = Position { segment, offset: take_difference(rest, last.offset_in(segment))? };
    let length = u32::try_from(take(rest)?).ok()?;
    let more = take(rest)?;
    let bytes = u32::try_from(u64::from(length).wrapping_sub(signed(more) as u64)).ok()?;
    let first_seq = take_difference(rest, last.next_seq)?;
    let entries = take(rest)?;
    let first_arrival = take_difference(rest, last.next_arrival)?;
    let arrivals = u32::try_from(take(rest)?).ok()?;
    let first_time = take_difference(rest, last.time)?;
    let last_time = take_difference(rest, first_time)?;
    let extent = Extent {
        at,
        length,
        bytes,
        first_seq,
        entries,
        first_arrival,
        arrivals,
        first_time: timestamp(first_time)?,
        last_time: timestamp(last_time)?,
    };
    let possible = 0 < bytes
        && bytes <= length
        && entries > 0
        && arrivals > 0
        && at.offset.checked_add(u64::from(length)).is_some()
        && first_seq.checked_add(entries).is_some()
        && first_arrival.checked_add(u64::from(arrivals)).is_some()
        && extent.first_time <= extent.last_time;
    possible.then_some(extent)
}

fn timestamp(micros: u64) -> Option<Timestamp> {
    let time = Timestamp::from_micros(micros as i64);
    (time.as_micros() as u64 == micros).then_some(time)
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_difference(bytes: &mut Vec<u8>, value: u64, to: u64) {
    let difference = value.wrapping_sub(to) as i64;
    put(bytes, ((difference << 1) ^ (difference >> 63)) as u64);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        let bits = u64::from(byte & 0x7f);
        value |= bits << shift;
        if bits << shift >> shift != bits {
            return None;
        }
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_difference(rest: &mut &[u8], to: u64) -> Option<u64> {
    Some(to.wrapping_add(signed(take(rest)?) as u64))
}

fn signed(zigzag: u64) -> i64 {
    (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
}
