//! The loop between the machine, the connection of the moment, the journal and the executor's side. It owns them
//! all; what takes longer is done by tasks that it starts and forgets with their attempt.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use packrun_protocol::bounded::BoundedText;
use packrun_protocol::cert;
use packrun_protocol::control::{FromAgent, FromCoordinator, Pem};
use packrun_protocol::id::{AttemptId, Epoch};
use packrun_protocol::quic::{ReadError, close};
use packrun_protocol::stream::CloseCode;
use packrun_protocol::time::Clock;
use quinn::Connection;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::control::Control;
use super::dial::{Addresses, DialError, Dialed, dial, jittered, refusal};
use super::identity::{Member, Store, write_whole};
use super::journal::{News, Reader};
use super::machine::{Input, Leave, Machine, Moment, Output, RENEW_RETRY};
use super::transfer::Transfers;
use super::{LinkError, LinkSettings, Stop, artifact_stream, inputs, log_stream};
use crate::artifacts::cache::Cache;
use crate::executor::ipc::{Order, Request};
use crate::spool::Record;

/// How long the agent stays to report the ends of what it was told to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How long is waited for the last packets to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// The file with the highest epoch seen, in the state folder.
const EPOCH: &str = "epoch";

/// The highest epoch that an earlier process of this agent saw.
pub(super) fn read_epoch(state: &Path) -> Epoch {
    let text = std::fs::read_to_string(state.join(EPOCH)).unwrap_or_default();
    Epoch(text.trim().parse().unwrap_or(0))
}

/// Now, by both clocks.
pub(super) fn moment(clock: Clock) -> Moment {
    Moment { at: clock.now(), wall: Clock::start().now() }
}

pub(super) struct Link {
    state: PathBuf,
    machine: Machine,
    clock: Clock,
    store: Store,
    member: Member,
    addresses: Addresses,
    /// How many addresses in a row didn't know our certificate.
    refusals: usize,
    line: Line,
    reader: Reader,
    orders: mpsc::Sender<Order>,
    connections: watch::Sender<Option<Connection>>,
    transfers: Transfers,
    work: HashMap<AttemptId, Work>,
    tasks: JoinSet<()>,
}

/// The way to a coordinator.
enum Line {
    Waiting(Instant),
    Dialing(JoinHandle<Result<(Dialed, Control), DialError>>, String),
    Up(Box<Session>),
}

/// A connection with its streams.
struct Session {
    dialed: Dialed,
    control: Control,
    logs: JoinSet<()>,
    log_of: HashMap<AttemptId, AbortHandle>,
}

/// What is done for an attempt beside the loop.
struct Work {
    task: AbortHandle,
    is_preparing: bool,
    stop: Arc<AtomicBool>,
}

/// What the line has to say.
enum Signal {
    Due,
    Dialed(Result<(Dialed, Control), DialError>),
    Frame(Box<Result<FromCoordinator, ReadError>>),
}

/// What the loop woke up for.
enum Turn {
    Line(Signal),
    News(Option<News>),
    Request(Option<Request>),
    Done(tokio::task::Id),
    Stop,
    Tick,
}

impl Line {
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Signal {
        match self {
            Self::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Signal::Due
            }
            Self::Dialing(dialing, address) => Signal::Dialed(dialing.await.unwrap_or_else(|error| {
                let (address, why) = (std::mem::take(address), error.to_string());
                Err(DialError::Address { address, why })
            })),
            Self::Up(session) => Signal::Frame(Box::new(session.control.next().await)),
        }
    }
}

