//! A small coordinator on real QUIC, whose every word the test decides, and a real agent that serves it.

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
    Assignment, FromAgent, FromCoordinator, HeldAnswer, Hello, MINOR, ToAgent, Welcome,
};
use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber, Epoch, JobRunId, PackRunId, TokenId};
use packrun_protocol::job::{Action, Definition};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::quic::{
    Admission, FrameReader, FrameWriter, Peer as Who, ReadError, ServerIdentity, let_in, peer, server_config,
};
use packrun_protocol::state::{Outcome, Reason};
use packrun_protocol::stream::{CloseCode, Enrol, EnrolAnswer, JoinSecret, StreamHeader, Upload};
use packrun_protocol::time::Clock;
use quinn::{Connection, Endpoint};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
    pub(crate) valid: Duration,
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
    agent: AgentId,
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
        let now = Clock::start().now();
        let (ca, _) = Authority::create(now).unwrap();
        let identity = ca.issue_coordinator(now, VALID).unwrap();
        let gate = Arc::new(Gate::default());
        let server = ServerIdentity { identity: &identity, ca_pem: ca.certificate_pem() };
        let endpoint = Endpoint::server(server_config(&server, gate.clone()).unwrap(), LOOPBACK).unwrap();
        let (agent, secret) = (AgentId::generate(), JoinSecret([7; 32]));
        let token = TokenId::from_bytes([3; 16]);
        Self { ca, endpoint, gate, epoch: Epoch(5), agent, valid: VALID, token, secret }
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
        let connection = self.incoming().await;
        assert_eq!(peer(&connection), Some(Who::Joining));
        let (send, receive) = within(connection.accept_bi()).await.unwrap();
        let (mut send, mut receive) = (FrameWriter::new(send), FrameReader::new(receive));
        let enrol: Enrol = within(receive.expect()).await.unwrap();
        assert_eq!((enrol.token, enrol.secret), (self.token().id, self.secret));
        let answer = match refusal {
            Some(words) => EnrolAnswer::Refused(Reason::new(words)),
            None => EnrolAnswer::Granted {
                agent: self.agent,
                certificate: self.certificate(enrol.request.as_str()),
                ca: BoundedText::try_from(self.ca.certificate_pem()).unwrap(),
            },
        };
        send.send(&answer).await.unwrap();
        send.stream().finish().unwrap();
        within(connection.closed()).await;
        enrol
    }

    pub(crate) fn certificate(
        &self,
        request: &str,
    ) -> BoundedText<{ packrun_protocol::limit::CERTIFICATE_BYTES_MAX }> {
        let issued = self.ca.issue_agent(request, self.agent, Clock::start().now(), self.valid).unwrap();
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
        Peer { connection, hello, send, receive, epoch: self.epoch, lease: PATIENCE, agent: self.agent }
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
            lease: self.lease,
            heartbeat: Duration::from_secs(1),
            attempts: attempts.try_into().unwrap(),
        };
        self.say(ToAgent::Welcome(welcome)).await;
    }

    pub(crate) async fn say(&mut self, message: ToAgent) {
        let frame = FromCoordinator { epoch: self.epoch, message };
        self.send.send(&frame).await.unwrap();
    }

    /// What the agent says next, beside its pings, which are answered.
    pub(crate) async fn next(&mut self) -> Result<FromAgent, ReadError> {
        loop {
            match within(self.receive.expect()).await? {
                FromAgent::Ping(ping) => {
                    let pong = ToAgent::Pong { sent: ping.sent, answered: Clock::start().now() };
                    self.say(pong).await;
                }
                message => return Ok(message),
            }
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

    /// The next log stream, to its end.
    pub(crate) async fn log(&self) -> Log {
        let mut reader = FrameReader::new(within(self.connection.accept_uni()).await.unwrap());
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

pub(crate) fn script(text: &str) -> Definition {
    Definition {
        action: Action::Script(text.to_owned()),
        env: vec![],
        workdir: None,
        timeout: None,
        artifacts: vec![],
        inputs: vec![],
        log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
    }
}

pub(crate) fn assignment(definition: Definition) -> Assignment {
    Assignment {
        attempt: AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST },
        pack_run: PackRunId::generate(),
        pack: "demo".parse().unwrap(),
        version: 1,
        key: "test".parse().unwrap(),
        definition: Arc::new(definition),
    }
}
