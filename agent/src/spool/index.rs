//! What the records read so far amount to: the attempts that live, how far each is, and where its blocks lie.
//! Pure; the writer builds it when it opens the journal, the reader while it follows.

use std::collections::{BTreeMap, VecDeque};

use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::state::Outcome;

use super::record::{Item, Record, Started};
use super::segment::Position;

/// How far an attempt is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Received, not started.
    Assigned,
    /// Its main process was started.
    Running(Started),
    /// It ended.
    Ended(Outcome),
}

/// Where a block lies in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockAt {
    /// Where its record begins.
    pub position: Position,
    /// The number of its first entry.
    pub first_seq: u64,
    /// The number after its last entry.
    pub next_seq: u64,
}

/// An attempt that is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// The epoch of the coordinator that assigned it.
    pub epoch: Epoch,
    /// How far it is.
    pub phase: Phase,
    /// Its blocks that are not acknowledged, in order and without gaps.
    pub blocks: VecDeque<BlockAt>,
    /// The number after the last entry of its blocks; `None` before the first that the journal still has.
    pub next_seq: Option<u64>,
    /// Whether segments behind its last block were removed unread, perhaps with further ones.
    pub is_passed_over: bool,
}

type Lives = BTreeMap<AttemptId, Life>;

/// All attempts that are not settled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    lives: Lives,
    /// What a checkpoint has said so far, and how many of its records are still to come.
    checkpoint: Option<(Lives, u32)>,
    epoch: Epoch,
}

impl Index {
    /// The attempts, by id.
    pub fn lives(&self) -> impl Iterator<Item = (AttemptId, &Life)> {
        self.lives.iter().map(|(attempt, life)| (*attempt, life))
    }

    /// One attempt.
    #[must_use]
    pub fn life(&self, attempt: AttemptId) -> Option<&Life> {
        self.lives.get(&attempt)
    }

    /// The highest epoch of a coordinator that assigned anything.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Forgets the blocks of `attempt` whose entries are all before `next_seq`.
    pub fn acknowledge(&mut self, attempt: AttemptId, next_seq: u64) {
        if let Some(life) = self.lives.get_mut(&attempt) {
            while life.blocks.front().is_some_and(|block| block.next_seq <= next_seq) {
                life.blocks.pop_front();
            }
        }
    }

    /// Segments were removed before they were read: all blocks in them are acknowledged, so none is missed, whichever
    /// comes next.
    pub(super) fn pass_over_segments(&mut self) {
        for life in self.lives.values_mut() {
            // Where nothing was read yet, any block may come next as it is.
            life.is_passed_over = life.next_seq.is_some();
        }
    }

    /// Gives up a checkpoint that ends too early: its segment counts for nothing.
    pub(super) fn abandon_checkpoint(&mut self) {
        self.checkpoint = None;
    }

    /// Takes in the item at `position`, and adds what it changes to `news`. A checkpoint is news where it differs
    /// from what was known: the segment before it may have been removed unread.
    pub(super) fn apply(&mut self, position: Position, item: Item, news: &mut VecDeque<Record>) {
        match item {
            Item::Checkpoint { records } => self.checkpoint = Some((Lives::new(), records)),
            Item::Record(record) => match &mut self.checkpoint {
                Some((lives, records)) => {
                    apply_to(lives, position, &record);
                    *records = records.saturating_sub(1);
                }
                None => {
                    if let Record::Assigned { epoch, .. } = record {
                        self.epoch = self.epoch.max(epoch);
                    }
                    apply_to(&mut self.lives, position, &record);
                    news.push_back(record);
                }
            },
        }
        if let Some((lives, 0)) = self.checkpoint.take_if(|(_, records)| *records == 0) {
            self.replace(lives, news);
        }
    }

    fn replace(&mut self, mut lives: Lives, news: &mut VecDeque<Record>) {
        for (&attempt, life) in &mut lives {
            self.epoch = self.epoch.max(life.epoch);
            let before = self.lives.remove(&attempt);
            if before.is_none() {
                news.push_back(Record::Assigned { attempt, epoch: life.epoch });
            }
            let phase_before = before.as_ref().map_or(&Phase::Assigned, |before| &before.phase);
            match &life.phase {
                phase if phase == phase_before => {}
                Phase::Assigned => {}
                Phase::Running(started) => news.push_back(Record::Started(*started)),
                Phase::Ended(outcome) => news.push_back(Record::Ended { attempt, outcome: outcome.clone() }),
            }
            if let Some(before) = before {
                (life.blocks, life.next_seq) = (before.blocks, before.next_seq);
                life.is_passed_over = before.is_passed_over;
            }
        }
        news.extend(self.lives.keys().copied().map(Record::Settled));
        self.lives = lives;
    }
}

fn apply_to(lives: &mut Lives, position: Position, record: &Record) {
    match record {
        Record::Assigned { attempt, epoch } => {
            let (blocks, next_seq) = (VecDeque::new(), None);
            let (epoch, phase, is_passed_over) = (*epoch, Phase::Assigned, false);
            lives.insert(*attempt, Life { epoch, phase, blocks, next_seq, is_passed_over });
        }
        Record::Started(started) => {
            if let Some(life) = lives.get_mut(&started.attempt) {
                life.phase = Phase::Running(*started);
            }
        }
        Record::Block(block) => {
            let (first_seq, next_seq) = (block.first_seq(), block.next_seq());
            let Some(life) = lives.get_mut(&block.attempt()) else { return };
            let follows = life.next_seq.is_none_or(|expected| expected == first_seq);
            let passes_over =
                life.is_passed_over && life.next_seq.is_some_and(|expected| expected < first_seq);
            if passes_over {
                // What is missing was acknowledged, and so was all before it.
                life.blocks.clear();
            }
            // Behind any other gap, which only a power cut leaves, nothing of the attempt counts.
            if follows || passes_over {
                life.is_passed_over = false;
                life.blocks.push_back(BlockAt { position, first_seq, next_seq });
                life.next_seq = Some(next_seq);
            }
        }
        Record::Ended { attempt, outcome } => {
            if let Some(life) = lives.get_mut(attempt) {
                life.phase = Phase::Ended(outcome.clone());
            }
        }
        Record::Settled(attempt) => {
            lives.remove(attempt);
        }
    }
}
