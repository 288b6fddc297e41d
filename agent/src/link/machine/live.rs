//! What the machine does while the coordinator listens.

use std::collections::VecDeque;
use std::time::Duration;

use packrun_protocol::control::{ApiUrl, Assignment, FromAgent, HeldAnswer, Ping, ToAgent, Welcome};
use packrun_protocol::id::{AttemptId, AttemptNumber, Epoch};
use packrun_protocol::limit;
use packrun_protocol::name::Name;
use packrun_protocol::state::{Outcome, Reason, Verdict};
use packrun_protocol::time::{ClockOffset, Timestamp};

use super::held::Held;
use super::{ANSWER_LIMIT, Leave, Machine, Moment, Output, Session};
use crate::executor::ipc::Order;

/// The heartbeat that is kept, whatever the coordinator wants.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// The longest lease that is believed.
const LEASE_MAX: Duration = Duration::from_secs(3600);

/// Most pings that wait for their answer.
const PINGS_MAX: usize = 16;

/// What is known while the coordinator listens.
#[derive(Debug)]
pub(super) struct Live {
    /// What the coordinator calls the agent.
    pub(super) name: Name,
    pub(super) api: ApiUrl,
    pub(super) heartbeat: Duration,
    /// When the pings that are not answered were sent, by the machine's own `sent`.
    pub(super) pings: VecDeque<Moment>,
    pub(super) next_ping: Timestamp,
    /// When what the coordinator answered last was sent.
    pub(super) answered: Moment,
    /// Whether it said that it hands out nothing for now.
    pub(super) drained: bool,
    /// The logs to be sent once the coordinator was told how far its clock is ahead: it corrects what comes then.
    pub(super) unopened: Option<Vec<(AttemptId, u64)>>,
}

impl Live {
    /// How long an answer to a ping may take.
    pub(super) fn patience(&self) -> Duration {
        3 * self.heartbeat + ANSWER_LIMIT
    }
}

impl Machine {
    pub(super) fn welcome(&mut self, welcome: Welcome, sent: Moment, now: Moment, out: &mut Vec<Output>) {
        let greeted = self.held.iter().filter(|(_, held)| held.is_greeted()).map(|(attempt, _)| attempt);
        if !greeted.eq(welcome.attempts.iter().map(|(attempt, _)| attempt)) {
            return out
                .push(Output::Leave(Leave::Protocol("Welcome doesn't answer for the attempts of Hello")));
        }
        let heartbeat = welcome.heartbeat.clamp(*HEARTBEAT.start(), *HEARTBEAT.end());
        self.lease = welcome.lease.min(LEASE_MAX);
        // Welcome answers Hello: that is as good a sign as a ping's.
        let (name, api) = (welcome.name.clone(), welcome.api);
        let (pings, next_ping, unopened) = ([].into(), now.at, Some(Vec::new()));
        let live = Live { name, api, heartbeat, pings, next_ping, answered: sent, drained: false, unopened };
        self.session = Session::Live(live);
        out.push(Output::Welcomed { name: welcome.name, refused: welcome.refused });
        for (attempt, answer) in welcome.attempts.into_vec() {
            match answer {
                HeldAnswer::GoOn { log_from } => {
                    if let Some(held) = self.held.get_mut(&attempt) {
                        held.go_on(log_from);
                    }
                    self.open_log(attempt, log_from, out);
                    self.report(attempt, out);
                }
                HeldAnswer::Fenced | HeldAnswer::Settled => self.forget(vec![attempt], out),
            }
        }
        self.tick(now, out);
    }

