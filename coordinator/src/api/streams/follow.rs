//! Follows a pack run: what the log store and the engine have goes through the merge and becomes events. All is
//! read when the client wants more, so one who is slow holds up nobody and costs a block.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use packrun_protocol::id::{AttemptId, Epoch, PackRunId};
use packrun_protocol::state::{JobRunState, PackRunState};
use packrun_protocol::time::Timestamp;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cursor::event_id;
use super::event::{ALIVE, ChangeEvent, KEEP_ALIVE, put};
use super::feed::{Change, Feed, Kind, Place, Step};
use super::names::{AgentNames, Names};
use super::source::{Source, log_end};
use crate::api::problem::ApiError;
use crate::api::types::EndEvent;
use crate::api::{Api, App};
use crate::core::change::{FeedEntry, FeedRow};
use crate::engine::{FeedBatch, Reader};
use crate::logs::StoredBlock;

/// Changes that are read at a time.
const CHANGES_READ: usize = 256;

/// Changes that are collected for one write, in bytes of events.
const WRITE_BYTES: usize = 64 << 10;

/// What there is to follow.
#[derive(Debug)]
pub(super) enum Opened {
    /// The client has seen the end.
    Ended,
    /// The stream.
    Follower(Box<Follower>),
}

/// A pack run's stream.
#[derive(Debug)]
pub(super) struct Follower {
    app: App,
    run: PackRunId,
    epoch: Epoch,
    names: Arc<Names>,
    agents: AgentNames,
    news: broadcast::Receiver<Arc<FeedBatch>>,
    /// Something of the run may have been committed since its changes were read.
    is_new: bool,
    feeds: watch::Receiver<()>,
    source: Source,
    feed: Feed<FeedRow, StoredBlock>,
    /// Entries from before it are left out.
    since: Option<Timestamp>,
    /// How the run ended, once its last change was sent.
    end: Option<EndEvent>,
    /// Events that were not yet handed out.
    out: Vec<u8>,
    is_over: bool,
}

/// What the store has of a run.
struct Seen {
    end: Option<EndEvent>,
    next_change: u64,
}

impl Follower {
    /// Follows `run` from `place` on, without entries from before `since`.
    ///
    /// # Errors
    /// When there is no such run, or the store can't be read.
    pub(super) async fn open(
        api: &Api,
        run: PackRunId,
        place: Place,
        since: Option<Timestamp>,
    ) -> Result<Opened, ApiError> {
        let app = api.app.clone();
        // What is committed from here on is told.
        let (news, feeds) = (app.engine.follow(), app.logs.feeds());
        let epoch = app.engine.look(|core| core.epoch()).await?;
        let names = Names::find(api, run).await?;
        let Seen { mut end, next_change } = app.read(move |reader| see(reader, run)).await?;
        let mut out = Vec::new();
        let mut place = place;
        if end.is_some() && place.change == next_change.saturating_add(1) {
            return Ok(Opened::Ended);
        }
        let mut source = Source::open(&app, run, place).await?;
        if source.is_err() || place.change > next_change {
            place = Place::default();
            put(&mut out, "reset", Some(&event_id(epoch, place)), &serde_json::json!({}));
            source = Source::open(&app, run, place).await?;
        }
        let source = source.map_err(|beyond| ApiError::internal(&beyond))?;
        let is_over = place.change == next_change && end.is_some();
        if !is_over {
            end = None;
        }
        Ok(Opened::Follower(Box::new(Self {
            app,
            run,
            epoch,
            names,
            agents: AgentNames::default(),
            news,
            is_new: true,
            feeds,
            source,
            feed: Feed::new(place, is_over),
            since,
            end,
            out,
            is_over: false,
        })))
    }

