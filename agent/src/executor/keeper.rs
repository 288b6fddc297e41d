//! The keeper: a thread that owns the journal's writer and the executor. It writes down what it is ordered and
//! what happens, and passes on what the link has to do for an attempt.
//!
//! Invariants:
//! - An assignment is in the journal before its attempt starts, and an end before anybody hears of it.
//! - While the journal is full or can't be written, nothing is taken from the executor: jobs wait in their pipes.
//!   Orders are carried out all the same. After [`PATIENCE`] of failed writes the attempts whose records wait fail.
//! - What the journal holds as unfinished at the start was lost with the process that executed it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use packrun_protocol::control::{ApiUrl, Assignment};
use packrun_protocol::id::AttemptId;
use packrun_protocol::name::Name;
use packrun_protocol::state::Verdict;
use packrun_protocol::time::Clock;
use thiserror::Error;
use tokio::sync::mpsc;

use self::kept::{Kept, ended};
use self::lost::give_up_lost;
use self::write::Unwritten;
use super::ipc::{self, Desk, Order, Port, Request};
use super::{Command, Event, Executor, Isolation, Settings, StartError, StartOrder};
use crate::spool::{Journal, JournalConfig, Record, SpoolError};

mod kept;
mod lost;
#[cfg(test)]
mod tests;
mod write;

/// How long writes may fail before the attempts that wait for them do.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long is waited between two tries to write.
const RETRY: Duration = Duration::from_millis(500);

/// How many orders or events are written in one go.
const BATCH: usize = 64;

/// Why there is no keeper.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The executor can't start.
    #[error(transparent)]
    Executor(#[from] StartError),
    /// The journal can't be opened.
    #[error("failed to open the journal")]
    Journal(#[from] SpoolError),
    /// The host gives no thread.
    #[error("failed to start the keeper's thread: {0}")]
    Thread(std::io::Error),
}

/// A running keeper. It ends when the orders' senders are dropped, or the executor is gone, after the ends of all
/// attempts are written.
#[derive(Debug)]
pub struct Keeper {
    /// To be joined.
    pub thread: JoinHandle<()>,
    /// What the executor can do here.
    pub isolation: Isolation,
}

/// Opens the journal in `folder`, starts an executor, and a thread that keeps both.
///
/// # Errors
/// When the journal can't be opened or the executor not started.
pub fn start(
    folder: &Path,
    config: JournalConfig,
    settings: Settings,
    clock: Clock,
) -> Result<(Keeper, Port), KeeperError> {
    let mut journal = Journal::open(folder, config)?;
    give_up_lost(&mut journal, folder, clock.now())?;
    let Executor { commands, events, isolation } = super::start(settings, clock)?;
    let (port, Desk { orders, requests, grown }) = ipc::pair();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(KeeperError::Thread)?;
    let state = State {
        journal,
        clock,
        commands: Some(commands),
        attempts: HashMap::new(),
        requests,
        outbox: VecDeque::new(),
        grown,
        unwritten: None,
        unsettled: BTreeSet::new(),
        is_stopping: false,
    };
    let thread = thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || runtime.block_on(state.run(orders, events)))
        .map_err(KeeperError::Thread)?;
    Ok((Keeper { thread, isolation }, port))
}

struct State {
    journal: Journal,
    clock: Clock,
    /// `None` once the executor is to end, or has.
    commands: Option<mpsc::Sender<Command>>,
    /// What the executor has, or had and has not reported the end of.
    attempts: HashMap<AttemptId, Kept>,
    requests: mpsc::Sender<Request>,
    outbox: VecDeque<Request>,
    grown: tokio::sync::watch::Sender<u64>,
    unwritten: Option<Unwritten>,
    /// Settled, and the journal doesn't say so yet.
    unsettled: BTreeSet<AttemptId>,
    is_stopping: bool,
}

/// What the loop woke up for.
enum Turn {
    Ordered(usize),
    Happened(usize),
    Retry,
}

