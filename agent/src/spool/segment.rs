//! Segment files: names, headers, and reading whole items at an offset.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use packrun_protocol::block::BlockError;
use packrun_protocol::codec::{DecodeError, EncodeError};
use thiserror::Error;

use super::record::{BODY_BYTES_MAX, Item, PREFIX_BYTES};

/// What a segment begins with; the digit is the format's version.
pub(super) const MAGIC: [u8; 8] = *b"pkrspl1\n";

/// Where something lies in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The segment's number.
    pub segment: u64,
    /// The byte in it.
    pub offset: u64,
}

/// Why the journal can't be used.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The operating system refuses.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is no segment of this version.
    #[error("{path} is not a journal of this version of the agent")]
    Header {
        /// Which file.
        path: PathBuf,
    },
    /// A record was damaged on the disk.
    #[error("{path} is damaged at byte {offset}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// A record of unknown kind.
    #[error("a record of unknown kind")]
    Kind,
    /// A record holds no valid block.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A record holds no valid event.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A record is too large.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl SpoolError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The file of segment `number` in `folder`.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.spool"))
}

/// The numbers of all segments in `folder`, ascending.
pub(super) fn numbers(folder: &Path) -> Result<Vec<u64>, SpoolError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).map_err(SpoolError::io("list", folder))? {
        let name = entry.map_err(SpoolError::io("list", folder))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".spool")?.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A segment open for reading, perhaps while somebody appends to it.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    number: u64,
}

impl Segment {
    /// Opens segment `number`; `None` when it was removed.
    pub(super) fn open(folder: &Path, number: u64) -> Result<Option<Self>, SpoolError> {
        let path = path(folder, number);
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { file, path, number })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SpoolError::io("open", &path)(error)),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether the header is there; `false` while it isn't written.
    pub(super) fn check_header(&self) -> Result<bool, SpoolError> {
        let mut header = [0; MAGIC.len()];
        match self.read(&mut header, 0)? {
            false => Ok(false),
            true if header == MAGIC => Ok(true),
            true => Err(SpoolError::Header { path: self.path.clone() }),
        }
    }

    /// The item at `offset` and the offset behind it; `None` while it is not whole. The kernel shows the length of
    /// a file only after the bytes, so what is within it and fails its crc is damaged, not half-written.
    pub(super) fn item(&self, offset: u64) -> Result<Option<(Item, u64)>, SpoolError> {
        let damaged = || SpoolError::Damaged { path: self.path.clone(), offset };
        let mut prefix = [0; PREFIX_BYTES];
        if !self.read(&mut prefix, offset)? {
            return Ok(None);
        }
        let [length, crc] = [&prefix[..4], &prefix[4..]]
            .map(|half| half.first_chunk().copied().map_or(0, u32::from_le_bytes));
        let length = length as usize;
        if length == 0 || length > BODY_BYTES_MAX {
            return Err(damaged());
        }
        let mut body = vec![0; length];
        if !self.read(&mut body, offset + PREFIX_BYTES as u64)? {
            return Ok(None);
        }
        if crc32c::crc32c(&body) != crc {
            return Err(damaged());
        }
        let item = Item::parse(Bytes::from(body)).map_err(|_| damaged())?;
        Ok(Some((item, offset + (PREFIX_BYTES + length) as u64)))
    }

    /// Fills `buffer` from `offset`; `false` when the file is too short.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<bool, SpoolError> {
        match self.file.read_exact_at(buffer, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(SpoolError::io("read", &self.path)(error)),
        }
    }
}