    /// The next events; `None` at the end, and when the coordinator stops.
    ///
    /// # Errors
    /// When the store or the log can't be read.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        while !self.is_over && !self.app.stop.is_cancelled() {
            match self.feed.step() {
                Step::Block(from, block) => self.put_block(from, &block),
                Step::Change(place, row) => self.put_change(place, row).await?,
                Step::End => self.put_end(),
                Step::FindLogEnd(attempt) => self.feed.log_end(log_end(&self.app, attempt).await?),
                Step::FindStart { attempt, ended, from } => {
                    let found = self.find_start(attempt, ended, from).await?;
                    self.feed.start_found(attempt, found);
                }
                Step::ReadChanges { from } => self.read_changes(from).await?,
                Step::ReadLog => {
                    if matches!(self.source, Source::None) {
                        self.look_for_log().await?;
                    }
                    let log = self.source.next().await.map_err(|error| ApiError::internal(&error))?;
                    self.feed.log(log);
                }
                Step::Wait { sealed } => {
                    if self.out.is_empty() && !self.wait(sealed).await {
                        break;
                    }
                    if !self.out.is_empty() {
                        break;
                    }
                }
            }
            if self.out.len() >= WRITE_BYTES {
                break;
            }
        }
        let out = std::mem::take(&mut self.out);
        Ok((!out.is_empty()).then(|| out.into()))
    }

    fn put_block(&mut self, from: Place, block: &StoredBlock) {
        let (attempt, behind) = (block.block.attempt(), block.block.next_seq());
        for (entry, at) in block.entries().zip(from.entry..) {
            if self.since.is_some_and(|since| entry.time < since) {
                continue;
            }
            let last = entry.seq.saturating_add(1) >= behind;
            let place = if last { self.feed.place() } else { Place { entry: at.saturating_add(1), ..from } };
            if let Some(entry) = self.names.entry(attempt, &entry) {
                put(&mut self.out, "log", Some(&event_id(self.epoch, place)), &entry);
            }
        }
    }

    async fn put_change(&mut self, place: Place, row: FeedRow) -> Result<(), ApiError> {
        if let FeedEntry::PackRun(state) = row.entry
            && state.is_terminal()
        {
            self.end = Some(EndEvent { state, time: row.at });
        }
        let event = ChangeEvent::of(row, &mut self.agents, &self.app).await?;
        put(&mut self.out, event.name(), Some(&event_id(self.epoch, place)), &event);
        Ok(())
    }

    fn put_end(&mut self) {
        let place = self.feed.place();
        let behind = Place { change: place.change.saturating_add(1), ..place };
        if let Some(end) = self.end.take() {
            put(&mut self.out, "end", Some(&event_id(self.epoch, behind)), &end);
        }
        self.is_over = true;
    }

    /// The log store is asked again; the run may have been opened, and even closed, meanwhile.
    async fn look_for_log(&mut self) -> Result<(), ApiError> {
        self.feeds.mark_unchanged();
        if let Ok(source) = Source::open(&self.app, self.run, self.feed.place()).await? {
            self.source = source;
        }
        Ok(())
    }

    async fn read_changes(&mut self, from: u64) -> Result<(), ApiError> {
        self.hear();
        if !self.is_new {
            self.feed.changes([], true);
            return Ok(());
        }
        let run = self.run;
        let rows = self.app.read(move |reader| Ok(reader.feed(run, from, CHANGES_READ)?)).await?;
        let all = rows.len() < CHANGES_READ;
        self.is_new = !all;
        let changes = rows.into_iter().map(|row| Change {
            number: row.number,
            kind: kind(&self.names, &row.entry),
            body: row,
        });
        self.feed.changes(changes, all);
        Ok(())
    }

    /// Takes the news that have come: rows are told before anything that rests on them is done.
    fn hear(&mut self) {
        loop {
            match self.news.try_recv() {
                Ok(batch) => self.is_new |= concerns(&batch, self.run),
                Err(TryRecvError::Lagged(_)) => self.is_new = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    async fn find_start(&self, attempt: AttemptId, ended: AttemptId, from: u64) -> Result<bool, ApiError> {
        let (run, job_run) = (self.run, attempt.job_run);
        let Some(key) = self.names.key(job_run).cloned() else { return Ok(false) };
        let is_start = move |entry: &FeedEntry| {
            matches!(entry, FeedEntry::JobRun { key: found, state: JobRunState::Running, attempt: Some(number), .. }
                if *found == key && *number == attempt.number)
        };
        self.app
            .read(move |reader| {
                if reader.attempt(ended)?.is_some_and(|row| row.outcome.is_some()) {
                    return Ok(false);
                }
                let mut from = from;
                loop {
                    let rows = reader.feed(run, from, CHANGES_READ)?;
                    if rows.iter().any(|row| is_start(&row.entry)) {
                        return Ok(true);
                    }
                    let Some(last) = rows.last() else { return Ok(false) };
                    from = last.number.saturating_add(1);
                }
            })
            .await
    }

    /// Waits for something to happen; `false` when nothing more will.
    async fn wait(&mut self, sealed: Option<AttemptId>) -> bool {
        let silent = Instant::now() + KEEP_ALIVE;
        let progress = sealed.and_then(|attempt| self.app.logs.progress(attempt));
        let mut is_sealed = pin!(async move {
            match progress {
                // A sender that is gone has sealed it.
                Some(mut progress) => drop(progress.wait_for(|progress| progress.sealed).await),
                None => std::future::pending().await,
            }
        });
        loop {
            tokio::select! {
                () = self.app.stop.cancelled() => return false,
                () = self.source.grown(&mut self.feeds) => break,
                () = &mut is_sealed => break,
                () = tokio::time::sleep_until(silent) => {
                    self.out.extend_from_slice(&ALIVE);
                    break;
                }
                told = self.news.recv() => match told {
                    Ok(batch) if !concerns(&batch, self.run) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        self.is_new = true;
                        break;
                    }
                    Err(RecvError::Closed) => return false,
                },
            }
        }
        self.feed.wake();
        true
    }
}

/// What the store has of `run`.
fn see(reader: &Reader, run: PackRunId) -> Result<Seen, ApiError> {
    let progress = reader.progress(run)?.filter(|progress| progress.state.is_terminal());
    let end = progress.map(|progress| EndEvent { state: progress.state, time: progress.since });
    Ok(Seen { end, next_change: reader.feed_next(run)? })
}

fn concerns(batch: &FeedBatch, run: PackRunId) -> bool {
    batch.iter().any(|row| row.pack_run == run)
}

fn kind(names: &Names, entry: &FeedEntry) -> Kind {
    let FeedEntry::JobRun { key, state, attempt: Some(number), .. } = entry else {
        let over = matches!(entry, FeedEntry::PackRun(state) if PackRunState::is_terminal(*state));
        return if over { Kind::Last } else { Kind::Other };
    };
    let Some(job_run) = names.id(key) else { return Kind::Other };
    let attempt = AttemptId { job_run, number: *number };
    match state {
        JobRunState::Running => Kind::Start(attempt),
        JobRunState::Queued => Kind::End(attempt),
        state if state.is_terminal() => Kind::End(attempt),
        _ => Kind::Other,
    }
}
