//! What the agent is told: messages of the engine as frames, acknowledgements collected, none over the limit.

use std::time::Duration;

use packrun_protocol::codec::EncodeError;
use packrun_protocol::control::{Assignment, FromCoordinator, ToAgent};
use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::limit;
use packrun_protocol::quic::{FrameWriter, WriteError};
use packrun_protocol::state::{Outcome, Reason, Verdict};
use packrun_protocol::stream::CloseCode;
use tokio::time::{Instant, timeout};

use super::greet::turned_away;
use super::{ACK_DELAY, Parting, Session};
use crate::core::event::{LogIndex, Report};
use crate::engine::ToSession;

/// Assignments that are encoded together at most: a bound on what an encoding that turns out too large costs.
const ASSIGNED_TOGETHER: usize = 64;

/// The sending side of the control stream.
#[derive(Debug)]
pub(super) struct Teller {
    writer: FrameWriter,
    epoch: Epoch,
    waiting: bool,
    /// Attempts to forget, said together with those that follow at once.
    settled: Vec<AttemptId>,
}

impl Teller {
    pub(super) fn new(mut writer: FrameWriter, epoch: Epoch) -> Self {
        // Before all that streams answer. It fails on a stream that is gone, and so will the next write.
        let _ = writer.stream().set_priority(1);
        Self { writer, epoch, waiting: false, settled: Vec::new() }
    }

    /// Adds a message to what the next flush sends.
    pub(super) fn say(&mut self, message: ToAgent) -> Result<(), Parting> {
        self.push(message).map_err(unsaid)
    }

    /// As [`Teller::say`]; one that is too large leaves no trace.
    fn push(&mut self, message: ToAgent) -> Result<(), EncodeError> {
        self.push_settled()?;
        self.push_now(message)
    }

    fn push_settled(&mut self) -> Result<(), EncodeError> {
        for together in std::mem::take(&mut self.settled).chunks(limit::HELD_ATTEMPTS_MAX) {
            self.push_now(ToAgent::Settled(together.to_vec()))?;
        }
        Ok(())
    }

    fn push_now(&mut self, message: ToAgent) -> Result<(), EncodeError> {
        self.writer.push(&FromCoordinator { epoch: self.epoch, message })?;
        self.waiting = true;
        Ok(())
    }

    fn settle(&mut self, attempt: AttemptId) {
        self.settled.push(attempt);
    }

    /// Sends what was said, for as long as the agent may take for it.
    pub(super) async fn flush(&mut self, limit: Duration) -> Result<(), Parting> {
        self.push_settled().map_err(unsaid)?;
        if !std::mem::take(&mut self.waiting) {
            return Ok(());
        }
        match timeout(limit, self.writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(WriteError::Stream(_))) => Err(Parting::Lost),
            Ok(Err(WriteError::Message(error))) => Err(unsaid(error)),
            Err(_) => Err(Parting::closed(CloseCode::TimedOut, "the agent does not take what it is sent")),
        }
    }

    /// Ends the stream, and waits until the agent has all of it.
    pub(super) async fn finish(&mut self, limit: Duration) {
        if self.writer.stream().finish().is_ok() {
            let _ = timeout(limit, self.writer.stream().stopped()).await;
        }
    }
}

fn unsaid(error: EncodeError) -> Parting {
    Parting::Closed(CloseCode::Unavailable, error.to_string())
}

impl Session {
    /// Passes on what the engine says.
    pub(super) async fn tell(&mut self, message: ToSession) -> Result<(), Parting> {
        match message {
            ToSession::Cancel { attempt, why } => self.teller.say(ToAgent::Cancel { attempt, reason: why }),
            ToSession::Close(why) => Err(turned_away(&self.shared, self.agent, why)),
            ToSession::Dispatch(assignments) => self.assign(assignments).await,
            ToSession::Drain(drain) => self.teller.say(ToAgent::Drain(drain)),
            ToSession::Fence(attempt) => self.fence(attempt),
            ToSession::Settled(attempt) => {
                self.settle(attempt);
                Ok(())
            }
            ToSession::Welcome { .. } => {
                Err(Parting::closed(CloseCode::Unavailable, "the session was opened twice; connect again"))
            }
        }
    }

    pub(super) fn fence(&mut self, attempt: AttemptId) -> Result<(), Parting> {
        self.forget(attempt);
        self.teller.say(ToAgent::Fence(attempt))
    }

    pub(super) fn settle(&mut self, attempt: AttemptId) {
        self.forget(attempt);
        self.teller.settle(attempt);
    }

    fn forget(&mut self, attempt: AttemptId) {
        self.held.remove(attempt);
        self.acks.remove(&attempt);
    }

    /// Hands out attempts, in as many frames as they need.
    async fn assign(&mut self, assignments: Vec<Assignment>) -> Result<(), Parting> {
        for assignment in &assignments {
            let Assignment { attempt, pack_run, definition, .. } = assignment;
            self.held.add(*attempt, *pack_run, self.shared.clock.now(), definition.log_bytes_max);
        }
        let mut rest = assignments;
        while !rest.is_empty() {
            let behind = rest.split_off(rest.len().min(ASSIGNED_TOGETHER));
            self.assign_together(rest).await?;
            rest = behind;
            if !rest.is_empty() {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn assign_together(&mut self, assignments: Vec<Assignment>) -> Result<(), Parting> {
        let mut parts = vec![assignments];
        while let Some(mut part) = parts.pop() {
            match self.teller.push(ToAgent::Assign(part.clone())) {
                // What was pushed is kept in memory until it is sent.
                Ok(()) if parts.is_empty() => {}
                Ok(()) => self.flush().await?,
                Err(EncodeError::TooLarge { .. }) if part.len() > 1 => {
                    let behind = part.split_off(part.len() / 2);
                    parts.push(behind);
                    parts.push(part);
                }
                Err(error) => {
                    for assignment in part {
                        self.fail(assignment.attempt, &error).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends an attempt that can't be handed out.
    async fn fail(&mut self, attempt: AttemptId, error: &EncodeError) -> Result<(), Parting> {
        let reason =
            Reason::new(&format!("the rendered job can't be sent to an agent: {error}; make it smaller"));
        let outcome = Outcome {
            verdict: Verdict::Failed,
            exit: None,
            reason: Some(reason),
            ended_at: self.shared.clock.now(),
            ran_for: Duration::ZERO,
            entries: 0,
            artifacts: 0,
            invalid_bytes: 0,
        };
        let log = LogIndex::default();
        Ok(self.engine.report(Report::Ended { attempt, outcome, log }).await?)
    }

    /// Notes that entries of the attempt's log before `next_seq` are on disk; said soon, with what comes meanwhile.
    pub(super) fn note_durable(&mut self, attempt: AttemptId, next_seq: u64) {
        if self.held.get_mut(attempt).is_some() {
            self.acks.insert(attempt, next_seq);
            self.acks_due.get_or_insert_with(|| Instant::now() + ACK_DELAY);
        }
    }

    pub(super) fn acknowledge(&mut self) -> Result<(), Parting> {
        self.acks_due = None;
        let acks: Vec<_> = std::mem::take(&mut self.acks).into_iter().collect();
        for together in acks.chunks(limit::HELD_ATTEMPTS_MAX) {
            self.teller.say(ToAgent::LogAck(together.to_vec()))?;
        }
        Ok(())
    }
}
