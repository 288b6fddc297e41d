//! What the targets begin with: real messages, blocks, journals, packs and tokens. Certificates and tokens are random,
//! so writing them again changes them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use packrun_agent::executor::ipc::{Order, Request};
use packrun_agent::spool::{Journal, JournalConfig, Record, Started};
use packrun_coordinator::api::token::ApiToken;
use packrun_coordinator::logs::{Extent, Position, encode_extents};
use packrun_coordinator::pack::{Format, Limits, check};
use packrun_protocol::block::{Block, BlockBuilder, LogStream};
use packrun_protocol::cert::{self, Authority, der_of};
use packrun_protocol::control::{FromAgent, ToAgent};
use packrun_protocol::id::{AttemptId, AttemptNumber, Digest, Epoch, JobRunId, TokenId};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::state::Reason;
use packrun_protocol::stream::JoinSecret;
use packrun_protocol::time::Timestamp;
use packrun_protocol::{codec, frame};
use serde::Serialize;

use crate::samples;

const THREE_JOBS: &str = include_str!("../../deploy/examples/three-jobs.yaml");
const FULL_YAML: &str = include_str!("seeds/full.yaml");
const FULL_TOML: &str = include_str!("seeds/full.toml");
const FULL_JSON: &str = include_str!("seeds/full.json");

type Seed = (&'static str, String, Vec<u8>);

/// Target, name and bytes of each.
pub(crate) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, choice: u8, data: &[u8]| {
        let data = [&[choice], data].concat();
        seeds.push((target, format!("seed-{}", name.replace('.', "-")), data));
    };
    messages(&mut add);
    for (choice, name, text) in [
        (0, "three-jobs", THREE_JOBS),
        (0, "yaml", FULL_YAML),
        (1, "toml", FULL_TOML),
        (2, "json", FULL_JSON),
    ] {
        add("packs", name, choice, text.as_bytes());
    }
    for (name, block) in [("few", block(3)), ("one", block(1)), ("many", block(40))] {
        add("blocks", name, 0, block.as_bytes());
        add("blocks", &format!("{name}.sealed"), 1, block.as_bytes());
    }
    certificates(&mut add);
    texts(&mut add);
    seeds.push(("journal", "seed-life".into(), journal()));
    seeds.push(("extents", "seed-three".into(), encode_extents(&extents())));
    for (name, text) in [
        ("plain", "v\0w\0echo ${{ params.x }} ${{matrix.y}}"),
        ("escape", "a; $(b)\0w\0$$${{ x }} $${{${{ params.x }}}} ${ {{ }}"),
        ("unclosed", "\0y\0${{ params.x } ${{ env.z }}"),
    ] {
        seeds.push(("expressions", format!("seed-{name}"), text.as_bytes().to_vec()));
    }
    seeds
}