impl Link {
    #[expect(clippy::too_many_arguments, reason = "made once, of what `run` has opened")]
    pub(super) fn new(
        settings: LinkSettings,
        machine: Machine,
        clock: Clock,
        store: Store,
        member: Member,
        addresses: Addresses,
        cache: Cache,
        reader: Reader,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let (connections, current) = watch::channel(None);
        Self {
            state: settings.state,
            machine,
            clock,
            store,
            member,
            addresses,
            refusals: 0,
            line: Line::Waiting(Instant::now()),
            reader,
            orders,
            connections,
            transfers: Transfers::new(current, cache),
            work: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut news: mpsc::Receiver<News>,
        mut requests: mpsc::Receiver<Request>,
        mut stop: watch::Receiver<Stop>,
    ) -> Result<(), LinkError> {
        self.feed(self.renew_at()).await;
        let wanted = *stop.borrow_and_update();
        let mut stopping = self.obey(wanted).await;
        let mut is_told = true;
        while !self.is_done(stopping) {
            let deadline = self.machine.deadline().map(|deadline| self.clock.instant(deadline).into());
            let deadline = deadline.into_iter().chain(stopping.and_then(|(_, limit)| limit)).min();
            // Nothing is lost when one of these is dropped for another.
            let turn = tokio::select! {
                biased;
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
                Some(done) = self.tasks.join_next_with_id() => Turn::Done(match done {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                }),
                () = sleep_until(deadline) => Turn::Tick,
            };
            match turn {
                Turn::Stop => {
                    let wanted = *stop.borrow_and_update();
                    stopping = self.obey(wanted).await;
                }
                Turn::Line(Signal::Due) => self.dial()?,
                Turn::Line(Signal::Dialed(Ok((dialed, control)))) => {
                    self.line = Line::Up(Box::new(Session::new(dialed, control)));
                    self.feed(Input::Connected).await;
                }
                Turn::Line(Signal::Dialed(Err(error))) => self.not_dialed(&error),
                Turn::Line(Signal::Frame(frame)) => match *frame {
                    Ok(frame) => self.feed(Input::Frame(frame)).await,
                    Err(error) => self.lost(&error).await?,
                },
                Turn::News(Some(News::Record(record))) => {
                    if let Record::Ended { attempt, .. } = &record {
                        self.drop_work(*attempt);
                    }
                    self.feed(Input::Journal(record)).await;
                }
                Turn::News(Some(News::Read(_))) => {}
                // The executor's side is gone, and with it all that there is to do.
                Turn::News(None) | Turn::Request(None) => break,
                Turn::Request(Some(request)) => self.request(request).await,
                Turn::Done(id) => self.work.retain(|_, work| work.task.id() != id),
                Turn::Tick => self.feed(Input::Tick).await,
            }
        }
        self.farewell().await;
        Ok(())
    }

    /// What a stop demands; gives how far it goes and until when it waits.
    async fn obey(&mut self, stop: Stop) -> Option<(Stop, Option<Instant>)> {
        match stop {
            Stop::Run => return None,
            Stop::Drain => {
                tracing::info!("draining: no new attempts are taken, those that run are waited for")
            }
            Stop::Now => tracing::info!("stopping: attempts that run are ended"),
        }
        self.feed(Input::Draining(true)).await;
        if stop == Stop::Now {
            // Without an executor's side nothing runs.
            let _ = self.orders.send(Order::StopAll).await;
        }
        Some((stop, (stop == Stop::Now).then(|| Instant::now() + STOP_LIMIT)))
    }

    fn is_done(&self, stopping: Option<(Stop, Option<Instant>)>) -> bool {
        let Some((_, limit)) = stopping else { return false };
        let is_reported = self.machine.is_empty() || !matches!(self.line, Line::Up(_));
        limit.is_some_and(|limit| limit <= Instant::now()) || (!self.machine.is_busy() && is_reported)
    }

    fn dial(&mut self) -> Result<(), LinkError> {
        if self.member.certificate.not_after <= self.clock.now() {
            return Err(LinkError::Expired);
        }
        let address = self.addresses.next();
        let (address, config) = (address.unwrap_or_default(), self.member.config.clone());
        let to = address.clone();
        let dialing = tokio::spawn(async move {
            let dialed = dial(to, config).await?;
            let control = Control::open(&dialed.connection).await;
            // Why it is lost shows when it is read.
            control.map(|control| (dialed, control)).map_err(|error| DialError::Lost(error.to_string()))
        });
        self.line = Line::Dialing(dialing, address);
        Ok(())
    }

    fn not_dialed(&mut self, error: &DialError) {
        let wait = self.addresses.wait();
        let error = error as &dyn std::error::Error;
        tracing::warn!(error, retry_in = ?wait, "no connection to a coordinator");
        self.line = Line::Waiting(Instant::now() + wait);
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
                    Order::LogAck(acks) => self.reader.acknowledge(acks.clone()).await,
                    Order::Cancel { attempt, .. }
                        if self.work.get(attempt).is_some_and(|work| work.is_preparing) =>
                    {
                        self.drop_work(*attempt);
                    }
                    _ => {}
                }
                // When the executor's side is gone, its queues say so.
                let _ = self.orders.send(order).await;
            }
            Output::Welcomed(name) => {
                let Line::Up(session) = &self.line else { return None };
                tracing::info!(%name, coordinator = session.dialed.address, "connected");
                self.connections.send_replace(Some(session.dialed.connection.clone()));
                self.addresses.succeeded();
                self.refusals = 0;
            }
            Output::OpenLog(attempt, from) => {
                if let Line::Up(session) = &mut self.line {
                    session.open_log(self.reader.clone(), attempt, from);
                }
            }
            Output::Forget(attempt) => {
                self.drop_work(attempt);
                if let Line::Up(session) = &mut self.line {
                    session.close_log(attempt);
                }
            }
            Output::Epoch(epoch) => self.keep_epoch(epoch).await,
            Output::Renew => self.ask_renewal(),
            Output::Install(certificate) => return Some(self.install(certificate).await),
            Output::Leave(leave) => self.leave(leave),
        }
        None
    }

    fn say(&mut self, message: FromAgent) {
        if let Line::Up(session) = &self.line
            && !session.control.say(message)
        {
            // Its end is seen where frames are read, and all that counts is said again.
            close(&session.dialed.connection, CloseCode::TimedOut, "the control stream is not read");
        }
    }

    fn leave(&mut self, leave: Leave) {
        let Line::Up(session) = &self.line else { return };
        let connection = &session.dialed.connection;
        let address = session.dialed.address.clone();
        let wait = match leave {
            Leave::Protocol(why) => {
                tracing::error!(address, why, "the coordinator broke the protocol");
                close(connection, CloseCode::Protocol, why);
                self.addresses.wait()
            }
            Leave::LowerEpoch { epoch, highest } => {
                tracing::warn!(address, %epoch, %highest, "the coordinator was replaced by one of a higher epoch");
                close(
                    connection,
                    CloseCode::Protocol,
                    "the coordinator's epoch is lower than one seen before",
                );
                self.addresses.wait()
            }
            Leave::Silent => {
                tracing::warn!(address, "the coordinator doesn't answer any more");
                close(connection, CloseCode::TimedOut, "no answer came");
                self.addresses.wait()
            }
            Leave::Goodbye { restarting, reason } => {
                tracing::info!(address, restarting, %reason, "the coordinator stops");
                close(connection, CloseCode::Done, "");
                if restarting {
                    self.addresses.stay();
                }
                self.addresses.wait()
            }
            Leave::NotLeader(addresses) => {
                tracing::info!(address, leader = ?addresses, "another coordinator is the leader");
                close(connection, CloseCode::Done, "");
                self.addresses.hint(addresses);
                self.addresses.wait()
            }
        };
        self.hang_up(wait);
    }

    /// The connection is gone, for reasons of its own.
    async fn lost(&mut self, error: &ReadError) -> Result<(), LinkError> {
        self.feed(Input::Disconnected).await;
        let Line::Up(session) = &self.line else { return Ok(()) };
        let address = session.dialed.address.clone();
        let reason = session.dialed.connection.close_reason();
        if let Some(why) = reason.as_ref().and_then(refusal) {
            self.refusals += 1;
            if why.is_final() || self.refusals >= self.addresses.len() {
                return Err(LinkError::NotAllowed { address, why: why.words() });
            }
        }
        let wait = self.addresses.wait();
        let error = error as &dyn std::error::Error;
        tracing::warn!(address, error, retry_in = ?wait, "the connection to the coordinator was lost");
        close(&session.dialed.connection, CloseCode::Protocol, "the control stream can't be read on");
        self.hang_up(wait);
        Ok(())
    }

    fn hang_up(&mut self, wait: Duration) {
        self.connections.send_replace(None);
        self.line = Line::Waiting(Instant::now() + wait);
    }

    async fn request(&mut self, request: Request) {
        let (transfers, orders) = (self.transfers.clone(), self.orders.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let attempt = request.attempt();
        let (task, is_preparing) = match request {
            Request::Prepare { workspace, inputs, .. } => {
                let prepare = async move {
                    let result = inputs::fetch(&transfers, attempt, workspace, inputs).await;
                    let _ = orders.send(Order::Prepared(attempt, result)).await;
                };
                (self.tasks.spawn(prepare), true)
            }
            Request::Collect { workspace, artifacts, .. } => {
                let stop = Arc::clone(&stop);
                let collect = async move {
                    let kept = artifact_stream::keep(&transfers, attempt, workspace, artifacts, stop);
                    let (result, notes) = kept.await;
                    let _ = orders.send(Order::Collected { attempt, result, notes }).await;
                };
                (self.tasks.spawn(collect), false)
            }
            Request::Failed { attempt, outcome } => {
                return self.feed(Input::Failed(attempt, outcome)).await;
            }
        };
        self.work.insert(attempt, Work { task, is_preparing, stop });
    }

    fn drop_work(&mut self, attempt: AttemptId) {
        if let Some(work) = self.work.remove(&attempt) {
            work.stop.store(true, Ordering::Relaxed);
            work.task.abort();
        }
    }

    async fn keep_epoch(&self, epoch: Epoch) {
        let path = self.state.join(EPOCH);
        let kept = tokio::task::spawn_blocking(move || write_whole(&path, epoch.to_string().as_bytes()));
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "the coordinator's epoch can't be kept in the state folder");
        }
    }

    /// When the certificate is to be renewed: after about two thirds of its life, not all agents at once.
    fn renew_at(&self) -> Input {
        let certificate = &self.member.certificate;
        let life = certificate.not_after.since(certificate.not_before);
        Input::RenewAt(certificate.renew_at() - jittered(life / 20))
    }

    fn ask_renewal(&mut self) {
        let request = cert::request(&self.member.identity.key_pem).map_err(|error| error.to_string());
        match request.and_then(|pem| BoundedText::try_from(pem).map_err(|error| error.to_string())) {
            Ok(pem) => self.say(FromAgent::Renew(pem)),
            Err(error) => tracing::error!(error, "the request for a new certificate can't be made"),
        }
    }

    async fn install(&mut self, certificate: Pem) -> Input {
        let (store, member) = (self.store.clone(), self.member.clone());
        let renewed = tokio::task::spawn_blocking(move || store.renew(&member, certificate.as_str())).await;
        let why = match renewed {
            Ok(Ok(member)) => {
                tracing::info!(until = %member.certificate.not_after, "the certificate was renewed");
                self.member = member;
                return self.renew_at();
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(why, "the renewed certificate can't be used; it is asked for again");
        Input::RenewAt(self.clock.now() + RENEW_RETRY)
    }

    /// Leaves in good order, as far as the coordinator lets it.
    async fn farewell(self) {
        if let Line::Up(session) = self.line {
            close(&session.dialed.connection, CloseCode::ShuttingDown, "the agent stops");
            let _ = tokio::time::timeout(FAREWELL, session.dialed.endpoint.wait_idle()).await;
        }
    }
}

impl Session {
    fn new(dialed: Dialed, control: Control) -> Self {
        Self { dialed, control, logs: JoinSet::new(), log_of: HashMap::new() }
    }

    fn open_log(&mut self, reader: Reader, attempt: AttemptId, from: u64) {
        while self.logs.try_join_next().is_some() {}
        let connection = self.dialed.connection.clone();
        let task = self.logs.spawn(log_stream::send(connection, reader, attempt, from));
        self.log_of.insert(attempt, task);
    }

    fn close_log(&mut self, attempt: AttemptId) {
        if let Some(task) = self.log_of.remove(&attempt) {
            task.abort();
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
