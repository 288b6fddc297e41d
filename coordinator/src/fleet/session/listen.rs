//! What an agent says on its control stream, and what follows from it.
//!
//! An attempt's end is held back until the entries that it names are on disk: a task of its own waits for that, seals
//! the log and tells the engine, while the session goes on. An attempt without output costs neither.

use std::time::Duration;

use packrun_protocol::control::{FromAgent, Ping, ToAgent};
use packrun_protocol::id::AttemptId;
use packrun_protocol::quic::ReadError;
use packrun_protocol::state::{Outcome, Reason, Verdict};
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::ClockOffset;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::held::Ask;
use super::{Parting, Session};
use crate::core::event::{LogIndex, Report};
use crate::engine;
use crate::fleet::log_keeper::log_index;
use crate::logs::{AppendError, Extent, LogStore, Progress};

/// Clocks that differ by less than this, in microseconds, from what was last known are not corrected anew.
const CLOCKS_AGREE_MICROS: u64 = 500;

impl Session {
    /// Does what a frame of the agent asks for.
    pub(super) async fn hear(&mut self, frame: Result<Option<FromAgent>, ReadError>) -> Result<(), Parting> {
        let message = match frame {
            Ok(Some(message)) => message,
            Ok(None) => return Err(Parting::closed(CloseCode::Done, "the agent ended its control stream")),
            Err(ReadError::Stream(_)) => return Err(Parting::Lost),
            Err(error) => return Err(Parting::broken(&error)),
        };
        match message {
            FromAgent::Hello(_) => Err(Parting::broken(&"`Hello` is only the first message")),
            FromAgent::Started { attempt, .. } => self.started(attempt).await,
            FromAgent::Ended { attempt, outcome } => self.ended(attempt, outcome).await,
            FromAgent::Ping(ping) => self.pong(ping),
            FromAgent::Renew(request) => self.renew(request.as_str()),
            FromAgent::Draining(draining) => {
                self.allow_chatter()?;
                Ok(self.engine.report(Report::Draining(draining)).await?)
            }
        }
    }

    /// Takes the start of an attempt to the engine, once: repeating it is no load for others.
    async fn started(&mut self, attempt: AttemptId) -> Result<(), Parting> {
        let Some(held) = self.held.get_mut(attempt) else {
            self.allow_repeat()?;
            return self.fence(attempt);
        };
        if std::mem::replace(&mut held.started, true) {
            return self.allow_repeat();
        }
        Ok(self.engine.report(Report::Started { ticket: None, attempt }).await?)
    }

    async fn ended(&mut self, attempt: AttemptId, outcome: Outcome) -> Result<(), Parting> {
        let Some(held) = self.held.get_mut(attempt) else {
            self.allow_repeat()?;
            self.settle(attempt);
            return Ok(());
        };
        if held.ending.is_some() {
            return self.allow_repeat();
        }
        let came = self.shared.logs.progress(attempt).map_or(0, |progress| progress.borrow().readable);
        if outcome.entries == 0 && came == 0 {
            held.complete = true;
            held.ending = Some(held.gone().child_token());
            let log = LogIndex::default();
            return Ok(self.engine.report(Report::Ended { attempt, outcome, log }).await?);
        }
        self.finish(attempt, outcome);
        Ok(())
    }

    /// Has the attempt's end recorded once the entries that it names are on disk, in place of an end that was on its
    /// way.
    fn finish(&mut self, attempt: AttemptId, outcome: Outcome) {
        let Some(progress) = self.open_log(attempt) else { return };
        let Some(held) = self.held.get_mut(attempt) else { return };
        let ending = held.gone().child_token();
        if let Some(earlier) = held.ending.replace(ending.clone()) {
            earlier.cancel();
        }
        let (logs, engine, asks) = (self.shared.logs.clone(), self.engine.clone(), self.streams.asks());
        let end = End { logs, engine, asks, attempt, outcome };
        self.workers.spawn(async move {
            tokio::select! {
                () = ending.cancelled() => {}
                () = end.finish(progress) => {}
            }
        });
    }

    /// Ends an attempt whose agent sends more than its log takes: no agent does that by itself.
    pub(super) fn end_overlong(&mut self, attempt: AttemptId) {
        let Some(held) = self.held.get_mut(attempt).filter(|held| !held.complete) else { return };
        held.complete = true;
        let words = format!(
            "its agent went on to send output beyond the log's limit of {} bytes, instead of cutting it there",
            held.log_bytes_max
        );
        tracing::warn!(agent = %self.agent, %attempt, "{words}");
        let entries = self.shared.logs.progress(attempt).map_or(0, |progress| progress.borrow().readable);
        let outcome = Outcome {
            verdict: Verdict::Failed,
            exit: None,
            reason: Some(Reason::new(&words)),
            ended_at: self.shared.clock.now(),
            ran_for: Duration::ZERO,
            entries,
            artifacts: 0,
            invalid_bytes: 0,
        };
        self.finish(attempt, outcome);
    }

