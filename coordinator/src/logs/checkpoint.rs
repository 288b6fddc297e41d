//! Where the next start begins to read, as the log folder's `checkpoint` file keeps it.
//!
//! A checkpoint is a place before which all is on disk and belongs to runs that were closed. That stays true
//! however old it gets, so the file is written when it suits and not synced: it only spares the next start
//! reading. One that is missing, torn or of another version, or that is not of these segments (as in a folder put
//! together from copies), is no checkpoint, and all is read.
//!
//! Format, integers little-endian: magic (8 bytes), version (4), crc32c of what follows (4), segment (8),
//! offset (8), the segment's marker (8).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::BufMut;

use super::segment::{Position, Segment, u32_at, u64_at};

const NAME: &str = "checkpoint";
const MAGIC: &[u8; 8] = b"PRUNLOGC";
const VERSION: u32 = 1;
const BYTES: usize = 40;

/// Puts `at` in place of the folder's checkpoint.
pub(super) fn keep(dir: &Path, at: Position) -> io::Result<()> {
    let marker = Segment::open(dir, at.segment, false)?.marker;
    let mut body = Vec::with_capacity(BYTES - 16);
    body.put_u64_le(at.segment);
    body.put_u64_le(at.offset);
    body.put_u64_le(marker);
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.put_slice(MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u32_le(crc32c::crc32c(&body));
    bytes.put_slice(&body);
    let new = dir.join(format!("{NAME}.new"));
    std::fs::write(&new, bytes)?;
    std::fs::rename(new, dir.join(NAME))
}

/// What a folder's checkpoint says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Checkpoint {
    /// Where to begin to read.
    pub(super) from: Position,
    /// The number of a segment that there has been, whatever became of it; 0 when none is known.
    pub(super) seen: u64,
}

/// The checkpoint of the folder with these segments; the log's start when it has none.
pub(super) fn load(dir: &Path, segments: &[u64]) -> Checkpoint {
    let Some((at, marker)) = read(dir).ok().and_then(|bytes| parse(&bytes)) else {
        return Checkpoint::default();
    };
    let fits = if segments.contains(&at.segment) {
        let segment = Segment::open(dir, at.segment, false);
        segment.is_ok_and(|segment| segment.marker == marker && segment.reaches(at.offset))
    } else {
        // It was dropped, unless the folder is older than the checkpoint.
        segments.last().is_some_and(|&last| last > at.segment)
    };
    Checkpoint { from: if fits { at } else { Position::default() }, seen: at.segment }
}

fn read(dir: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(dir.join(NAME))?.take(BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Option<(Position, u64)> {
    if bytes.len() != BYTES || !bytes.starts_with(MAGIC) || u32_at(bytes, 8)? != VERSION {
        return None;
    }
    if u32_at(bytes, 12)? != crc32c::crc32c(bytes.get(16..)?) {
        return None;
    }
    let at = Position { segment: u64_at(bytes, 16)?, offset: u64_at(bytes, 24)? };
    Some((at, u64_at(bytes, 32)?))
}