impl State {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, mut events: mpsc::Receiver<Event>) {
        let (mut ordered, mut happened) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let (mut is_ordered, mut is_alive) = (true, true);
        while is_ordered || is_alive {
            let takes_events =
                is_alive && self.unwritten.is_none() && (!self.journal.is_full() || !is_ordered);
            let retry_at =
                self.unwritten.as_ref().map(|unwritten| self.clock.instant(unwritten.retry_at).into());
            // Nothing is lost when one of these is dropped for another.
            let turn = tokio::select! {
                biased;
                count = orders.recv_many(&mut ordered, BATCH), if is_ordered => Turn::Ordered(count),
                Ok(permit) = self.requests.reserve(), if !self.outbox.is_empty() => {
                    if let Some(request) = self.outbox.pop_front() {
                        permit.send(request);
                    }
                    continue;
                }
                () = sleep_until(retry_at), if retry_at.is_some() => Turn::Retry,
                count = events.recv_many(&mut happened, BATCH), if takes_events => Turn::Happened(count),
            };
            match turn {
                Turn::Ordered(0) => {
                    is_ordered = false;
                    self.commands = None;
                }
                Turn::Ordered(_) => self.carry_out(&mut ordered).await,
                Turn::Happened(0) => {
                    self.executor_gone(is_ordered);
                    // Nobody is to think that anything is carried out any more.
                    (is_ordered, is_alive) = (false, false);
                }
                Turn::Happened(_) => self.take_down(&mut happened),
                Turn::Retry => self.write_again().await,
            }
        }
    }

    /// Writes down what has to be before it is done, then does it.
    async fn carry_out(&mut self, orders: &mut Vec<Order>) {
        let (mut assigned, mut settled) = (BTreeMap::new(), Vec::new());
        for order in orders.iter() {
            match order {
                Order::Start { epoch, assignment, .. }
                    if !self.attempts.contains_key(&assignment.attempt) =>
                {
                    assigned.insert(assignment.attempt, *epoch);
                }
                Order::Forget(attempts) => settled.extend(attempts),
                _ => {}
            }
        }
        let refusals = self.assign(assigned);
        self.settle(settled);
        for order in orders.drain(..) {
            match order {
                Order::Start { assignment, .. } if self.attempts.contains_key(&assignment.attempt) => {}
                Order::Start { agent, api, assignment, .. } => match refusals.get(&assignment.attempt) {
                    Some(reason) => self.fail(assignment.attempt, reason, 0),
                    None => self.start(agent, api, assignment).await,
                },
                Order::Cancel { attempt, reason } => {
                    if let Some(kept) = self.attempts.get_mut(&attempt) {
                        kept.canceled = Some(reason);
                        self.command(Command::Cancel(attempt)).await;
                    }
                }
                Order::Forget(attempts) => {
                    for attempt in attempts {
                        self.outbox.retain(|request| request.attempt() != attempt);
                        if let Some(kept) = self.attempts.get_mut(&attempt) {
                            kept.is_forgotten = true;
                            self.command(Command::Kill(attempt)).await;
                        }
                    }
                }
                Order::LogAck(acks) => {
                    for (attempt, next_seq) in acks {
                        if let Err(error) = self.journal.acknowledge(attempt, next_seq) {
                            tracing::warn!(%error, "a part of the journal that is of no use any more stays");
                        }
                    }
                }
                Order::Prepared(attempt, result) => self.command(Command::Prepared(attempt, result)).await,
                Order::Collected { attempt, result, notes } => {
                    self.remark(attempt, &notes);
                    self.command(Command::Collected(attempt, result)).await;
                }
                Order::StopAll => {
                    self.is_stopping = true;
                    for attempt in self.attempts.keys().copied().collect::<Vec<_>>() {
                        self.command(Command::Kill(attempt)).await;
                    }
                }
            }
        }
    }

    async fn start(&mut self, agent: Name, api: ApiUrl, assignment: Assignment) {
        let attempt = assignment.attempt;
        if self.is_stopping || self.commands.is_none() {
            let outcome = ended(Verdict::Lost, "the agent executes nothing any more", 0, self.clock.now());
            return self.write(vec![Record::Ended { attempt, outcome }]);
        }
        self.attempts.insert(attempt, Kept::new(assignment.definition.clone()));
        self.command(Command::Start(StartOrder {
            attempt,
            run: assignment.pack_run,
            pack: assignment.pack,
            version: assignment.version,
            key: assignment.key,
            agent,
            api,
            definition: assignment.definition,
        }))
        .await;
    }

    /// The executor takes commands whatever it does with its events, so this doesn't hold anything up.
    async fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // That it is gone is seen by its events.
            let _ = commands.send(command).await;
        }
    }

    fn take_down(&mut self, events: &mut Vec<Event>) {
        let mut records = Vec::with_capacity(events.len());
        for event in events.drain(..) {
            match event {
                Event::LeftBehind { workspace, error } => {
                    tracing::warn!(workspace = %workspace.display(), %error, "a workspace stays until the next start");
                }
                Event::Prepare { attempt, workspace } => {
                    if let Some(inputs) = self.kept(attempt).map(|kept| kept.definition.inputs.clone()) {
                        self.outbox.push_back(Request::Prepare { attempt, workspace, inputs });
                    }
                }
                Event::Collect { attempt, workspace } => {
                    if let Some(artifacts) = self.kept(attempt).map(|kept| kept.definition.artifacts.clone())
                    {
                        self.outbox.push_back(Request::Collect { attempt, workspace, artifacts });
                    }
                }
                Event::Started(started) => {
                    records.extend(self.kept(started.attempt).map(|_| Record::Started(started)));
                }
                Event::Block(block) => {
                    if let Some(kept) = self.attempts.get_mut(&block.attempt())
                        && !kept.is_forgotten
                    {
                        kept.taken = block.next_seq();
                        kept.invalid_bytes += block.invalid_bytes();
                        records.push(Record::Block(block));
                    }
                }
                Event::Ended { attempt, outcome } => {
                    let Some(kept) = self.attempts.remove(&attempt).filter(|kept| !kept.is_forgotten) else {
                        continue;
                    };
                    let outcome = kept.judge(outcome, self.is_stopping);
                    records.push(Record::Ended { attempt, outcome });
                }
            }
        }
        self.write(records);
    }

    /// An attempt that somebody still wants to hear of.
    fn kept(&self, attempt: AttemptId) -> Option<&Kept> {
        self.attempts.get(&attempt).filter(|kept| !kept.is_forgotten)
    }

    /// Adds remarks of packrun's own to an attempt's log, whose output is complete.
    fn remark(&mut self, attempt: AttemptId, notes: &[String]) {
        let now = self.clock.now();
        let blocks = self.attempts.get_mut(&attempt).map(|kept| kept.remark(attempt, notes, now));
        self.write(blocks.into_iter().flatten().map(Record::Block).collect());
    }

    /// The executor's events are over: with or without our doing, nothing is executed any more.
    fn executor_gone(&mut self, is_wanted: bool) {
        self.commands = None;
        if is_wanted {
            tracing::error!("the executor ended unexpectedly; its attempts are lost");
        }
        let now = self.clock.now();
        let lost = self.attempts.drain().filter(|(_, kept)| !kept.is_forgotten);
        let records = lost.map(|(attempt, kept)| {
            let outcome = ended(Verdict::Lost, "what executed it ended unexpectedly", kept.written, now);
            Record::Ended { attempt, outcome }
        });
        let records = records.collect();
        self.write(records);
    }
}

async fn sleep_until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
