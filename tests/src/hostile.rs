//! An agent that has a real identity, speaks the real protocol by hand, and says whatever a test wants.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use packrun_protocol::block::{Block, BlockBuilder, LogStream};
use packrun_protocol::cert::{self, COORDINATOR_NAME};
use packrun_protocol::control::{
    Assignment, Capacity, FromAgent, FromCoordinator, Hello, Isolation, MINOR, Slots, ToAgent, Welcome,
};
use packrun_protocol::id::{AttemptId, Digest, Epoch};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::name::Labels;
use packrun_protocol::quic::{
    FrameReader, FrameWriter, JoinConfig, MemberConfig, join_config, member_config,
};
use packrun_protocol::state::{ExitStatus, Outcome, Verdict};
use packrun_protocol::stream::{
    CloseCode, Content, Enrol, EnrolAnswer, FileMode, StreamHeader, Upload, UploadAnswer,
};
use packrun_protocol::time::{Clock, Timestamp};
use quinn::{Connection, ConnectionError, Endpoint};

use crate::in_time;
use crate::process::Coordinator;

/// An identity, and where the coordinator is that gave it.
#[derive(Debug)]
pub struct HostileAgent {
    label: (String, String),
    identity: cert::Identity,
    ca: String,
    address: SocketAddr,
    endpoint: Endpoint,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    /// The connection.
    pub connection: Connection,
    /// What the coordinator says.
    pub reader: FrameReader,
    /// What the agent says.
    pub writer: FrameWriter,
    /// The coordinator's first words.
    pub welcome: Welcome,
}

impl HostileAgent {
    /// Enrols one with a new token. It says of itself that it has this label.
    pub async fn enrol(coordinator: &Coordinator, name: &str, key: &str, value: &str) -> Self {
        let token: JoinToken = coordinator.invite().await.parse().unwrap();
        let address = coordinator.agents_address().parse().unwrap();
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let config = join_config(JoinConfig { ca: token.ca }).unwrap();
        let connection = endpoint.connect_with(config, address, COORDINATOR_NAME).unwrap().await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let key_pem = cert::generate_key().unwrap();
        let request = cert::request(&key_pem).unwrap().try_into().unwrap();
        let enrol = Enrol { token: token.id, secret: token.secret, request, name: name.parse().unwrap() };
        FrameWriter::new(send).send(&enrol).await.unwrap();
        let answer = in_time("an enrolment", FrameReader::new(receive).expect()).await.unwrap();
        let EnrolAnswer::Granted { certificate, ca, .. } = answer else { panic!("{answer:?}") };
        let identity = cert::Identity { certificate_pem: certificate.as_str().into(), key_pem };
        let label = (key.to_owned(), value.to_owned());
        Self { label, identity, ca: ca.as_str().into(), address, endpoint }
    }

    /// What an honest agent would say first.
    #[must_use]
    pub fn hello(&self, slots: u32) -> Hello {
        Hello {
            minor: MINOR,
            version: "hostile".try_into().unwrap(),
            labels: Labels::new([self.label.clone()]).unwrap(),
            capacity: Capacity {
                slots: Slots::try_from(slots).unwrap(),
                cpu_millis: u32::MAX,
                memory_bytes: u64::MAX,
            },
            draining: false,
            epoch: Epoch(0),
            attempts: Vec::new().try_into().unwrap(),
            proof: None,
            isolation: Isolation::Subreaper,
        }
    }

    /// A connection on which nothing was said.
    pub async fn dial(&self) -> Connection {
        let member = MemberConfig { identity: &self.identity, ca_pem: &self.ca };
        let config = member_config(&member).unwrap();
        let connecting = self.endpoint.connect_with(config, self.address, COORDINATOR_NAME).unwrap();
        in_time("a handshake", connecting).await.unwrap()
    }

    /// A connection with a control stream on which these bytes were sent. The other end may be closed by then.
    pub async fn begin(&self, bytes: &[u8]) -> (Connection, FrameWriter, FrameReader) {
        let connection = self.dial().await;
        let Ok((send, receive)) = connection.open_bi().await else { panic!("the connection was refused") };
        let (mut writer, reader) = (FrameWriter::new(send), FrameReader::new(receive));
        writer.push(&StreamHeader::Control).unwrap();
        let _ = writer.flush().await;
        let _ = writer.stream().write_all(bytes).await;
        (connection, writer, reader)
    }

