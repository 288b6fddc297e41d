//! The loop between the machine, the connection of the moment, the journal and the executor's side. It owns them
//! all; what takes longer is done by tasks that it starts and forgets with their attempt.

use std::path::PathBuf;
use std::time::Duration;

use packrun_protocol::control::FromAgent;
use packrun_protocol::quic::{ReadError, close};
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::Clock;
use quinn::{Connection, ConnectionError};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError};
use tokio::time::Instant;

use super::dial::{Addresses, DialError, is_superseded, refusal};
use super::journal::{News, Reader};
use super::line::{Line, Signal};
use super::machine::{Input, Machine, Moment, Output};
use super::membership::Membership;
use super::transfer::Transfers;
use super::work::Works;
use super::{LinkError, Stop, stopped};
use crate::artifacts::cache::Cache;
use crate::executor::ipc::{Order, Request};
use crate::spool::Record;

/// How long the agent stays to report the ends of what it was told to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How long a session lasts that is no sign of trouble when it ends.
const LASTING: Duration = Duration::from_secs(10);

/// How long the coordinator's word on why it ends a session is waited for.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Now, by both clocks.
pub(super) fn moment(clock: Clock) -> Moment {
    Moment { at: clock.now(), wall: Clock::start().now() }
}

pub(super) struct Link {
    state: PathBuf,
    machine: Machine,
    clock: Clock,
    membership: Membership,
    addresses: Addresses,
    /// Since when the coordinator lets the agent in.
    welcomed_at: Option<Instant>,
    line: Line,
    reader: Reader,
    orders: mpsc::Sender<Order>,
    connections: watch::Sender<Option<Connection>>,
    works: Works,
}

/// How the agent is stopping.
#[derive(Clone, Copy)]
struct Stopping {
    stop: Stop,
    /// When it leaves, whatever is left to say.
    limit: Option<Instant>,
}

/// What the loop woke up for.
enum Turn {
    Line(Signal),
    News(Option<News>),
    Request(Option<Request>),
    Worked(Result<Id, JoinError>),
    Stop,
    Tick,
}

impl Link {
    #[expect(clippy::too_many_arguments, reason = "made once, of what `run` has opened")]
    pub(super) fn new(
        state: PathBuf,
        machine: Machine,
        clock: Clock,
        membership: Membership,
        addresses: Addresses,
        cache: Cache,
        reader: Reader,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let (connections, current) = watch::channel(None);
        Self {
            state,
            machine,
            clock,
            membership,
            addresses,
            welcomed_at: None,
            line: Line::after(Duration::ZERO),
            reader,
            works: Works::new(Transfers::new(current, cache), orders.clone()),
            orders,
            connections,
        }
    }

