//! A small coordinator on real QUIC, whose every word the test decides, and a real agent that serves it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use packrun_agent::{AgentConfig, AgentError, Stop};
use packrun_protocol::block::Block;
use packrun_protocol::bounded::BoundedText;
use packrun_protocol::cert::{AgentCertificate, Authority};
use packrun_protocol::control::{
    FromAgent, FromCoordinator, HeldAnswer, Hello, MINOR, Ping, ToAgent, Welcome,
};
use packrun_protocol::id::{AgentId, AttemptId, Epoch, EpochProof, TokenId};
use packrun_protocol::job::Definition;
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::name::Labels;
use packrun_protocol::quic::{
    Admission, FrameReader, FrameWriter, Peer as Who, ReadError, ServerIdentity, let_in, peer, server_config,
};
use packrun_protocol::state::{Outcome, Reason};
use packrun_protocol::stream::{CloseCode, Enrol, EnrolAnswer, JoinSecret, StreamHeader, Upload};
use packrun_protocol::time::{Clock, Timestamp};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use crate::jobs::{assignment, script};

/// How long anything may take that is not bound to be quick, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const VALID: Duration = Duration::from_secs(7 * 24 * 3600);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Waits for something that has to come.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) is_closed: AtomicBool,
}

impl Admission for Gate {
    fn admits(&self, _: &AgentCertificate) -> bool {
        !self.is_closed.load(Ordering::SeqCst)
    }
}

pub(crate) struct Fake {
    pub(crate) ca: Authority,
    pub(crate) endpoint: Endpoint,
    pub(crate) gate: Arc<Gate>,
    pub(crate) epoch: Epoch,
    pub(crate) agent: AgentId,
    /// For how long it issues certificates, and how long before their making they seem to be made.
    pub(crate) valid: Duration,
    pub(crate) age: Duration,
    /// Microseconds by which its clock is ahead.
    ahead: i64,
    pub(crate) token: TokenId,
    secret: JoinSecret,
}

/// An agent's connection, from the other end.
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    pub(crate) hello: Hello,
    pub(crate) send: FrameWriter,
    pub(crate) receive: FrameReader,
    pub(crate) epoch: Epoch,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Duration,
    ahead: i64,
    agent: AgentId,
    /// What was said while something else was waited for.
    heard: VecDeque<FromAgent>,
}

/// A running agent.
pub(crate) struct Agent {
    pub(crate) stop: watch::Sender<Stop>,
    pub(crate) task: JoinHandle<Result<(), AgentError>>,
}

