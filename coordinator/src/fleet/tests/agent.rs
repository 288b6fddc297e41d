//! An agent that says whatever a test wants.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use packrun_protocol::block::{BlockBuilder, LogStream};
use packrun_protocol::cert::{self, COORDINATOR_NAME};
use packrun_protocol::control::{
    Assignment, Capacity, FromAgent, FromCoordinator, HeldAttempt, Hello, Isolation, Slots, ToAgent, Welcome,
};
use packrun_protocol::id::{AgentId, AttemptId, Digest, Epoch};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::name::Labels;
use packrun_protocol::quic::{
    FrameReader, FrameWriter, JoinConfig, MemberConfig, join_config, member_config,
};
use packrun_protocol::state::{ExitStatus, Outcome, Verdict};
use packrun_protocol::stream::{
    CloseCode, Content, Enrol, EnrolAnswer, FileMode, StreamHeader, Upload, UploadAnswer, UploadEnd,
};
use packrun_protocol::time::Timestamp;
use quinn::{Connection, ConnectionError, Endpoint};

use super::scene::{PATIENCE, name};

pub(super) fn client() -> Endpoint {
    Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// An identity, and the address of the coordinator that gave it.
pub(super) struct Agent {
    pub(super) id: AgentId,
    pub(super) identity: cert::Identity,
    pub(super) ca: String,
    address: SocketAddr,
    endpoint: Endpoint,
}

/// Asks to be enrolled, and gives the answer and what a good one makes.
pub(super) async fn ask_to_enrol(
    address: SocketAddr,
    token: &JoinToken,
    request: &str,
) -> Result<EnrolAnswer, String> {
    let endpoint = client();
    let config = join_config(JoinConfig { ca: token.ca }).unwrap();
    let connecting = endpoint.connect_with(config, address, COORDINATOR_NAME).unwrap();
    let connection = connecting.await.map_err(|error| error.to_string())?;
    let (send, receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    let enrol = Enrol {
        token: token.id,
        secret: token.secret,
        request: request.try_into().unwrap(),
        name: name("builder"),
    };
    let mut writer = FrameWriter::new(send);
    writer.send(&enrol).await.map_err(|error| error.to_string())?;
    FrameReader::new(receive).expect().await.map_err(|error| error.to_string())
}

impl Agent {
    pub(super) async fn enrol(address: SocketAddr, token: &JoinToken) -> Result<Self, String> {
        let key_pem = cert::generate_key().unwrap();
        let request = cert::request(&key_pem).unwrap();
        match ask_to_enrol(address, token, &request).await? {
            EnrolAnswer::Granted { agent, certificate, ca } => Ok(Self {
                id: agent,
                identity: cert::Identity { certificate_pem: certificate.as_str().into(), key_pem },
                ca: ca.as_str().into(),
                address,
                endpoint: client(),
            }),
            EnrolAnswer::Refused(reason) => Err(reason.to_string()),
        }
    }

    pub(super) fn at(&mut self, address: SocketAddr) {
        self.address = address;
    }

    pub(super) async fn dial(&self) -> Result<Connection, ConnectionError> {
        let member = MemberConfig { identity: &self.identity, ca_pem: &self.ca };
        let config = member_config(&member).unwrap();
        self.endpoint.connect_with(config, self.address, COORDINATOR_NAME).unwrap().await
    }

    pub(super) fn hello(&self, slots: u32) -> Hello {
        Hello {
            minor: 0,
            version: "test".try_into().unwrap(),
            labels: Labels::default(),
            capacity: Capacity {
                slots: Slots::try_from(slots).unwrap(),
                cpu_millis: 64_000,
                memory_bytes: 1 << 36,
            },
            draining: false,
            epoch: Epoch(0),
            attempts: Vec::new().try_into().unwrap(),
            proof: None,
            isolation: Isolation::Subreaper,
        }
    }

    pub(super) async fn connect(&self, slots: u32) -> Link {
        self.connect_with(self.hello(slots)).await.unwrap()
    }

    pub(super) async fn connect_holding(&self, slots: u32, held: Vec<HeldAttempt>) -> Link {
        let attempts = held.try_into().unwrap();
        self.connect_with(Hello { attempts, ..self.hello(slots) }).await.unwrap()
    }

    /// A session that was welcomed, or what the coordinator closed the connection with.
    pub(super) async fn connect_with(&self, hello: Hello) -> Result<Link, ConnectionError> {
        let connection = self.dial().await?;
        let (send, receive) = connection.open_bi().await?;
        let (mut writer, reader) = (FrameWriter::new(send), FrameReader::new(receive));
        writer.push(&StreamHeader::Control).unwrap();
        writer.push(&FromAgent::Hello(hello)).unwrap();
        // What a refusal does to the stream is told by the connection.
        let _ = writer.flush().await;
        let mut link = Link { connection, reader, writer, welcome: None };
        match link.next().await {
            Some(ToAgent::Welcome(welcome)) => {
                link.welcome = Some(welcome);
                Ok(link)
            }
            Some(other) => panic!("{other:?} instead of a welcome"),
            None => Err(link.connection.closed().await),
        }
    }
}

/// A session.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) reader: FrameReader,
    pub(super) writer: FrameWriter,
    pub(super) welcome: Option<Welcome>,
}

impl Link {
    /// What the coordinator says next; `None` when the connection is over.
    pub(super) async fn next(&mut self) -> Option<ToAgent> {
        let next = tokio::time::timeout(PATIENCE, self.reader.next::<FromCoordinator>());
        let frame = next.await.expect("the coordinator says something").ok()??;
        Some(frame.message)
    }

    /// What the coordinator says that `pick` waits for. Everything before it is passed over.
    pub(super) async fn until<T>(&mut self, mut pick: impl FnMut(ToAgent) -> Option<T>) -> T {
        loop {
            let message = self.next().await.expect("the session lives");
            if let Some(picked) = pick(message) {
                return picked;
            }
        }
    }

    pub(super) async fn say(&mut self, message: &FromAgent) {
        self.writer.send(message).await.unwrap();
    }

    pub(super) async fn assigned(&mut self) -> Vec<Assignment> {
        self.until(|message| if let ToAgent::Assign(list) = message { Some(list) } else { None }).await
    }

    pub(super) async fn assigned_one(&mut self) -> Assignment {
        let mut list = self.assigned().await;
        assert_eq!(list.len(), 1);
        list.remove(0)
    }

    pub(super) async fn settled(&mut self, attempt: AttemptId) {
        self.until(|message| {
            matches!(message, ToAgent::Settled(list) if list.contains(&attempt)).then_some(())
        })
        .await;
    }

    /// Waits until all entries before `next` are acknowledged; says how many acknowledgements that took.
    pub(super) async fn acknowledged(&mut self, attempt: AttemptId, next: u64) -> usize {
        let mut acks = 0;
        self.until(|message| {
            let ToAgent::LogAck(list) = message else { return None };
            acks += 1;
            list.iter().any(|(of, upto)| *of == attempt && *upto >= next).then_some(())
        })
        .await;
        acks
    }

    pub(super) async fn end(&mut self, attempt: AttemptId, outcome: Outcome) {
        self.say(&FromAgent::Ended { attempt, outcome }).await;
    }

    /// Opens a log stream.
    pub(super) async fn log(&self, attempt: AttemptId, from: u64) -> FrameWriter {
        let mut writer = FrameWriter::new(self.connection.open_uni().await.unwrap());
        writer.send(&StreamHeader::Log { attempt, from }).await.unwrap();
        writer
    }

    /// Sends a header on a stream of its own, to be answered.
    pub(super) async fn ask(&self, header: &StreamHeader) -> (FrameWriter, FrameReader) {
        let (send, receive) = self.connection.open_bi().await.unwrap();
        let mut writer = FrameWriter::new(send);
        writer.send(header).await.unwrap();
        (writer, FrameReader::new(receive))
    }

    /// Sends a file; says how that ended.
    pub(super) async fn upload(&self, attempt: AttemptId, path: &str, bytes: &[u8]) -> UploadEnd {
        let header = StreamHeader::Upload(upload(attempt, path, bytes));
        let (mut writer, mut reader) = self.ask(&header).await;
        match reader.expect::<UploadAnswer>().await.unwrap() {
            UploadAnswer::Have => UploadEnd::Committed,
            UploadAnswer::Refused(reason) => UploadEnd::Refused(reason),
            UploadAnswer::SendFrom(offset) => {
                writer.stream().write_all(&bytes[usize::try_from(offset).unwrap()..]).await.unwrap();
                writer.stream().finish().unwrap();
                reader.expect().await.unwrap()
            }
        }
    }

    /// What the coordinator closed the connection with.
    pub(super) async fn closed(&self) -> (CloseCode, String) {
        let closed = tokio::time::timeout(PATIENCE, self.connection.closed());
        parting(&closed.await.expect("the coordinator closes the connection"))
    }
}

pub(super) fn parting(error: &ConnectionError) -> (CloseCode, String) {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = CloseCode::from_wire(close.error_code.into_inner()).unwrap();
            (code, String::from_utf8_lossy(&close.reason).into_owned())
        }
        other => panic!("the connection ended by {other}"),
    }
}