    pub(super) fn live(&mut self, epoch: Epoch, message: ToAgent, now: Moment, out: &mut Vec<Output>) {
        match message {
            ToAgent::Assign(assignments) => {
                let running = self.held.values().filter(|held| held.outcome.is_none()).count();
                for assignment in assignments {
                    if let Err(why) = self.assign(epoch, assignment, running, now, out) {
                        return out.push(Output::Leave(Leave::Protocol(why)));
                    }
                }
                self.start_waiting(now, out);
            }
            ToAgent::Cancel { attempt, reason } => self.cancel(attempt, reason, now, out),
            ToAgent::Fence(attempt) => self.forget(vec![attempt], out),
            ToAgent::Settled(attempts) => self.forget(attempts, out),
            ToAgent::LogAck(acks) => {
                let acks: Vec<_> = acks.into_iter().filter(|ack| self.acknowledge(*ack)).collect();
                if !acks.is_empty() {
                    out.push(Output::Order(Order::LogAck(acks)));
                }
            }
            ToAgent::Pong { sent, answered } => {
                let Session::Live(live) = &mut self.session else { return };
                let Some(at) = live.pings.iter().position(|ping| ping.at == sent) else { return };
                let ping = live.pings.drain(..=at).next_back();
                if let Some(ping) = ping {
                    live.answered = ping;
                    self.offset.add(ClockOffset::of_exchange(sent, answered, now.at));
                    if let Some(unopened) = live.unopened.take() {
                        self.ping(now, out);
                        out.extend(
                            unopened.into_iter().map(|(attempt, from)| Output::OpenLog(attempt, from)),
                        );
                    }
                }
                self.start_waiting(now, out);
            }
            ToAgent::Certificate(certificate) => {
                // One that was asked for in an earlier session may come twice.
                if self.renewal.take_if(|renewal| renewal.is_asked()).is_some() {
                    out.push(Output::Install(certificate));
                }
            }
            // The coordinator hands out attempts or doesn't: people want to know, the agent need not.
            ToAgent::Drain(drained) => {
                if let Session::Live(live) = &mut self.session
                    && std::mem::replace(&mut live.drained, drained) != drained
                {
                    out.push(Output::Drained(drained));
                }
            }
            // They were dealt with before.
            ToAgent::Welcome(_) | ToAgent::Goodbye { .. } | ToAgent::NotLeader(_) => {}
        }
    }

    pub(super) fn tick(&mut self, now: Moment, out: &mut Vec<Output>) {
        match &mut self.session {
            Session::Away => {}
            Session::Greeting { sent, .. } => {
                if sent.at + ANSWER_LIMIT <= now.at {
                    out.push(Output::Leave(Leave::Silent));
                }
            }
            Session::Live(live) => {
                if live.pings.front().is_some_and(|ping| ping.at + live.patience() <= now.at) {
                    return out.push(Output::Leave(Leave::Silent));
                }
                if live.next_ping <= now.at {
                    self.ping(now, out);
                }
                if self.renewal.as_mut().is_some_and(|renewal| renewal.ask(now.wall)) {
                    out.push(Output::Renew);
                }
            }
        }
    }

    fn ping(&mut self, now: Moment, out: &mut Vec<Output>) {
        let Session::Live(live) = &mut self.session else { return };
        live.next_ping = now.at + live.heartbeat;
        // Its time is a ping's name; a second one in the same microsecond says nothing new.
        if live.pings.len() < PINGS_MAX && live.pings.back().is_none_or(|last| last.at < now.at) {
            live.pings.push_back(now);
            out.push(Output::Send(FromAgent::Ping(Ping { sent: now.at, offset: self.offset.best() })));
        }
    }

