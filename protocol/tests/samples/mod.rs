//! One value of every message, for the tests of the wire.
#![expect(clippy::unwrap_used, reason = "test values are valid")]

use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::control::*;
use packrun_protocol::id::*;
use packrun_protocol::job::*;
use packrun_protocol::name::Labels;
use packrun_protocol::state::*;
use packrun_protocol::stream::*;
use packrun_protocol::time::{ClockOffset, Timestamp};

fn attempt() -> AttemptId {
    AttemptId { job_run: JobRunId::from_bytes([1; 16]), number: AttemptNumber::FIRST.next() }
}

fn time() -> Timestamp {
    Timestamp::from_micros(1_795_560_636_123_456)
}

fn content() -> Content {
    Content { digest: Digest::of(b"abc"), size: 3, mode: FileMode::of(0o755) }
}

fn definition() -> Definition {
    Definition {
        action: Action::Script("make".into()),
        env: vec![("CC".into(), "gcc".into())],
        workdir: Some("src".parse().unwrap()),
        timeout: Some(Duration::from_secs(600)),
        artifacts: vec![ArtifactRule {
            path: "out/**".into(),
            name: Some("out".parse().unwrap()),
            optional: true,
        }],
        inputs: vec![InputRule {
            from: "compile".parse().unwrap(),
            artifact: "app".into(),
            to: None,
            optional: false,
        }],
        log_bytes_max: 1 << 30,
    }
}

/// Everything an agent says.
pub(crate) fn from_agent() -> Vec<(&'static str, FromAgent)> {
    let labels = Labels::new([("os".to_owned(), "linux".to_owned())]).unwrap();
    let outcome = Outcome {
        verdict: Verdict::Failed,
        exit: Some(ExitStatus::Signal(9)),
        reason: Some(Reason::new("no such input")),
        ended_at: time(),
        ran_for: Duration::from_millis(1500),
        entries: 12,
        artifacts: 1,
        invalid_bytes: 3,
    };
    let hello = Hello {
        minor: MINOR,
        version: "0.1.0".try_into().unwrap(),
        labels,
        capacity: Capacity { slots: 8.try_into().unwrap(), cpu_millis: 2000, memory_bytes: 1 << 30 },
        draining: false,
        epoch: Epoch(3),
        attempts: vec![
            HeldAttempt { attempt: attempt(), phase: HeldPhase::Assigned },
            HeldAttempt { attempt: attempt(), phase: HeldPhase::Running(time()) },
            HeldAttempt { attempt: attempt(), phase: HeldPhase::Ended },
        ]
        .try_into()
        .unwrap(),
        proof: Some(EpochProof::from_bytes([8; 32])),
        isolation: Isolation::Subreaper,
    };
    let offset = Some(ClockOffset { micros: -7, error_micros: 40 });
    vec![
        ("agent.hello", FromAgent::Hello(hello)),
        ("agent.started", FromAgent::Started { attempt: attempt(), at: time() }),
        ("agent.ended", FromAgent::Ended { attempt: attempt(), outcome }),
        ("agent.ping", FromAgent::Ping(Ping { sent: time(), offset })),
        ("agent.renew", FromAgent::Renew("csr".try_into().unwrap())),
        ("agent.draining", FromAgent::Draining(true)),
    ]
}