    /// Serves until it is told to stop, or may not any more. Who isn't let in and has a token may become another.
    pub(super) async fn run(
        mut self,
        mut news: mpsc::Receiver<News>,
        mut requests: mpsc::Receiver<Request>,
        mut stop: watch::Receiver<Stop>,
    ) -> Result<(), LinkError> {
        loop {
            let served = self.serve(&mut news, &mut requests, &mut stop).await;
            match served {
                Err(LinkError::Expired | LinkError::NotAllowed { .. }) => {}
                Ok(()) => {
                    self.line.farewell().await;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.hang_up(Duration::ZERO);
            self.addresses.succeeded();
            let is_another = tokio::select! {
                is_another = self.membership.join_again(&mut self.addresses) => is_another,
                () = stopped(&mut stop) => false,
            };
            if !is_another {
                return served;
            }
        }
    }

    async fn serve(
        &mut self,
        news: &mut mpsc::Receiver<News>,
        requests: &mut mpsc::Receiver<Request>,
        stop: &mut watch::Receiver<Stop>,
    ) -> Result<(), LinkError> {
        self.feed(self.membership.renewal()).await;
        let wanted = *stop.borrow_and_update();
        let mut stopping = self.obey(wanted).await;
        let mut is_told = true;
        while !self.is_done(&mut stopping) {
            let deadline = self.machine.deadline().map(|deadline| self.clock.instant(deadline).into());
            let deadline = deadline.into_iter().chain(stopping.and_then(|stopping| stopping.limit)).min();
            // Nothing is lost when one of these is dropped for another.
            let turn = tokio::select! {
                changed = stop.changed(), if is_told => match changed {
                    Ok(()) => Turn::Stop,
                    Err(_) => {
                        is_told = false;
                        continue;
                    }
                },
                signal = self.line.next() => Turn::Line(signal),
                news = news.recv() => Turn::News(news),
                request = requests.recv() => Turn::Request(request),
                ended = self.works.ended() => Turn::Worked(ended),
                () = sleep_until(deadline) => Turn::Tick,
            };
            match turn {
                Turn::Stop => {
                    let wanted = *stop.borrow_and_update();
                    stopping = self.obey(wanted).await;
                }
                Turn::Line(Signal::Due) => self.dial()?,
                Turn::Line(Signal::Dialed(Ok(session))) => {
                    self.line = Line::Up(session);
                    self.feed(Input::Connected).await;
                }
                Turn::Line(Signal::Dialed(Err(error))) => self.not_dialed(&error)?,
                Turn::Line(Signal::Frame(Ok(frame))) => self.feed(Input::Frame(*frame)).await,
                Turn::Line(Signal::Frame(Err(error))) => self.lost(&error).await?,
                Turn::News(Some(News::Record(record))) => {
                    if let Record::Ended { attempt, .. } = &record {
                        self.works.forget(*attempt);
                    }
                    self.feed(Input::Journal(record)).await;
                }
                Turn::News(Some(News::Read(_))) => {}
                Turn::News(None) | Turn::Request(None) => return Err(LinkError::ExecutorGone),
                Turn::Request(Some(Request::Failed { attempt, outcome })) => {
                    self.feed(Input::Failed(attempt, outcome)).await;
                }
                // Whoever is forgotten meanwhile, or has ended, needs no answer.
                Turn::Request(Some(request)) if !self.machine.runs(request.attempt()) => {}
                Turn::Request(Some(request)) => self.works.begin(request),
                Turn::Worked(ended) => {
                    if let Some(order) = self.works.note(ended) {
                        self.order(order).await;
                    }
                }
                Turn::Tick => self.feed(Input::Tick).await,
            }
        }
        Ok(())
    }

    /// What a stop demands.
    async fn obey(&mut self, stop: Stop) -> Option<Stopping> {
        match stop {
            Stop::Run => return None,
            Stop::Drain => {
                tracing::info!("draining: no new attempts are taken, those that run are waited for")
            }
            Stop::Now => tracing::info!("stopping: attempts that run are ended"),
        }
        self.feed(Input::Draining(true)).await;
        if stop == Stop::Now {
            self.order(Order::StopAll).await;
        }
        Some(Stopping { stop, limit: (stop == Stop::Now).then(|| Instant::now() + STOP_LIMIT) })
    }

    /// Whether all that is to be done before the end is. What the coordinator hasn't heard is worth the way back
    /// to it, for as long as it waits for this agent.
    fn is_done(&self, stopping: &mut Option<Stopping>) -> bool {
        let Some(Stopping { stop, limit }) = stopping else { return false };
        let (is_live, is_busy) = (self.connections.borrow().is_some(), self.machine.is_busy());
        if *stop == Stop::Drain {
            let is_unheard = !is_live && !is_busy && !self.machine.is_empty();
            *limit = is_unheard.then(|| limit.unwrap_or_else(|| Instant::now() + self.machine.lease()));
        }
        if limit.is_some_and(|limit| limit <= Instant::now()) {
            tracing::warn!("the agent leaves before the coordinator has heard of the end of every attempt");
            return true;
        }
        !is_busy && (self.machine.is_empty() || (*stop == Stop::Now && !matches!(self.line, Line::Up(_))))
    }

    fn dial(&mut self) -> Result<(), LinkError> {
        if self.membership.is_over() {
            return Err(LinkError::Expired);
        }
        // There is one: the configuration has at least one.
        let address = self.addresses.next().unwrap_or_default();
        self.line = Line::dial(address, self.membership.member.config.clone(), self.addresses.limit());
        Ok(())
    }

    fn not_dialed(&mut self, error: &DialError) -> Result<(), LinkError> {
        match error {
            DialError::Lost { address, source } => self.check_refusal(address, Some(source))?,
            error => error.address().into_iter().for_each(|address| self.addresses.not_refused(address)),
        }
        let wait = self.addresses.wait();
        let error = error as &dyn std::error::Error;
        tracing::warn!(error, retry_in = ?wait, "no connection to a coordinator");
        self.line = Line::after(wait);
        Ok(())
    }

    /// Whether a lost connection says that the agent need not come back.
    fn check_refusal(&mut self, address: &str, error: Option<&ConnectionError>) -> Result<(), LinkError> {
        if error.is_some_and(is_superseded) {
            return Err(LinkError::Superseded { address: address.to_owned() });
        }
        let Some(refusal) = error.and_then(refusal) else {
            self.addresses.not_refused(address);
            return Ok(());
        };
        if self.addresses.refused(address) || refusal.is_final {
            return Err(LinkError::NotAllowed { address: address.to_owned(), why: refusal.why });
        }
        Ok(())
    }

    /// How long to wait before the next try: soon only after a session that lasted, so that being let in and
    /// dropped is no tight loop.
    fn wait(&mut self) -> Duration {
        if self.welcomed_at.take().is_some_and(|welcomed| welcomed.elapsed() >= LASTING) {
            self.addresses.calm();
        }
        self.addresses.wait()
    }

    /// Tells the executor's side. When that is gone, its queues say so.
    async fn order(&self, order: Order) {
        let _ = self.orders.send(order).await;
    }

    /// Gives the machine an input, and does what it says.
    async fn feed(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            for output in self.machine.handle(input, moment(self.clock)) {
                next = self.act(output).await.or(next);
            }
        }
    }

    /// Does one thing; gives what the machine is to know of it.
    async fn act(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Send(message) => self.say(message),
            Output::Order(order) => {
                match &order {
                    Order::LogAck(acks) if !self.reader.acknowledge(acks.clone()).await => {
                        return Some(Input::Broken("it acknowledges entries of a log that were never sent"));
                    }
                    Order::Cancel { attempt, .. } => self.works.forget(*attempt),
                    _ => {}
                }
                self.order(order).await;
            }
            Output::Welcomed { name, refused } => {
                let dialed = &self.line.session()?.dialed;
                tracing::info!(%name, coordinator = dialed.address, "connected");
                if !refused.is_empty() {
                    let why = "only an invitation grants labels with these keys, and this agent's didn't";
                    tracing::warn!(labels = %refused, why, "some of the agent's labels don't count");
                }
                self.connections.send_replace(Some(dialed.connection.clone()));
                self.addresses.succeeded();
                self.welcomed_at = Some(Instant::now());
            }
            Output::OpenLog(attempt, from) => {
                let reader = self.reader.clone();
                self.line.session()?.open_log(reader, attempt, from);
            }
            Output::Forget(attempt) => {
                self.works.forget(attempt);
                self.line.session()?.close_log(attempt);
            }
            Output::Drained(drained) => {
                tracing::info!(drained, "the coordinator changed whether this agent is given attempts");
            }
            Output::Epoch(seen) => self.membership.keep_epoch(&self.state, seen).await,
            Output::Renew => self.ask_renewal(),
            Output::Install(certificate) => return Some(self.membership.install(certificate).await),
            Output::Leave(leave) => {
                if let Line::Up(session) = &self.line {
                    session.leave(leave, &mut self.addresses);
                }
                let wait = self.wait();
                self.hang_up(wait);
            }
        }
        None
    }