pub(super) fn upload(attempt: AttemptId, path: &str, bytes: &[u8]) -> Upload {
    let content = Content { digest: Digest::of(bytes), size: bytes.len() as u64, mode: FileMode::of(0o644) };
    Upload { attempt, name: None, path: path.parse().unwrap(), content }
}

/// Blocks of one entry each, with the entries' numbers as text.
pub(super) fn blocks(attempt: AttemptId, numbers: std::ops::Range<u64>) -> Vec<u8> {
    let mut builder = BlockBuilder::new(attempt, numbers.start);
    let mut bytes = Vec::new();
    for number in numbers {
        let time = Timestamp::from_micros(1_795_560_636_000_000 + i64::try_from(number).unwrap());
        builder.push(time, LogStream::Stdout, false, number.to_string().as_bytes()).unwrap();
        bytes.extend_from_slice(builder.finish().unwrap().as_bytes());
    }
    bytes
}

pub(super) fn success(entries: u64, artifacts: u32) -> Outcome {
    Outcome {
        verdict: Verdict::Succeeded,
        exit: Some(ExitStatus::Code(0)),
        reason: None,
        ended_at: Timestamp::from_micros(1_795_560_636_000_000),
        ran_for: Duration::from_millis(3),
        entries,
        artifacts,
        invalid_bytes: 0,
    }
}
