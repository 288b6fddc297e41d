//! The link's reader of the journal: a thread with the [`Follower`], which blocks on the disk and nobody else does.
//! It tells what is new, and gives log blocks to those who ask for them.
//!
//! Invariants: news come in the journal's order, [`News::Read`] after all that was there at the start; a question
//! for blocks is answered when there are some, or when the attempt has ended and there are no more.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use packrun_protocol::block::Block;
use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::limit;
use packrun_protocol::state::Verdict;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::spool::{Follower, Phase, Record, SpoolError};

/// How many questions wait at most.
const QUESTIONS_MAX: usize = 256;

/// How many news wait at most.
const NEWS_MAX: usize = 256;

/// Bytes of blocks that one answer brings, unless the first is larger.
const ANSWER_BYTES: usize = 256 << 10;

/// How many records are read before questions are looked at again.
const READS_MAX: usize = 256;

/// How long is waited after the disk refused.
const RETRY: Duration = Duration::from_secs(1);

/// What the journal says.
#[derive(Debug)]
pub(super) enum News {
    /// A record that is no block.
    Record(Record),
    /// All that was there when the reader began was told; this is the highest epoch in it.
    Read(Epoch),
}

/// What the reader is asked.
#[derive(Debug)]
enum Question {
    /// The blocks of an attempt from an entry on; none when it has ended before.
    Blocks { attempt: AttemptId, from: u64, answer: oneshot::Sender<Vec<Block>> },
    /// Which entry of an attempt is not acknowledged.
    Acked(AttemptId, oneshot::Sender<u64>),
    /// When everything of an attempt before an entry is acknowledged.
    Safe { attempt: AttemptId, next_seq: u64, answer: oneshot::Sender<()> },
    /// Everything before these entries was acknowledged. Whether all of them can be.
    Ack(Vec<(AttemptId, u64)>, oneshot::Sender<bool>),
}

/// The reader gives no answer: the disk refuses, the attempt was settled, or the agent stops.
#[derive(Debug, thiserror::Error)]
#[error("the journal gives no more of the log")]
pub(super) struct Unread;

/// To ask the reader. When all clones are dropped, it ends.
#[derive(Debug, Clone)]
pub(super) struct Reader(mpsc::Sender<Question>);

impl Reader {
    /// Starts a reader of the journal in `folder`, which looks again whenever `grown` changes.
    pub(super) fn start(
        folder: PathBuf,
        grown: watch::Receiver<u64>,
    ) -> std::io::Result<(Self, mpsc::Receiver<News>)> {
        let (questions, question_queue) = mpsc::channel(QUESTIONS_MAX);
        let (news_queue, news) = mpsc::channel(NEWS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let state = State {
            follower: Follower::new(folder),
            waiting: HashMap::new(),
            acked: HashMap::new(),
            to_be_acked: HashMap::new(),
            news: VecDeque::new(),
            is_behind: true,
            has_begun: false,
        };
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || runtime.block_on(state.run(question_queue, news_queue, grown)))?;
        Ok((Self(questions), news))
    }