/// A log stream as it came.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) attempt: AttemptId,
    pub(crate) from: u64,
    pub(crate) blocks: Vec<Block>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        Self::ahead(0)
    }

    /// One whose clock is so many microseconds ahead.
    pub(crate) fn ahead(ahead: i64) -> Self {
        let now = now(ahead);
        let (ca, _) = Authority::create(now).unwrap();
        let identity = ca.issue_coordinator(now, VALID).unwrap();
        let gate = Arc::new(Gate::default());
        let server = ServerIdentity { identity: &identity, ca_pem: ca.certificate_pem() };
        let endpoint = Endpoint::server(server_config(&server, gate.clone()).unwrap(), LOOPBACK).unwrap();
        let (agent, secret) = (AgentId::generate(), JoinSecret([7; 32]));
        let token = TokenId::from_bytes([3; 16]);
        let (epoch, age) = (Epoch(5), Duration::ZERO);
        Self { ca, endpoint, gate, epoch, agent, valid: VALID, age, ahead, token, secret }
    }

    pub(crate) fn address(&self) -> String {
        self.endpoint.local_addr().unwrap().to_string()
    }

    pub(crate) fn token(&self) -> JoinToken {
        JoinToken { ca: self.ca.fingerprint(), id: self.token, secret: self.secret }
    }

    pub(crate) fn config(&self, folder: &TempDir) -> AgentConfig {
        let mut config = AgentConfig::new(vec![self.address()], state(folder)).unwrap();
        config.rename("host-1".parse().unwrap());
        config.environment.path = "/usr/local/bin:/usr/bin:/bin".to_owned();
        config.join_token = Some(self.token());
        config
    }

    /// Enrols the next one who asks, or refuses.
    pub(crate) async fn enrol(&self, refusal: Option<&str>) -> Enrol {
        self.enrol_with(|enrol| match refusal {
            Some(words) => EnrolAnswer::Refused(Reason::new(words)),
            None => self.granted(enrol),
        })
        .await
    }

    /// The good answer.
    pub(crate) fn granted(&self, enrol: &Enrol) -> EnrolAnswer {
        EnrolAnswer::Granted {
            agent: self.agent,
            certificate: self.certificate(enrol.request.as_str()),
            ca: BoundedText::try_from(self.ca.certificate_pem()).unwrap(),
        }
    }

    /// Answers the next one who wants to enrol.
    pub(crate) async fn enrol_with(&self, answer: impl FnOnce(&Enrol) -> EnrolAnswer) -> Enrol {
        let connection = self.incoming().await;
        assert_eq!(peer(&connection), Some(Who::Joining));
        let (send, receive) = within(connection.accept_bi()).await.unwrap();
        let (mut send, mut receive) = (FrameWriter::new(send), FrameReader::new(receive));
        let enrol: Enrol = within(receive.expect()).await.unwrap();
        assert_eq!((enrol.token, enrol.secret), (self.token().id, self.secret));
        send.send(&answer(&enrol)).await.unwrap();
        send.stream().finish().unwrap();
        within(connection.closed()).await;
        enrol
    }

    pub(crate) fn certificate(
        &self,
        request: &str,
    ) -> BoundedText<{ packrun_protocol::limit::CERTIFICATE_BYTES_MAX }> {
        let made_at = now(self.ahead) - self.age;
        let issued = self.ca.issue_agent(request, self.agent, made_at, self.valid).unwrap();
        BoundedText::try_from(issued).unwrap()
    }

    async fn incoming(&self) -> Connection {
        loop {
            let incoming = within(self.endpoint.accept()).await.unwrap();
            if let Ok(connection) = incoming.await {
                return connection;
            }
        }
    }

    /// The next agent's connection, up to its Hello.
    pub(crate) async fn meet(&self) -> Peer {
        let connection = self.incoming().await;
        assert!(
            matches!(peer(&connection), Some(Who::Agent(certificate)) if certificate.agent == self.agent)
        );
        let (send, receive) = within(connection.accept_bi()).await.unwrap();
        let (send, mut receive) = (FrameWriter::new(send), FrameReader::new(receive));
        assert_eq!(within(receive.expect::<StreamHeader>()).await.unwrap(), StreamHeader::Control);
        let_in(&connection);
        let FromAgent::Hello(hello) = within(receive.expect()).await.unwrap() else { panic!("no Hello") };
        let (epoch, lease, heartbeat) = (self.epoch, PATIENCE, Duration::from_secs(1));
        let (ahead, agent) = (self.ahead, self.agent);
        Peer {
            connection,
            hello,
            send,
            receive,
            epoch,
            lease,
            heartbeat,
            ahead,
            agent,
            heard: VecDeque::new(),
        }
    }

    /// An agent in `folder` that has joined, and its first session, welcomed.
    pub(crate) async fn join(&self, folder: &TempDir) -> (Agent, Peer) {
        let agent = start(self.config(folder));
        self.enrol(None).await;
        let mut peer = self.meet().await;
        assert!(peer.hello.attempts.is_empty());
        peer.welcome(|_| panic!("nothing is held")).await;
        (agent, peer)
    }
}

/// What a coordinator of this epoch gives as proof of it.
pub(crate) fn proof(epoch: Epoch) -> EpochProof {
    EpochProof::from_bytes([epoch.0 as u8; 32])
}

fn now(ahead: i64) -> Timestamp {
    Timestamp::from_micros(Clock::start().now().as_micros() + ahead)
}

pub(crate) fn state(folder: &TempDir) -> PathBuf {
    folder.path().join("state")
}

pub(crate) fn start(config: AgentConfig) -> Agent {
    let (stop, stopped) = watch::channel(Stop::Run);
    Agent { stop, task: tokio::spawn(packrun_agent::run(config, stopped)) }
}

impl Agent {
    pub(crate) async fn stop(self, stop: Stop) {
        self.stop.send_replace(stop);
        within(self.task).await.unwrap().unwrap();
    }

    /// The error it ends with by itself.
    pub(crate) async fn error(self) -> AgentError {
        within(self.task).await.unwrap().unwrap_err()
    }
}

impl Peer {
    pub(crate) async fn welcome(&mut self, answer: impl Fn(AttemptId) -> HeldAnswer) {
        let attempts: Vec<_> =
            self.hello.attempts.iter().map(|held| (held.attempt, answer(held.attempt))).collect();
        let welcome = Welcome {
            minor: MINOR,
            agent: self.agent,
            name: "host-1-2".parse().unwrap(),
            api: "http://127.0.0.1:7080".try_into().unwrap(),
            lease: self.lease,
            heartbeat: self.heartbeat,
            attempts: attempts.try_into().unwrap(),
            proof: proof(self.epoch),
            refused: Labels::default(),
        };
        self.say(ToAgent::Welcome(welcome)).await;
    }