    fn pong(&mut self, ping: Ping) -> Result<(), Parting> {
        self.allow_chatter()?;
        let differs = |new: &ClockOffset| {
            self.offset.is_none_or(|old| old.micros.abs_diff(new.micros) >= CLOCKS_AGREE_MICROS)
        };
        if let Some(offset) = ping.offset.filter(differs) {
            self.offset = Some(offset);
            let logged: Vec<_> = self.held.logged().collect();
            for attempt in logged {
                self.correct(attempt);
            }
        }
        let answered = self.shared.clock.now();
        self.teller.say(ToAgent::Pong { sent: ping.sent, answered })
    }

    fn renew(&mut self, request: &str) -> Result<(), Parting> {
        self.allow_chatter()?;
        let issued = self.shared.identity.issue_agent(request, self.agent, self.shared.settings.certificate);
        let (certificate, expires) = issued.map_err(|error| Parting::broken(&error))?;
        let certificate = certificate.try_into().map_err(|error| Parting::broken(&error))?;
        self.expires = expires;
        self.teller.say(ToAgent::Certificate(certificate))
    }

    /// Bounds what an agent may say that isn't bounded by what it holds.
    fn allow_chatter(&mut self) -> Result<(), Parting> {
        if self.chatter.take(self.shared.clock.now()) { Ok(()) } else { Err(too_much()) }
    }

    /// Bounds what an agent may report that changes nothing.
    fn allow_repeat(&mut self) -> Result<(), Parting> {
        if self.repeats.take(self.shared.clock.now()) { Ok(()) } else { Err(too_much()) }
    }

    /// Lets blocks of the attempt into the log, and watches how far they get.
    pub(super) fn open_log(&mut self, attempt: AttemptId) -> Option<watch::Receiver<Progress>> {
        if self.offset.is_some() || self.shared.logs.progress(attempt).is_none() {
            self.correct(attempt);
        }
        self.watch_log(attempt);
        self.shared.logs.progress(attempt)
    }

    fn correct(&self, attempt: AttemptId) {
        let Some(held) = self.held.get(attempt) else { return };
        // Before the first sample both clocks count as one.
        let offset = self.offset.unwrap_or(ClockOffset { micros: 0, error_micros: u64::MAX });
        self.shared.logs.open_attempt(attempt, held.pack_run, offset, held.assigned_at);
    }

    /// Has what becomes durable of the attempt's log acknowledged, from what is so already on.
    pub(super) fn watch_log(&mut self, attempt: AttemptId) {
        let Some(held) = self.held.get_mut(attempt) else { return };
        let Some(progress) = self.shared.logs.progress(attempt) else { return };
        if !std::mem::replace(&mut held.watched, true) {
            self.workers.spawn(watch_durable(attempt, progress, held.gone(), self.streams.asks()));
        }
    }
}

fn too_much() -> Parting {
    Parting::closed(CloseCode::Overloaded, "the agent says too much; slow down")
}

/// Tells the session whenever more of the attempt's log is on disk.
async fn watch_durable(
    attempt: AttemptId,
    mut progress: watch::Receiver<Progress>,
    gone: CancellationToken,
    asks: mpsc::Sender<Ask>,
) {
    let mut said = 0;
    loop {
        let durable = progress.borrow_and_update().durable;
        if durable > said {
            said = durable;
            if asks.send(Ask::Durable(attempt, durable)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = gone.cancelled() => return,
            changed = progress.changed() => if changed.is_err() { return },
        }
    }
}

/// How long to wait before a log is sealed that a disk did not let be.
const SEAL_AGAIN: Duration = Duration::from_secs(1);

/// An attempt's end on its way to the engine.
struct End {
    logs: LogStore,
    engine: engine::Session,
    asks: mpsc::Sender<Ask>,
    attempt: AttemptId,
    outcome: Outcome,
}

impl End {
    async fn finish(mut self, mut progress: watch::Receiver<Progress>) {
        let entries = self.outcome.entries;
        // An error means that the log was closed under the attempt: then it is over anyway.
        if progress.wait_for(|progress| progress.durable >= entries).await.is_err() {
            return;
        }
        let (reply, noted) = oneshot::channel();
        let complete = Ask::Complete { attempt: self.attempt, reply };
        if self.asks.send(complete).await.is_err() || noted.await.is_err() {
            return;
        }
        let failed = match self.seal().await {
            Ok(extents) => {
                // An agent that names fewer than it sent is not believed.
                self.outcome.entries = extents.last().map_or(0, Extent::next_seq).max(entries);
                let (attempt, outcome, log) = (self.attempt, self.outcome, log_index(&extents));
                // The engine is gone when this fails, and the session will hear of it.
                let _ = self.engine.report(Report::Ended { attempt, outcome, log }).await;
                return;
            }
            Err(error) => error.to_string(),
        };
        // The agent repeats the end in its next session. This one is over when the message doesn't arrive.
        let _ = self.asks.send(Ask::Trouble(failed)).await;
    }

    /// Seals the log, also when its disk takes a while to be well.
    async fn seal(&self) -> Result<Vec<Extent>, AppendError> {
        loop {
            match self.logs.seal(self.attempt).await {
                Err(AppendError::Write { .. }) => tokio::time::sleep(SEAL_AGAIN).await,
                sealed => return sealed,
            }
        }
    }
}
