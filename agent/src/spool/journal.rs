//! The writer of the journal, of which there is one.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use packrun_protocol::id::{AttemptId, Epoch};

use super::follow::Follower;
use super::index::{Life, Phase};
use super::record::{Item, Record};
use super::segment::{self, MAGIC, SpoolError};

/// How large the journal may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalConfig {
    /// Bytes after which a segment is closed and the next one begun.
    pub segment_bytes: u64,
    /// Bytes of all segments over which the journal counts as full.
    pub total_bytes: u64,
}

impl Default for JournalConfig {
    /// Segments of 16 MiB, 4 GiB in all.
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, total_bytes: 4 << 30 }
    }
}

/// What a segment is called while it is begun.
const DRAFT: &str = "draft";

/// The journal, open for writing.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    config: JournalConfig,
    file: File,
    pub(super) number: u64,
    bytes: u64,
    sealed_bytes: u64,
    lives: BTreeMap<AttemptId, Written>,
    sealed: BTreeMap<u64, Sealed>,
    /// Sealed segments that nobody keeps, to be removed.
    unkept: Vec<u64>,
    buffer: Vec<u8>,
}

/// An attempt that is not settled: its latest phase, and which segments its blocks keep.
#[derive(Debug)]
struct Written {
    epoch: Epoch,
    phase: Phase,
    /// Per segment with blocks of it the number after its last entry there, ascending.
    kept: VecDeque<(u64, u64)>,
}

/// A segment that is not written to any more.
#[derive(Debug)]
struct Sealed {
    bytes: u64,
    /// How many attempts have unacknowledged blocks in it.
    keepers: usize,
}

impl Journal {
    /// Opens the journal in `folder`, which is made if it isn't there, and begins a segment of its own. What was
    /// there before goes on to be read and acknowledged; the attempts in it are in [`Journal::lives`].
    ///
    /// # Errors
    /// When the folder or a file in it can't be read or written, or is damaged.
    pub fn open(folder: &Path, config: JournalConfig) -> Result<Self, SpoolError> {
        let mut maker = DirBuilder::new();
        maker.recursive(true).mode(0o700).create(folder).map_err(SpoolError::io("create", folder))?;
        let mut follower = Follower::new(folder.to_owned());
        loop {
            match follower.read() {
                Ok(Some(_)) => {}
                // A power cut damaged what was written last. What it took with it was not acknowledged.
                Ok(None) | Err(SpoolError::Damaged { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        follower.index_mut().abandon_checkpoint();
        let mut sealed = BTreeMap::new();
        let mut sealed_bytes = 0;
        for number in segment::numbers(folder)? {
            let path = segment::path(folder, number);
            let bytes = fs::metadata(&path).map_err(SpoolError::io("read", &path))?.len();
            sealed.insert(number, Sealed { bytes, keepers: 0 });
            sealed_bytes += bytes;
        }
        let number = sealed.last_key_value().map_or(1, |(last, _)| last + 1);
        let lives = follower.index().lives().map(|(attempt, life)| (attempt, Written::of(life))).collect();
        let (file, bytes) = begin_segment(folder, number, &lives)?;
        let mut journal = Self {
            folder: folder.to_owned(),
            config,
            file,
            number,
            bytes,
            sealed_bytes,
            lives,
            sealed,
            unkept: Vec::new(),
            buffer: Vec::new(),
        };
        for life in journal.lives.values() {
            for (segment, _) in &life.kept {
                if let Some(sealed) = journal.sealed.get_mut(segment) {
                    sealed.keepers += 1;
                }
            }
        }
        let unkept = journal.sealed.iter().filter(|(_, sealed)| sealed.keepers == 0);
        journal.unkept = unkept.map(|(number, _)| *number).collect();
        journal.remove_unkept()?;
        Ok(journal)
    }

    /// The attempts that are not settled, and their latest phases.
    pub fn lives(&self) -> impl Iterator<Item = (AttemptId, &Phase)> {
        self.lives.iter().map(|(attempt, life)| (*attempt, &life.phase))
    }

    /// Whether `attempt` is in it and not settled.
    #[must_use]
    pub fn holds(&self, attempt: AttemptId) -> bool {
        self.lives.contains_key(&attempt)
    }

    /// Appends records, all in one write. A reader sees them as soon as this returns.
    ///
    /// # Errors
    /// When the disk refuses. The records before the one that did not fit are written; the journal can be used on.
    pub fn append(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), SpoolError> {
        self.buffer.clear();
        let records: Vec<_> = records.into_iter().collect();
        let mut ends = Vec::with_capacity(records.len());
        for record in &records {
            record.write(&mut self.buffer)?;
            ends.push(self.buffer.len());
        }
        let (whole, result) = self.write_out(&ends);
        records.iter().take(whole).for_each(|record| self.note(record));
        result?;
        if self.bytes >= self.config.segment_bytes
            && let Err(error) = self.roll()
        {
            // What was appended is written. The next append tries again.
            tracing::warn!(%error, "a journal's segment grows over its size");
        }
        if let Err(error) = self.remove_unkept() {
            // The next append tries again here, too.
            tracing::warn!(%error, "a part of the journal that is of no use any more stays");
        }
        Ok(())
    }

    /// Frees the blocks of `attempt` whose entries are all before `next_seq`.
    ///
    /// # Errors
    /// When a segment that became free can't be removed.
    pub fn acknowledge(&mut self, attempt: AttemptId, next_seq: u64) -> Result<(), SpoolError> {
        let Some(life) = self.lives.get_mut(&attempt) else { return Ok(()) };
        while let Some((segment, last)) = life.kept.front().copied()
            && last <= next_seq
        {
            life.kept.pop_front();
            if let Some(sealed) = self.sealed.get_mut(&segment) {
                sealed.release(segment, &mut self.unkept);
            }
        }
        self.remove_unkept()
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes + self.sealed_bytes
    }

    /// Whether no more blocks should be appended until some are acknowledged. Other records are always taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.config.total_bytes
    }

    /// Writes to another file from now on, as to a full disk; gives back the one before.
    #[cfg(test)]
    pub(crate) fn swap_file(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }

    /// What the record changes here.
    fn note(&mut self, record: &Record) {
        match record {
            Record::Assigned { attempt, epoch } => {
                let fresh = Written { epoch: *epoch, phase: Phase::Assigned, kept: VecDeque::new() };
                self.lives.insert(*attempt, fresh);
            }
            Record::Started(started) => {
                if let Some(life) = self.lives.get_mut(&started.attempt) {
                    life.phase = Phase::Running(*started);
                }
            }
            Record::Block(block) => {
                if let Some(life) = self.lives.get_mut(&block.attempt()) {
                    match life.kept.back_mut() {
                        Some((segment, last)) if *segment == self.number => *last = block.next_seq(),
                        _ => life.kept.push_back((self.number, block.next_seq())),
                    }
                }
            }
            Record::Ended { attempt, outcome } => {
                if let Some(life) = self.lives.get_mut(attempt) {
                    life.phase = Phase::Ended(outcome.clone());
                }
            }
            Record::Settled(attempt) => {
                for (segment, _) in self.lives.remove(attempt).into_iter().flat_map(|life| life.kept) {
                    if let Some(sealed) = self.sealed.get_mut(&segment) {
                        sealed.release(segment, &mut self.unkept);
                    }
                }
            }
        }
    }

    /// Goes on in a new segment, or stays as it is.
    fn roll(&mut self) -> Result<(), SpoolError> {
        let number = self.number + 1;
        let (file, bytes) = begin_segment(&self.folder, number, &self.lives)?;
        let in_it = |life: &&Written| life.kept.back().is_some_and(|(segment, _)| *segment == self.number);
        let keepers = self.lives.values().filter(in_it).count();
        self.sealed.insert(self.number, Sealed { bytes: self.bytes, keepers });
        self.sealed_bytes += self.bytes;
        if keepers == 0 {
            self.unkept.push(self.number);
        }
        (self.number, self.file, self.bytes) = (number, file, bytes);
        Ok(())
    }

    /// Writes the buffer, in which records end at `ends`. Of what doesn't fit only whole records stay in the file;
    /// returns how many those are.
    fn write_out(&mut self, ends: &[usize]) -> (usize, Result<(), SpoolError>) {
        let mut written = 0;
        let mut result = Ok(());
        while written < self.buffer.len() && result.is_ok() {
            match self.file.write(&self.buffer[written..]) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => result = Err(error),
            }
        }
        let whole = ends.partition_point(|end| *end <= written);
        let kept = ends[..whole].last().copied().unwrap_or(0);
        self.bytes += kept as u64;
        if kept < written {
            result = self.file.set_len(self.bytes).and(result);
        }
        (whole, result.map_err(SpoolError::io("write", &segment::path(&self.folder, self.number))))
    }

    fn remove_unkept(&mut self) -> Result<(), SpoolError> {
        while let Some(number) = self.unkept.last() {
            let path = segment::path(&self.folder, *number);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SpoolError::io("remove", &path)(error));
                }
                _ => {}
            }
            self.sealed_bytes -= self.sealed.remove(number).map_or(0, |sealed| sealed.bytes);
            self.unkept.pop();
        }
        Ok(())
    }
}