    fn say(&mut self, message: FromAgent) {
        if let Some(session) = self.line.session()
            && !session.control.say(message)
        {
            // Its end is seen where frames are read, and all that counts is said again.
            close(&session.dialed.connection, CloseCode::TimedOut, "the control stream is not read");
        }
    }

    /// The connection is gone, for reasons of its own.
    async fn lost(&mut self, error: &ReadError) -> Result<(), LinkError> {
        self.feed(Input::Disconnected).await;
        let Some(session) = self.line.session() else { return Ok(()) };
        let (address, connection) = (session.dialed.address.clone(), session.dialed.connection.clone());
        let closed = match (connection.close_reason(), error) {
            (None, ReadError::Ended | ReadError::Stream(_)) => {
                // A stream's end may overtake the word on why.
                tokio::time::timeout(LAST_WORD, connection.closed()).await.ok()
            }
            (closed, _) => closed,
        };
        self.check_refusal(&address, closed.as_ref())?;
        let wait = self.wait();
        let error = error as &dyn std::error::Error;
        tracing::warn!(address, error, retry_in = ?wait, "the connection to the coordinator was lost");
        close(&connection, CloseCode::Protocol, "the control stream can't be read on");
        self.hang_up(wait);
        Ok(())
    }

    fn hang_up(&mut self, wait: Duration) {
        self.connections.send_replace(None);
        self.line = Line::after(wait);
    }

    fn ask_renewal(&mut self) {
        match self.membership.member.request() {
            Ok(request) => self.say(FromAgent::Renew(request)),
            Err(error) => tracing::error!(%error, "the request for a new certificate can't be made"),
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
