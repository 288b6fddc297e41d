//! The reader of the journal: it follows the files as they grow and knows nothing of the writer. Whoever writes
//! says by other means when there is more; asking too often or too late does no harm.

use std::collections::VecDeque;
use std::path::PathBuf;

use packrun_protocol::block::Block;

use super::index::{BlockAt, Index};
use super::record::{Item, Record};
use super::segment::Position;
use super::segment::{self, MAGIC, Segment, SpoolError};

/// A reader that has seen the journal up to some place.
#[derive(Debug)]
pub struct Follower {
    folder: PathBuf,
    place: Option<Place>,
    opened: Option<Segment>,
    index: Index,
    news: VecDeque<Record>,
}

/// How far the reader is.
#[derive(Debug)]
struct Place {
    segment: Segment,
    offset: u64,
    /// Whether a later segment was seen: the writer adds nothing to this one any more.
    is_closed: bool,
}

impl Follower {
    /// A reader at the start of the journal in `folder`.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, place: None, opened: None, index: Index::default(), news: VecDeque::new() }
    }

    /// What has been read so far amounts to.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What has been read so far amounts to, to acknowledge blocks in.
    pub fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// The next news, taken into the index; `None` when there are no more for now.
    ///
    /// # Errors
    /// When a file can't be read, or what was written last is damaged.
    pub fn read(&mut self) -> Result<Option<Record>, SpoolError> {
        loop {
            if let Some(record) = self.news.pop_front() {
                return Ok(Some(record));
            }
            let Some(place) = &mut self.place else {
                if self.open_after(None)? { continue } else { return Ok(None) }
            };
            let position = Position { segment: place.segment.number(), offset: place.offset };
            match place.segment.item(place.offset) {
                Ok(Some((item, next))) => {
                    place.offset = next;
                    self.index.apply(position, item, &mut self.news);
                }
                end if !place.is_closed => {
                    let numbers = segment::numbers(&self.folder)?;
                    place.is_closed = numbers.last().is_some_and(|last| *last > position.segment);
                    // Between the look at the end and the look for a successor, more may have been written.
                    if !place.is_closed {
                        return end.map(|_| None);
                    }
                }
                end => {
                    if let Err(error) = end {
                        tracing::warn!(%error, "the rest of a journal's segment is skipped");
                    }
                    if !self.open_after(Some(position.segment))? {
                        return Ok(None);
                    }
                    self.index.abandon_checkpoint();
                }
            }
        }
    }

    /// The block at `at`; `None` when its segment was removed, since it was acknowledged.
    ///
    /// # Errors
    /// When the file can't be read, or is damaged there.
    pub fn block(&mut self, at: BlockAt) -> Result<Option<Block>, SpoolError> {
        if self.opened.as_ref().is_none_or(|segment| segment.number() != at.position.segment) {
            self.opened = Segment::open(&self.folder, at.position.segment)?;
        }
        let Some(segment) = &self.opened else { return Ok(None) };
        match segment.item(at.position.offset)? {
            Some((Item::Record(Record::Block(block)), _)) => Ok(Some(block)),
            _ => {
                let path = segment::path(&self.folder, at.position.segment);
                Err(SpoolError::Damaged { path, offset: at.position.offset })
            }
        }
    }

    /// Goes to the first segment after `number` that has its header; `false` when there is none.
    fn open_after(&mut self, number: Option<u64>) -> Result<bool, SpoolError> {
        for next in segment::numbers(&self.folder)? {
            if number.is_some_and(|number| next <= number) {
                continue;
            }
            if let Some(segment) = Segment::open(&self.folder, next)?
                && segment.check_header()?
            {
                if number.is_some_and(|number| next != number + 1) {
                    self.index.pass_over_segments();
                }
                self.place = Some(Place { segment, offset: MAGIC.len() as u64, is_closed: false });
                return Ok(true);
            }
        }
        Ok(false)
    }
}
