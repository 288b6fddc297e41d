//! The attempts that a session holds, what is known of each, and what streams ask about them.
//!
//! It has at least what the core counts as this session's: an attempt enters before its agent hears of it, and
//! leaves when the agent is told to forget it. So what is not here is not the agent's.

use std::collections::{BTreeMap, HashSet};

use packrun_protocol::id::{AttemptId, Digest, PackRunId};
use packrun_protocol::time::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Parting, Session};
use crate::logs::Progress;

/// Digests of inputs that are remembered of each attempt; those beyond it are looked up again when they are wanted.
pub(in crate::fleet) const TOLD_MAX: usize = 10_000;

/// What a stream asks of its session, or tells it.
#[derive(Debug)]
pub(in crate::fleet) enum Ask {
    /// Whether the attempt is held, and the content with this digest, if any, was named as an input of it.
    Attempt { attempt: AttemptId, wanted: Option<Digest>, reply: oneshot::Sender<Option<AttemptGrant>> },
    /// The stream's peer broke the protocol.
    Broken(String),
    /// No more of the attempt's log is wanted: it is complete.
    Complete { attempt: AttemptId, reply: oneshot::Sender<()> },
    /// So much of the attempt's log is on disk.
    Durable(AttemptId, u64),
    /// Whether this stream may write the attempt's log.
    Log { attempt: AttemptId, reply: oneshot::Sender<Option<LogGrant>> },
    /// More of the attempt's log came than its agent was allowed to send.
    Overlong(AttemptId),
    /// This content was named as an input of the attempt.
    Told { attempt: AttemptId, digests: Vec<Digest> },
    /// Something of this side's failed, that a new session may repair.
    Trouble(String),
}

/// An attempt that the session holds.
#[derive(Debug)]
pub(in crate::fleet) struct AttemptGrant {
    /// The attempt's pack run.
    pub(in crate::fleet) pack_run: PackRunId,
    /// Cancelled when the attempt is no longer held.
    pub(in crate::fleet) gone: CancellationToken,
    /// Whether the content asked for was named as an input of it.
    pub(in crate::fleet) told: bool,
}

/// Leave to write an attempt's log.
#[derive(Debug)]
pub(in crate::fleet) struct LogGrant {
    /// Cancelled when another stream writes it, or the attempt is no longer held.
    pub(in crate::fleet) writer: CancellationToken,
    /// Most bytes of it.
    pub(in crate::fleet) bytes_max: u64,
    /// How far it has come.
    pub(in crate::fleet) progress: watch::Receiver<Progress>,
}

/// What a session knows of an attempt that it holds.
#[derive(Debug)]
pub(super) struct HeldAttempt {
    pub(super) pack_run: PackRunId,
    /// When it was assigned, or later: before that it wrote nothing.
    pub(super) assigned_at: Timestamp,
    /// Its start was reported in this session.
    pub(super) started: bool,
    /// Most bytes of its log.
    pub(super) log_bytes_max: u64,
    /// Its end is on its way to the engine, until this is cancelled.
    pub(super) ending: Option<CancellationToken>,
    /// Its log is complete: no stream may open it again.
    pub(super) complete: bool,
    /// Its log is watched, to acknowledge what is on disk.
    pub(super) watched: bool,
    /// The stream that writes its log.
    pub(super) writer: Option<CancellationToken>,
    told: HashSet<Digest>,
    gone: CancellationToken,
}

/// The attempts that a session holds.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<AttemptId, HeldAttempt>);

impl Held {
    pub(super) fn add(
        &mut self,
        attempt: AttemptId,
        pack_run: PackRunId,
        assigned_at: Timestamp,
        log_bytes_max: u64,
    ) {
        self.0.entry(attempt).or_insert_with(|| HeldAttempt {
            pack_run,
            assigned_at,
            log_bytes_max,
            started: false,
            ending: None,
            complete: false,
            watched: false,
            writer: None,
            told: HashSet::new(),
            gone: CancellationToken::new(),
        });
    }

    pub(super) fn get(&self, attempt: AttemptId) -> Option<&HeldAttempt> {
        self.0.get(&attempt)
    }

    pub(super) fn get_mut(&mut self, attempt: AttemptId) -> Option<&mut HeldAttempt> {
        self.0.get_mut(&attempt)
    }

    /// Forgets an attempt and ends its streams.
    pub(super) fn remove(&mut self, attempt: AttemptId) {
        if let Some(held) = self.0.remove(&attempt) {
            held.gone.cancel();
        }
    }

    /// The attempts whose logs are open.
    pub(super) fn logged(&self) -> impl Iterator<Item = AttemptId> {
        self.0.iter().filter(|(_, held)| held.watched && !held.complete).map(|(attempt, _)| *attempt)
    }
}

impl HeldAttempt {
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

impl Session {
    /// Answers a stream. One that went away meanwhile needs no answer.
    pub(super) fn answer(&mut self, ask: Ask) -> Result<(), Parting> {
        match ask {
            Ask::Attempt { attempt, wanted, reply } => {
                let grant = self.held.get_mut(attempt).map(|held| AttemptGrant {
                    pack_run: held.pack_run,
                    gone: held.gone(),
                    told: wanted.is_some_and(|digest| held.told.contains(&digest)),
                });
                drop(reply.send(grant));
            }
            Ask::Broken(reason) => return Err(Parting::broken(&reason)),
            Ask::Complete { attempt, reply } => {
                if let Some(held) = self.held.get_mut(attempt) {
                    held.complete = true;
                }
                let _ = reply.send(());
            }
            Ask::Durable(attempt, next_seq) => self.note_durable(attempt, next_seq),
            Ask::Log { attempt, reply } => drop(reply.send(self.grant_log(attempt))),
            Ask::Overlong(attempt) => self.end_overlong(attempt),
            Ask::Told { attempt, digests } => {
                if let Some(held) = self.held.get_mut(attempt) {
                    let room = TOLD_MAX.saturating_sub(held.told.len());
                    held.told.extend(digests.into_iter().take(room));
                }
            }
            Ask::Trouble(reason) => {
                return Err(Parting::Closed(packrun_protocol::stream::CloseCode::Unavailable, reason));
            }
        }
        Ok(())
    }

    /// Lets a stream write the attempt's log in place of an earlier one.
    fn grant_log(&mut self, attempt: AttemptId) -> Option<LogGrant> {
        let held = self.held.get_mut(attempt).filter(|held| !held.complete)?;
        let (writer, bytes_max) = (held.gone.child_token(), held.log_bytes_max);
        if let Some(earlier) = held.writer.replace(writer.clone()) {
            earlier.cancel();
        }
        let progress = self.open_log(attempt)?;
        Some(LogGrant { writer, bytes_max, progress })
    }
}