fn messages(add: &mut impl FnMut(&'static str, &str, u8, &[u8])) {
    fn each<T: Serialize>(
        add: &mut impl FnMut(&'static str, &str, u8, &[u8]),
        choice: u8,
        values: Vec<(&'static str, T)>,
    ) {
        for (name, value) in values {
            add("messages", name, choice, &codec::encode(&value).unwrap());
        }
    }
    fn framed<T: Serialize>(values: Vec<(&'static str, T)>) -> Vec<u8> {
        let mut bytes = vec![6];
        values.iter().for_each(|(_, value)| frame::write(&mut bytes, value).unwrap());
        bytes
    }
    each(add, 0, samples::from_agent());
    each(add, 1, samples::to_agent());
    each(add, 2, samples::headers());
    each(add, 3, samples::upload_answers());
    each(add, 4, samples::upload_ends());
    each(add, 5, samples::input_answers());
    each(add, 6, samples::download_answers());
    each(add, 7, samples::enrols());
    each(add, 8, samples::enrol_answers());
    each(add, 9, orders());
    each(add, 10, requests());
    let pack = check(Format::Yaml, FULL_YAML.as_bytes(), &Limits::default()).unwrap();
    let arguments = pack.arguments(&Default::default()).unwrap();
    let plan = pack.plan(&arguments, &Limits::default(), JobRunId::generate).unwrap();
    add("messages", "plan", 11, &codec::encode_record(&plan).unwrap());
    add("frames", "from-agent", 0, &framed(samples::from_agent()));
    add("frames", "to-agent", 1, &framed(samples::to_agent()));
    add("frames", "headers", 2, &framed(samples::headers()));
}

fn orders() -> Vec<(&'static str, Order)> {
    let assigned = samples::to_agent().into_iter().find_map(|(_, sent)| match sent.message {
        ToAgent::Assign(assignments) => assignments.into_iter().next(),
        _ => None,
    });
    let api = "http://127.0.0.1:7080".try_into().unwrap();
    let start =
        Order::Start { epoch: Epoch(3), agent: "a".parse().unwrap(), api, assignment: assigned.unwrap() };
    let collected = Order::Collected { attempt: attempt(), result: Ok(2), notes: vec!["skipped".into()] };
    vec![
        ("order.start", start),
        ("order.cancel", Order::Cancel { attempt: attempt(), reason: Reason::new("by ada") }),
        ("order.forget", Order::Forget(vec![attempt()])),
        ("order.log-ack", Order::LogAck(vec![(attempt(), 12)])),
        ("order.prepared", Order::Prepared(attempt(), Err(Reason::new("no such input")))),
        ("order.collected", collected),
        ("order.stop-all", Order::StopAll),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let outcome = samples::from_agent().into_iter().find_map(|(_, message)| match message {
        FromAgent::Ended { outcome, .. } => Some(outcome),
        _ => None,
    });
    let (attempt, workspace) = (attempt(), "/var/lib/packrun/w".into());
    vec![
        ("request.prepare", Request::Prepare { attempt, workspace, inputs: Vec::new() }),
        ("request.failed", Request::Failed { attempt, outcome: outcome.unwrap() }),
    ]
}

fn certificates(add: &mut impl FnMut(&'static str, &str, u8, &[u8])) {
    let (ca, _) = Authority::create(time()).unwrap();
    let request = cert::request(&cert::generate_key().unwrap()).unwrap();
    let agent = packrun_protocol::id::AgentId::from_bytes([7; 16]);
    let certificate = ca.issue_agent(&request, agent, time(), Duration::from_secs(3600)).unwrap();
    let der = der_of(&certificate, "certificate").unwrap();
    let body: String = request.lines().filter(|line| !line.starts_with('-')).collect();
    add("certificates", "agent", 0, &der);
    add("certificates", "request", 1, &STANDARD.decode(body).unwrap());
    add("certificates", "agent-der", 2, &der);
    add("certificates", "agent-pem", 3, certificate.as_bytes());
    add("certificates", "request-pem", 3, request.as_bytes());
}

fn texts(add: &mut impl FnMut(&'static str, &str, u8, &[u8])) {
    let join =
        JoinToken { ca: Digest::of(b"ca"), id: TokenId::from_bytes([3; 16]), secret: JoinSecret([9; 32]) };
    let fields = [&[1], &join.ca.as_bytes()[..], &join.id.to_bytes(), &join.secret.0].concat();
    add("tokens", "join", 0, join.to_string().as_bytes());
    add("tokens", "join-fields", 1, &fields);
    add("tokens", "api", 0, ApiToken::generate().unwrap().to_string().as_bytes());
    add("tokens", "api-fields", 2, &[&[1][..], &[5; 48]].concat());
    for (choice, name, text) in [
        (0, "name", "build-and-test"),
        (1, "value", "linux/x86"),
        (2, "key", "test[shard=1,os=linux]"),
        (3, "id", "01890a5d-ac96-774b-bcce-b302099a8057"),
        (4, "digest", &Digest::of(b"").to_string()),
        (5, "time", "2026-11-24T12:30:00.123456Z"),
        (5, "time-offset", "2016-12-31T23:59:60+01:00"),
        (6, "labels", r#"{"os":"linux","gpu/cuda":"12.4"}"#),
    ] {
        add("names", name, choice, text.as_bytes());
    }
    for (choice, name, fields) in [
        (1, "plain", ["out/app", "out/app", "*.log", "out/app", "bin/app", "app"]),
        (2, "glob", ["a/b/c.xml", "**/*.xml", "a/{b,d}/[a-c].x?l", "reports", "to", "reports"]),
        (3, "folder", ["target/x/y", "target", "target/**/y", "target", "in", "app"]),
        (0, "outside", ["a/../b", "../*", "/etc/*", "..", "a\\b", ""]),
    ] {
        add("paths", name, choice, fields.join("\0").as_bytes());
    }
}

fn attempt() -> AttemptId {
    AttemptId { job_run: JobRunId::from_bytes([1; 16]), number: AttemptNumber::FIRST }
}

fn time() -> Timestamp {
    Timestamp::from_micros(1_795_560_636_123_456)
}

fn block(entries: u32) -> Block {
    let mut builder = BlockBuilder::new(attempt(), 7);
    for number in 0..entries {
        let (stream, text) =
            [(LogStream::Stdout, "compiling"), (LogStream::Stderr, ""), (LogStream::System, "é")]
                [number as usize % 3];
        builder
            .push(time().shifted(i64::from(number) * 1000), stream, number % 2 == 0, text.as_bytes())
            .unwrap();
    }
    builder.finish().unwrap()
}

fn extents() -> Vec<Extent> {
    let extent = |number: u64| Extent {
        at: Position { segment: 1 + number / 2, offset: 64 + number * 900 },
        length: 800,
        bytes: 400 + number as u32,
        first_seq: number * 20,
        entries: 20,
        first_arrival: number * 3,
        arrivals: 2,
        first_time: time().shifted(number as i64 * 5_000_000),
        last_time: time().shifted(number as i64 * 5_000_000 + 70),
    };
    (0..3).map(extent).collect()
}

/// A journal of an attempt from its assignment to its end, as the target takes it: a byte of flags, a length and a
/// record's kind and payload.
fn journal() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), JournalConfig::default()).unwrap();
    let outcome = match requests().pop() {
        Some((_, Request::Failed { outcome, .. })) => outcome,
        _ => unreachable!("the last request is a failure"),
    };
    let started = Started { attempt: attempt(), pid: 7, start_ticks: 99, at: time() };
    let records = [
        Record::Assigned { attempt: attempt(), epoch: Epoch(3) },
        Record::Started(started),
        Record::Block(block(3)),
        Record::Ended { attempt: attempt(), outcome },
        Record::Settled(attempt()),
    ];
    journal.append(records).unwrap();
    let file = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    let bytes = std::fs::read(file).unwrap();
    let (mut rest, mut seed) = (&bytes[8..], Vec::new());
    while let Some((prefix, behind)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes(prefix[..4].try_into().unwrap()) as usize;
        seed.push(0);
        seed.extend_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
        seed.extend_from_slice(&behind[..length]);
        rest = &behind[length..];
    }
    seed
}