    /// Takes an assignment, unless it is known or older than what is. `running` attempts are held that have not ended.
    ///
    /// # Errors
    /// In words, when nobody may assign so much.
    fn assign(
        &mut self,
        epoch: Epoch,
        assignment: Assignment,
        running: usize,
        now: Moment,
        out: &mut Vec<Output>,
    ) -> Result<(), &'static str> {
        let attempt = assignment.attempt;
        let of_job_run = AttemptId { job_run: attempt.job_run, number: AttemptNumber::FIRST };
        let mut known = self.held.range(of_job_run..).map(|(held, _)| held);
        let highest = known.by_ref().take_while(|held| held.job_run == attempt.job_run).last();
        let waiting = self.waiting.iter().map(|(_, waiting)| waiting.attempt);
        let waits =
            waiting.filter(|waiting| waiting.job_run == attempt.job_run).any(|waiting| waiting >= attempt);
        if waits || self.spent.contains(attempt) || highest.is_some_and(|highest| *highest >= attempt) {
            return Ok(());
        }
        if self.held.len() + self.waiting.len() >= limit::HELD_ATTEMPTS_MAX {
            return Err("more attempts than an agent can hold");
        }
        self.waiting.retain(|(_, waiting)| waiting.attempt.job_run != attempt.job_run);
        if let Err(error) = assignment.definition.check() {
            self.held.insert(
                attempt,
                Held::ended(unstarted(Verdict::Failed, Reason::new(&error.to_string()), now)),
            );
            self.report(attempt, out);
            return Ok(());
        }
        if running + self.waiting.len() >= u32::from(self.profile.capacity.slots) as usize {
            return Err("more attempts than the agent has slots");
        }
        self.waiting.push_back((epoch, assignment));
        Ok(())
    }

    /// Starts what waits if the coordinator was there just now, else asks.
    fn start_waiting(&mut self, now: Moment, out: &mut Vec<Output>) {
        let Session::Live(live) = &self.session else { return };
        if self.waiting.is_empty() {
            return;
        }
        if !live.answered.is_fresh(now) {
            if live.pings.back().is_none_or(|ping| !ping.is_fresh(now)) {
                self.ping(now, out);
            }
            return;
        }
        let (agent, api) = (live.name.clone(), live.api.clone());
        for (epoch, assignment) in std::mem::take(&mut self.waiting) {
            let attempt = assignment.attempt;
            self.held.insert(attempt, Held::assigned());
            out.push(Output::Order(Order::Start {
                epoch,
                agent: agent.clone(),
                api: api.clone(),
                assignment,
            }));
            self.open_log(attempt, 0, out);
        }
    }

    /// Has the log sent from this entry on, now or when the clocks are known.
    fn open_log(&mut self, attempt: AttemptId, from: u64, out: &mut Vec<Output>) {
        match &mut self.session {
            Session::Live(Live { unopened: Some(unopened), .. }) => unopened.push((attempt, from)),
            _ => out.push(Output::OpenLog(attempt, from)),
        }
    }

    fn cancel(&mut self, attempt: AttemptId, reason: Reason, now: Moment, out: &mut Vec<Output>) {
        if let Some(at) = self.waiting.iter().position(|(_, waiting)| waiting.attempt == attempt) {
            self.waiting.remove(at);
            self.held.insert(attempt, Held::ended(unstarted(Verdict::Canceled, reason, now)));
            self.report(attempt, out);
        } else if self.held.get(&attempt).is_some_and(|held| held.outcome.is_none()) {
            out.push(Output::Order(Order::Cancel { attempt, reason }));
        }
    }

    fn forget(&mut self, mut attempts: Vec<AttemptId>, out: &mut Vec<Output>) {
        self.waiting.retain(|(_, waiting)| !attempts.contains(&waiting.attempt));
        if let Session::Live(Live { unopened: Some(unopened), .. }) = &mut self.session {
            unopened.retain(|(attempt, _)| !attempts.contains(attempt));
        }
        attempts.retain(|attempt| {
            self.spent.add(*attempt);
            self.held.remove(attempt).is_some()
        });
        out.extend(attempts.iter().copied().map(Output::Forget));
        if !attempts.is_empty() {
            out.push(Output::Order(Order::Forget(attempts)));
        }
    }

    /// Whether this acknowledgement says anything new.
    fn acknowledge(&mut self, (attempt, next_seq): (AttemptId, u64)) -> bool {
        let Some(held) = self.held.get_mut(&attempt) else { return false };
        let is_new = held.acked < next_seq;
        held.acked = held.acked.max(next_seq);
        is_new
    }
}

/// The end of an attempt that was never started.
fn unstarted(verdict: Verdict, reason: Reason, now: Moment) -> Outcome {
    Outcome {
        verdict,
        exit: None,
        reason: Some(reason),
        ended_at: now.at,
        ran_for: Duration::ZERO,
        entries: 0,
        artifacts: 0,
        invalid_bytes: 0,
    }
}