/// Everything a coordinator says.
pub(crate) fn to_agent() -> Vec<(&'static str, FromCoordinator)> {
    let welcome = Welcome {
        minor: MINOR,
        agent: AgentId::from_bytes([2; 16]),
        name: "builder-1".parse().unwrap(),
        lease: Duration::from_secs(60),
        heartbeat: Duration::from_secs(5),
        api: "https://ci.example.org:7080".try_into().unwrap(),
        attempts: vec![
            (attempt(), HeldAnswer::GoOn { log_from: 12 }),
            (attempt(), HeldAnswer::Fenced),
            (attempt(), HeldAnswer::Settled),
        ]
        .try_into()
        .unwrap(),
        proof: EpochProof::from_bytes([8; 32]),
        refused: Labels::new([("gpu".to_owned(), "yes".to_owned())]).unwrap(),
    };
    let assignment = Assignment {
        attempt: attempt(),
        pack_run: PackRunId::from_bytes([4; 16]),
        pack: "build".parse().unwrap(),
        version: 2,
        key: "test[shard=1]".parse().unwrap(),
        definition: Arc::new(definition()),
    };
    let reason = || Reason::new("canceled by ada");
    let messages = vec![
        ("coordinator.welcome", ToAgent::Welcome(welcome)),
        ("coordinator.assign", ToAgent::Assign(vec![assignment])),
        ("coordinator.cancel", ToAgent::Cancel { attempt: attempt(), reason: reason() }),
        ("coordinator.fence", ToAgent::Fence(attempt())),
        ("coordinator.settled", ToAgent::Settled(vec![attempt()])),
        ("coordinator.log_ack", ToAgent::LogAck(vec![(attempt(), 12)])),
        ("coordinator.pong", ToAgent::Pong { sent: time(), answered: time() }),
        ("coordinator.certificate", ToAgent::Certificate("cert".try_into().unwrap())),
        ("coordinator.drain", ToAgent::Drain(false)),
        ("coordinator.goodbye", ToAgent::Goodbye { restarting: true, reason: reason() }),
        (
            "coordinator.not_leader",
            ToAgent::NotLeader(vec!["b:7443".try_into().unwrap()].try_into().unwrap()),
        ),
    ];
    messages.into_iter().map(|(name, message)| (name, FromCoordinator { epoch: Epoch(3), message })).collect()
}

/// Every header of a stream.
pub(crate) fn headers() -> Vec<(&'static str, StreamHeader)> {
    let upload = Upload {
        attempt: attempt(),
        name: Some("app".parse().unwrap()),
        path: "out/app".parse().unwrap(),
        content: content(),
    };
    vec![
        ("stream.control", StreamHeader::Control),
        ("stream.log", StreamHeader::Log { attempt: attempt(), from: 300 }),
        ("stream.upload", StreamHeader::Upload(upload)),
        ("stream.inputs", StreamHeader::Inputs { attempt: attempt(), input: 1 }),
        (
            "stream.download",
            StreamHeader::Download { attempt: attempt(), digest: content().digest, offset: 70_000 },
        ),
    ]
}

/// The answers on artifact streams.
pub(crate) fn upload_answers() -> Vec<(&'static str, UploadAnswer)> {
    vec![
        ("upload.have", UploadAnswer::Have),
        ("upload.send_from", UploadAnswer::SendFrom(70_000)),
        ("upload.refused", UploadAnswer::Refused(Reason::new("too large"))),
    ]
}

/// The last words on upload streams.
pub(crate) fn upload_ends() -> Vec<(&'static str, UploadEnd)> {
    vec![
        ("upload_end.committed", UploadEnd::Committed),
        ("upload_end.refused", UploadEnd::Refused(Reason::new("its digest is another"))),
    ]
}

/// The answers on input streams.
pub(crate) fn input_answers() -> Vec<(&'static str, InputAnswer)> {
    vec![
        ("input.file", InputAnswer::File { path: "bin/app".parse().unwrap(), content: content() }),
        ("input.end", InputAnswer::End { files: 1 }),
        ("input.refused", InputAnswer::Refused(Reason::new("no such input"))),
    ]
}

/// The answers on download streams.
pub(crate) fn download_answers() -> Vec<(&'static str, DownloadAnswer)> {
    vec![
        ("download.bytes", DownloadAnswer::Bytes(3)),
        ("download.refused", DownloadAnswer::Refused(Reason::new("not yours"))),
    ]
}

/// The request to enrol.
pub(crate) fn enrols() -> Vec<(&'static str, Enrol)> {
    let (token, secret) = (TokenId::from_bytes([5; 16]), JoinSecret([6; 32]));
    let (request, name) = ("csr".try_into().unwrap(), "builder-1".parse().unwrap());
    vec![("enrol", Enrol { token, secret, request, name })]
}

/// The answers to it.
pub(crate) fn enrol_answers() -> Vec<(&'static str, EnrolAnswer)> {
    let agent = AgentId::from_bytes([2; 16]);
    let (certificate, ca) = ("cert".try_into().unwrap(), "ca".try_into().unwrap());
    vec![
        ("enrol.granted", EnrolAnswer::Granted { agent, certificate, ca }),
        ("enrol.refused", EnrolAnswer::Refused(Reason::new("the join token is not valid"))),
    ]
}