    pub(crate) async fn say(&mut self, message: ToAgent) {
        let frame = FromCoordinator { epoch: self.epoch, message };
        self.send.send(&frame).await.unwrap();
    }

    /// What the agent says next, beside its pings, which are answered.
    pub(crate) async fn next(&mut self) -> Result<FromAgent, ReadError> {
        if let Some(message) = self.heard.pop_front() {
            return Ok(message);
        }
        loop {
            match within(self.receive.expect()).await? {
                FromAgent::Ping(ping) => self.pong(ping).await,
                message => return Ok(message),
            }
        }
    }

    /// Answers a ping.
    pub(crate) async fn pong(&mut self, ping: Ping) {
        self.say(ToAgent::Pong { sent: ping.sent, answered: now(self.ahead) }).await;
    }

    /// The code that the agent closes the connection with.
    pub(crate) async fn closed(&self) -> Option<CloseCode> {
        match within(self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => CloseCode::from_wire(close.error_code.into()),
            other => panic!("{other}"),
        }
    }

    /// Assigns a job and gives its attempt.
    pub(crate) async fn assign(&mut self, definition: Definition) -> AttemptId {
        let assignment = assignment(definition);
        let attempt = assignment.attempt;
        self.say(ToAgent::Assign(vec![assignment])).await;
        attempt
    }

    /// Waits for an attempt's start.
    pub(crate) async fn started(&mut self, wanted: AttemptId) {
        match self.next().await.unwrap() {
            FromAgent::Started { attempt, .. } => assert_eq!(attempt, wanted),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for an attempt's end; its start may come before.
    pub(crate) async fn ended(&mut self, wanted: AttemptId) -> Outcome {
        loop {
            match self.next().await.unwrap() {
                FromAgent::Started { attempt, .. } => assert_eq!(attempt, wanted),
                FromAgent::Draining(_) => {}
                FromAgent::Ended { attempt, outcome } => {
                    assert_eq!(attempt, wanted);
                    return outcome;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next log stream. No log comes before a ping was answered, so pings are.
    pub(crate) async fn log_stream(&mut self) -> RecvStream {
        within(async {
            loop {
                let message = tokio::select! {
                    stream = self.connection.accept_uni() => return stream.unwrap(),
                    message = self.receive.expect() => message.unwrap(),
                };
                match message {
                    FromAgent::Ping(ping) => self.pong(ping).await,
                    message => self.heard.push_back(message),
                }
            }
        })
        .await
    }

    /// The next log stream, to its end.
    pub(crate) async fn log(&mut self) -> Log {
        let mut reader = FrameReader::new(self.log_stream().await);
        let StreamHeader::Log { attempt, from } = within(reader.expect()).await.unwrap() else {
            panic!("no log");
        };
        let mut log = Log { attempt, from, blocks: Vec::new() };
        let mut buffer = BytesMut::new();
        while let Some(bytes) = within(reader.raw()).await.unwrap() {
            buffer.extend_from_slice(&bytes);
            while let Some(block) = Block::take(&mut buffer).unwrap() {
                log.blocks.push(block);
            }
        }
        assert!(buffer.is_empty(), "a stream ends with a whole block");
        log
    }

    /// The next stream that is no log: its header, and both ends.
    pub(crate) async fn stream(&self) -> (StreamHeader, FrameWriter, FrameReader) {
        let (send, receive) = within(self.connection.accept_bi()).await.unwrap();
        let mut receive = FrameReader::new(receive);
        (within(receive.expect()).await.unwrap(), FrameWriter::new(send), receive)
    }

    /// The next upload's header, and both ends.
    pub(crate) async fn upload(&self) -> (Upload, FrameWriter, FrameReader) {
        match self.stream().await {
            (StreamHeader::Upload(upload), send, receive) => (upload, send, receive),
            (other, ..) => panic!("{other:?}"),
        }
    }

    /// Goes away without a word, as a network does.
    pub(crate) fn vanish(self) {
        self.connection.close(CloseCode::Unavailable.to_wire().into(), b"");
    }
}

impl Log {
    /// The lines, each with its number.
    pub(crate) fn lines(&self) -> Vec<(u64, String)> {
        let entries = self.blocks.iter().flat_map(Block::entries);
        entries.map(|entry| (entry.seq, String::from_utf8_lossy(&entry.text).into_owned())).collect()
    }
}