    /// The blocks of `attempt` from entry `from` on, as many as there are and go into one answer; waits for the
    /// first. None at all when the attempt has ended before.
    ///
    /// # Errors
    /// When they can't be read, or nobody wants them any more.
    pub(super) async fn blocks(&self, attempt: AttemptId, from: u64) -> Result<Vec<Block>, Unread> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question::Blocks { attempt, from, answer }).await.map_err(|_| Unread)?;
        answered.await.map_err(|_| Unread)
    }

    /// The number of the first entry of `attempt` that is not acknowledged.
    pub(super) async fn acked(&self, attempt: AttemptId) -> u64 {
        let (answer, answered) = oneshot::channel();
        let asked = self.0.send(Question::Acked(attempt, answer)).await;
        if asked.is_ok() { answered.await.unwrap_or(0) } else { 0 }
    }

    /// Waits until every entry of `attempt` before `next_seq` is acknowledged.
    ///
    /// # Errors
    /// When nobody wants to know any more.
    pub(super) async fn safe(&self, attempt: AttemptId, next_seq: u64) -> Result<(), Unread> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question::Safe { attempt, next_seq, answer }).await.map_err(|_| Unread)?;
        answered.await.map_err(|_| Unread)
    }

    /// Blocks with entries before these are wanted no more. `false`, and nothing is forgotten, when one of them
    /// was never read from the journal, and so never sent.
    pub(super) async fn acknowledge(&self, acks: Vec<(AttemptId, u64)>) -> bool {
        let (answer, answered) = oneshot::channel();
        let asked = self.0.send(Question::Ack(acks, answer)).await;
        // Without a reader there is nothing to forget.
        asked.is_err() || answered.await.unwrap_or(true)
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

struct State {
    follower: Follower,
    waiting: HashMap<AttemptId, (u64, oneshot::Sender<Vec<Block>>)>,
    acked: HashMap<AttemptId, u64>,
    to_be_acked: HashMap<AttemptId, (u64, oneshot::Sender<()>)>,
    news: VecDeque<News>,
    /// Whether there may be more to read.
    is_behind: bool,
    has_begun: bool,
}

/// What the loop woke up for.
enum Turn {
    Grown(bool),
    Question(Option<Question>),
}

impl State {
    async fn run(
        mut self,
        mut questions: mpsc::Receiver<Question>,
        news: mpsc::Sender<News>,
        mut grown: watch::Receiver<u64>,
    ) {
        let mut retry_at: Option<Instant> = None;
        loop {
            // What isn't taken is not read, so the queue of news stays short; nor do questions wait for long.
            for _ in 0..READS_MAX {
                if retry_at.is_some() || !self.is_behind || self.news.len() >= NEWS_MAX {
                    break;
                }
                if let Err(error) = self.read() {
                    tracing::error!(error = &error as &dyn std::error::Error, "the journal can't be read");
                    retry_at = Some(Instant::now() + RETRY);
                }
            }
            let reads_on = retry_at.is_none() && self.is_behind && self.news.len() < NEWS_MAX;
            // Nothing is lost when one of these is dropped for another.
            let turn = tokio::select! {
                biased;
                Ok(permit) = news.reserve(), if !self.news.is_empty() => {
                    if let Some(news) = self.news.pop_front() {
                        permit.send(news);
                    }
                    continue;
                }
                question = questions.recv() => Turn::Question(question),
                () = std::future::ready(()), if reads_on => continue,
                () = sleep_until(retry_at), if retry_at.is_some() => {
                    retry_at = None;
                    continue;
                }
                changed = grown.changed(), if !self.is_behind || retry_at.is_some() => Turn::Grown(changed.is_ok()),
            };
            match turn {
                Turn::Grown(true) => self.is_behind = true,
                Turn::Grown(false) | Turn::Question(None) => {
                    // Whoever asks would wait for an answer, and not take the news.
                    drop(questions);
                    return self.finish(&news).await;
                }
                Turn::Question(Some(question)) => self.answer(question),
            }
        }
    }

    /// The writer is gone: tells what it wrote last.
    async fn finish(&mut self, news: &mpsc::Sender<News>) {
        self.is_behind = true;
        while self.is_behind && self.read().is_ok() {}
        for last in self.news.drain(..) {
            if news.send(last).await.is_err() {
                return;
            }
        }
    }

    /// Reads one record.
    fn read(&mut self) -> Result<(), SpoolError> {
        let Some(record) = self.follower.read()? else {
            self.is_behind = false;
            if !std::mem::replace(&mut self.has_begun, true) {
                self.news.push_back(News::Read(self.follower.index().epoch()));
            }
            return Ok(());
        };
        let attempt = record.attempt();
        match record {
            Record::Block(block) => {
                // The usual case: whoever sends the log has all before it and gets it without another look.
                let waits_for_it = |(from, _): &mut (u64, _)| *from == block.first_seq();
                match self.waiting.get_mut(&attempt).is_some_and(waits_for_it) {
                    true => {
                        if let Some((_, answer)) = self.waiting.remove(&attempt) {
                            let _ = answer.send(vec![block]);
                        }
                    }
                    false => self.answer_waiting(attempt),
                }
            }
            Record::Ended { .. } => {
                self.news.push_back(News::Record(record));
                self.answer_waiting(attempt);
            }
            Record::Settled(_) => {
                self.news.push_back(News::Record(record));
                self.acked.remove(&attempt);
                self.waiting.remove(&attempt);
                self.to_be_acked.remove(&attempt);
            }
            record => self.news.push_back(News::Record(record)),
        }
        Ok(())
    }

    fn answer(&mut self, question: Question) {
        match question {
            Question::Blocks { attempt, from, answer } => {
                if self.waiting.len() >= limit::HELD_ATTEMPTS_MAX {
                    self.waiting.retain(|_, (_, answer)| !answer.is_closed());
                }
                self.waiting.insert(attempt, (from, answer));
                self.answer_waiting(attempt);
            }
            Question::Acked(attempt, answer) => {
                let _ = answer.send(self.acked.get(&attempt).copied().unwrap_or(0));
            }
            Question::Safe { attempt, next_seq, answer } => {
                if self.to_be_acked.len() >= limit::HELD_ATTEMPTS_MAX {
                    self.to_be_acked.retain(|_, (_, answer)| !answer.is_closed());
                }
                self.to_be_acked.insert(attempt, (next_seq, answer));
                self.answer_safe(attempt);
            }
            Question::Ack(acks, answer) => {
                let can_be = acks.iter().all(|(attempt, next_seq)| self.may_be_acked(*attempt, *next_seq));
                let _ = answer.send(can_be);
                if !can_be {
                    return;
                }
                for (attempt, next_seq) in acks {
                    self.follower.index_mut().acknowledge(attempt, next_seq);
                    if self.follower.index().life(attempt).is_some() {
                        let acked = self.acked.entry(attempt).or_default();
                        *acked = next_seq.max(*acked);
                    }
                    self.answer_safe(attempt);
                }
            }
        }
    }

    /// Whether the coordinator can have all of an attempt before this entry. Of one that was lost, it may have more
    /// than the journal: a power cut takes the end of that.
    fn may_be_acked(&self, attempt: AttemptId, next_seq: u64) -> bool {
        let Some(life) = self.follower.index().life(attempt) else { return true };
        let is_lost = matches!(&life.phase, Phase::Ended(outcome) if outcome.verdict == Verdict::Lost);
        is_lost || life.is_passed_over || life.next_seq.is_none_or(|known| next_seq <= known)
    }

    /// Answers who waits for acknowledgements of `attempt`, if they have come.
    fn answer_safe(&mut self, attempt: AttemptId) {
        let acked = self.acked.get(&attempt).copied().unwrap_or(0);
        if self.to_be_acked.get(&attempt).is_some_and(|(next_seq, _)| *next_seq <= acked)
            && let Some((_, answer)) = self.to_be_acked.remove(&attempt)
        {
            let _ = answer.send(());
        }
    }

    /// Answers who waits for blocks of `attempt`, if there is something to say.
    fn answer_waiting(&mut self, attempt: AttemptId) {
        let Some((from, _)) = self.waiting.get(&attempt) else { return };
        let blocks = match self.blocks(attempt, *from) {
            Ok(blocks) => blocks,
            Err(error) => {
                tracing::error!(%attempt, error = &error as &dyn std::error::Error, "a log can't be read");
                self.waiting.remove(&attempt);
                return;
            }
        };
        if let Some(blocks) = blocks
            && let Some((_, answer)) = self.waiting.remove(&attempt)
        {
            let _ = answer.send(blocks);
        }
    }

    /// The blocks from `from` on that go into one answer; `None` while there are none yet.
    fn blocks(&mut self, attempt: AttemptId, from: u64) -> Result<Option<Vec<Block>>, SpoolError> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut bytes = 0;
        // One that isn't there is on its way into the journal.
        let Some(life) = self.follower.index().life(attempt) else { return Ok(None) };
        let has_ended = matches!(life.phase, Phase::Ended(_));
        let first = life.blocks.partition_point(|at| at.next_seq <= from);
        // An answer has few blocks: what they are is noted first, since reading needs the follower for itself.
        let places: Vec<_> = life.blocks.range(first..).take(64).copied().collect();
        for at in places {
            let Some(block) = self.follower.block(at)? else { continue };
            bytes += block.as_bytes().len();
            if bytes > ANSWER_BYTES && !blocks.is_empty() {
                break;
            }
            blocks.push(block);
        }
        Ok((!blocks.is_empty() || has_ended).then_some(blocks))
    }
}