    /// A session that was welcomed.
    ///
    /// # Errors
    /// Gives the code that the coordinator closed the connection with, as [`closed`] does.
    pub async fn connect(&self, hello: Hello) -> Result<Session, Option<CloseCode>> {
        let (connection, mut writer, mut reader) = self.begin(&[]).await;
        let _ = writer.send(&FromAgent::Hello(hello)).await;
        match in_time("a welcome", reader.next::<FromCoordinator>()).await {
            Ok(Some(FromCoordinator { message: ToAgent::Welcome(welcome), .. })) => {
                Ok(Session { connection, reader, writer, welcome })
            }
            Ok(Some(other)) => panic!("{other:?} instead of a welcome"),
            Ok(None) | Err(_) => Err(closed(&connection).await),
        }
    }
}

/// The code that the coordinator closes the connection with; `None` when its word was lost, which a flood can do to
/// it, and the coordinator doesn't know the connection any more.
pub async fn closed(connection: &Connection) -> Option<CloseCode> {
    match in_time("the end of a connection", connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => CloseCode::from_wire(close.error_code.into()),
        ConnectionError::Reset => None,
        other => panic!("the connection ended by {other}"),
    }
}

/// The code that the coordinator stops a stream with.
pub async fn stopped(writer: &mut FrameWriter) -> Option<CloseCode> {
    let code = in_time("the end of a stream", writer.stream().stopped()).await.ok()??;
    CloseCode::from_wire(code.into_inner())
}

impl Session {
    /// What the coordinator says next; `None` when the connection is over.
    pub async fn next(&mut self) -> Option<ToAgent> {
        let frame = in_time("a word of the coordinator", self.reader.next::<FromCoordinator>()).await;
        Some(frame.ok()??.message)
    }

    /// Waits until so many attempts were assigned.
    pub async fn assigned(&mut self, count: usize) -> Vec<Assignment> {
        let mut assigned = Vec::new();
        while assigned.len() < count {
            match self.next().await {
                Some(ToAgent::Assign(list)) => assigned.extend(list),
                Some(_) => {}
                None => panic!("the session is over"),
            }
        }
        assigned
    }

    /// Says something, if the connection is still there.
    pub async fn say(&mut self, message: &FromAgent) {
        let _ = self.writer.send(message).await;
    }

    /// Opens a log stream.
    pub async fn log(&self, attempt: AttemptId) -> FrameWriter {
        let mut writer = FrameWriter::new(self.connection.open_uni().await.unwrap());
        writer.send(&StreamHeader::Log { attempt, from: 0 }).await.unwrap();
        writer
    }

    /// Begins an upload of these bytes, of which only `sent` are sent: what the coordinator answered to its header,
    /// and the stream.
    pub async fn upload(
        &self,
        attempt: AttemptId,
        path: &str,
        bytes: &[u8],
        sent: &[u8],
    ) -> (UploadAnswer, FrameWriter, FrameReader) {
        let content =
            Content { digest: Digest::of(bytes), size: bytes.len() as u64, mode: FileMode::of(0o644) };
        let upload = Upload { attempt, name: None, path: path.parse().unwrap(), content };
        let (send, receive) = self.connection.open_bi().await.unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
        writer.send(&StreamHeader::Upload(upload)).await.unwrap();
        let answer = in_time("an answer to an upload", reader.expect()).await.unwrap();
        let _ = writer.stream().write_all(sent).await;
        (answer, writer, reader)
    }
}

/// A block of this many entries of one byte each.
#[must_use]
pub fn block(attempt: AttemptId, first: u64, entries: u64) -> Block {
    let (mut builder, now) = (BlockBuilder::new(attempt, first), Clock::start().now());
    for _ in 0..entries {
        builder.push(now, LogStream::Stdout, false, b"x").unwrap();
    }
    builder.finish().unwrap()
}

/// An end that is as absurd as its types allow, but for what it says of entries and artifacts.
#[must_use]
pub fn absurd_outcome(entries: u64, artifacts: u32) -> Outcome {
    Outcome {
        verdict: Verdict::Succeeded,
        exit: Some(ExitStatus::Signal(u8::MAX)),
        reason: None,
        ended_at: Timestamp::MIN,
        ran_for: Duration::MAX,
        entries,
        artifacts,
        invalid_bytes: u64::MAX,
    }
}
