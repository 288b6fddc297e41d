//! Segment files: the bytes of the log on the disk, and nothing about what they mean.
//!
//! `<number>.seg` is a header (magic, version, a random marker) and records, one behind the other. A record is a
//! header and a block as it arrived. All integers are little-endian:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | the segment's marker |
//! | 8 | 4 | crc32c of the rest of this header |
//! | 12 | 4 | length of the block |
//! | 16 | 16 | pack run |
//! | 32 | 8 | arrival number of the block within the pack run |
//! | 40 | 8 | microseconds to add to the block's times |
//! | 48 | 8, 8 | segment and offset up to which the log was known to be on disk when this was written |
//!
//! So the segments explain themselves: extents, numbering and clock correction are read from them alone. No
//! output of a job can look like a record, for it can't know the marker. Bytes that are no record are either
//! *torn*, when no later record says that they had been on disk, or else *damaged*; see [`super::recover`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes};
use packrun_protocol::block::Block;
use packrun_protocol::id::{AttemptId, AttemptNumber, JobRunId, PackRunId};

/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: usize = 24;
/// Bytes of a record's header, before its block.
pub(super) const RECORD_HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"PRUNLOGS";
const VERSION: u32 = 1;

/// A place in the log. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Bytes from the segment's start.
    pub offset: u64,
}

/// The calls that fail when a disk is full or broken.
pub(super) trait Disk: Send + Sync + 'static {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn cut(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }
}

/// The operating system's.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {}

/// What a record says about its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) pack_run: PackRunId,
    pub(super) arrival: u64,
    pub(super) correction: i64,
    pub(super) durable: Position,
}

impl RecordHeader {
    /// The header at the front of `bytes`, and the length of the block behind it; `None` when there is no whole
    /// and valid one.
    pub(super) fn parse(marker: u64, bytes: &[u8]) -> Option<(Self, usize)> {
        let header = bytes.get(..RECORD_HEADER_BYTES)?;
        if u64_at(header, 0)? != marker || u32_at(header, 8)? != crc32c::crc32c(header.get(12..)?) {
            return None;
        }
        let length = Block::length(header.get(12..)?).ok()??;
        let header = Self {
            pack_run: PackRunId::from_bytes(*header.get(16..)?.first_chunk()?),
            arrival: u64_at(header, 32)?,
            correction: i64::from_le_bytes(*header.get(40..)?.first_chunk()?),
            durable: Position { segment: u64_at(header, 48)?, offset: u64_at(header, 56)? },
        };
        Some((header, length))
    }
}

/// Whose the block is that begins with these bytes, as its header says (see [`packrun_protocol::block`]), which
/// were not checked.
pub(super) fn block_attempt(block: &[u8]) -> Option<AttemptId> {
    let job_run = JobRunId::from_bytes(*block.get(8..)?.first_chunk()?);
    Some(AttemptId { job_run, number: AttemptNumber::new(u32_at(block, 24)?)? })
}

/// A record read from a segment.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) header: RecordHeader,
    pub(super) block: Block,
}

impl Record {
    pub(super) fn bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.block.as_bytes().len()
    }

    /// The record at the front of `bytes`; `None` when there is no whole and valid one.
    pub(super) fn parse(marker: u64, bytes: &Bytes) -> Option<Self> {
        let (header, length) = RecordHeader::parse(marker, bytes)?;
        let end = Some(RECORD_HEADER_BYTES + length).filter(|&end| end <= bytes.len())?;
        let block = Block::parse(bytes.slice(RECORD_HEADER_BYTES..end)).ok()?;
        Some(Self { header, block })
    }
}

/// Bytes of the record that `block` becomes.
pub(super) fn record_bytes(block: &Block) -> u32 {
    (RECORD_HEADER_BYTES + block.as_bytes().len()) as u32
}

/// Appends a record to `buffer`.
pub(super) fn encode_record(marker: u64, header: &RecordHeader, block: &Block, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    buffer.put_u64_le(marker);
    buffer.put_u32_le(0);
    buffer.put_u32_le(block.as_bytes().len() as u32);
    buffer.put_slice(&header.pack_run.to_bytes());
    buffer.put_u64_le(header.arrival);
    buffer.put_i64_le(header.correction);
    buffer.put_u64_le(header.durable.segment);
    buffer.put_u64_le(header.durable.offset);
    let checksum = crc32c::crc32c(&buffer[start + 12..]);
    buffer[start + 8..start + 12].copy_from_slice(&checksum.to_le_bytes());
    buffer.put_slice(block.as_bytes());
}

/// A segment file, open.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) marker: u64,
    pub(super) file: File,
}

impl Segment {
    /// Makes segment `number`, empty; one that was left without records is made anew. Its name is on disk once
    /// the folder is synced.
    pub(super) fn create(dir: &Path, number: u64, disk: &dyn Disk) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path(dir, number))?;
        let random = JobRunId::generate().to_bytes();
        let marker = u64_at(&random, 8).unwrap_or_default();
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.put_slice(MAGIC);
        header.put_u32_le(VERSION);
        header.put_u32_le(0);
        header.put_u64_le(marker);
        disk.write(&file, &header, 0)?;
        Ok(Self { number, marker, file })
    }

    /// Opens segment `number`, for writing when it is the last.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when its header is not that of a segment of this version.
    pub(super) fn open(dir: &Path, number: u64, writable: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(writable).open(path(dir, number))?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("is shorter than a segment's header; move it away"),
            _ => error,
        })?;
        if !header.starts_with(MAGIC) {
            return Err(invalid("is no log segment; move it away"));
        }
        if u32_at(&header, 8) != Some(VERSION) {
            return Err(invalid("was written by another version of packrun; start that one"));
        }
        let marker = u64_at(&header, 16).unwrap_or_default();
        Ok(Self { number, marker, file })
    }

    /// Whether it is at least `offset` bytes long.
    pub(super) fn reaches(&self, offset: u64) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.len() >= offset)
    }

    /// Fills `bytes` with those from `offset` on.
    pub(super) fn read_into(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Writes again the records between the offsets. After a failed sync the kernel takes the pages for clean, so
    /// a second sync alone would succeed without them.
    ///
    /// # Errors
    /// Also when they can no longer be read as they were written.
    pub(super) fn rewrite(&self, disk: &dyn Disk, from: u64, to: u64) -> io::Result<()> {
        let mut bytes = vec![0; (to - from) as usize];
        self.read_into(&mut bytes, from)?;
        let bytes = Bytes::from(bytes);
        let mut at = if from == 0 { HEADER_BYTES } else { 0 };
        while at < bytes.len() {
            let record = Record::parse(self.marker, &bytes.slice(at..));
            at += record.ok_or_else(|| invalid("records that were not yet on disk were lost; restart the coordinator, agents send them again"))?.bytes();
        }
        disk.write(&self.file, &bytes, from)
    }
}

/// Where segment `number` lies.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.seg"))
}

/// The numbers of all segments in the folder, ascending. Files with other names are left alone.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse::<u64>().ok());
        numbers.extend(number.filter(|number| name == *format!("{number:012}.seg")));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Brings the names of the folder's files to the disk.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