#[cfg(test)]
mod tests {
    use packrun_protocol::id::{AttemptNumber, JobRunId};

    use super::*;
    use crate::spool::{Journal, JournalConfig};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn attempt(n: u8) -> AttemptId {
        AttemptId { job_run: JobRunId::from_bytes([n; 16]), number: AttemptNumber::FIRST }
    }

    #[tokio::test]
    async fn questions_are_answered_while_the_journal_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let (_grown, changes) = watch::channel(0);
        let (reader, _news) = Reader::start(folder.path().join("none"), changes).unwrap();
        tokio::time::timeout(PATIENCE, reader.acked(attempt(1))).await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_ends_holds_nobody_up_who_asks() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), JournalConfig::default()).unwrap();
        let assigned = |n| Record::Assigned { attempt: attempt((n % 256) as u8), epoch: Epoch(1) };
        journal.append((0..NEWS_MAX + 50).map(assigned)).unwrap();
        let (grown, changes) = watch::channel(0);
        let (reader, mut news) = Reader::start(folder.path().to_owned(), changes).unwrap();
        drop(grown);
        // Nobody takes the news meanwhile.
        for _ in 0..2 * QUESTIONS_MAX {
            tokio::time::timeout(PATIENCE, reader.acknowledge(Vec::new())).await.unwrap();
        }
        while news.recv().await.is_some() {}
    }
}