/// The header and the latest phase of every attempt. They get the segment's name when they are whole, so nobody
/// ever finds less.
fn begin_segment(
    folder: &Path,
    number: u64,
    lives: &BTreeMap<AttemptId, Written>,
) -> Result<(File, u64), SpoolError> {
    let mut records = Vec::new();
    for (&attempt, life) in lives {
        records.push(Record::Assigned { attempt, epoch: life.epoch });
        match &life.phase {
            Phase::Assigned => {}
            Phase::Running(started) => records.push(Record::Started(*started)),
            Phase::Ended(outcome) => records.push(Record::Ended { attempt, outcome: outcome.clone() }),
        }
    }
    let mut buffer = MAGIC.to_vec();
    Item::write_checkpoint(records.len() as u32, &mut buffer)?;
    for record in records {
        record.write(&mut buffer)?;
    }
    let (draft, path) = (folder.join(DRAFT), segment::path(folder, number));
    // A draft that a crash or a full disk left is of no use.
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(SpoolError::io("create", &draft))?;
    file.write_all(&buffer).map_err(SpoolError::io("write", &draft))?;
    fs::rename(&draft, &path).map_err(SpoolError::io("create", &path))?;
    Ok((file, buffer.len() as u64))
}

impl Sealed {
    /// One attempt less keeps this segment.
    fn release(&mut self, number: u64, unkept: &mut Vec<u64>) {
        self.keepers -= 1;
        if self.keepers == 0 {
            unkept.push(number);
        }
    }
}

impl Written {
    fn of(life: &Life) -> Self {
        let mut kept: VecDeque<(u64, u64)> = VecDeque::new();
        for block in &life.blocks {
            match kept.back_mut() {
                Some((segment, last)) if *segment == block.position.segment => *last = block.next_seq,
                _ => kept.push_back((block.position.segment, block.next_seq)),
            }
        }
        Self { epoch: life.epoch, phase: life.phase.clone(), kept }
    }
}
