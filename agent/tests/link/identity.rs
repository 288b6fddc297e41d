//! Joining, staying, being refused.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use packrun_agent::{AgentError, Stop};
use packrun_protocol::cert::AgentCertificate;
use packrun_protocol::control::{FromAgent, HeldAnswer, ToAgent};
use packrun_protocol::id::{AgentId, Epoch, TokenId};
use packrun_protocol::state::Verdict;
use packrun_protocol::stream::CloseCode;

use crate::fake::{Fake, script, start, state, within};

#[tokio::test]
async fn an_identity_is_for_its_owner_alone_and_outlives_the_process() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, _peer) = fake.join(&folder).await;
    agent.stop(Stop::Drain).await;
    for name in ["ca.pem", "agent.pem", "agent.key.pem", "joined"] {
        let meta = std::fs::metadata(state(&folder).join("identity").join(name)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{name}");
    }
    for (path, mode) in [("", 0o700), ("journal", 0o700), ("workspaces", 0o700), ("identity", 0o700)] {
        let meta = std::fs::metadata(state(&folder).join(path)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{path}");
    }
    for segment in std::fs::read_dir(state(&folder).join("journal")).unwrap() {
        assert_eq!(segment.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let mut config = fake.config(&folder);
    config.join_token = None;
    config.join_token_file = Some(folder.path().join("gone"));
    let agent = start(config);
    let peer = fake.meet().await;
    assert_eq!(peer.hello.labels.get("os"), Some("linux"));
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_refused_token_ends_the_agent_with_the_reason() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let agent = start(fake.config(&folder));
    let enrol = fake.enrol(Some("it was used before")).await;
    assert_eq!(enrol.name.as_str(), "host-1");
    let error = agent.error().await;
    assert!(error.is_not_allowed());
    assert!(words(&error).contains("it was used before"), "{}", words(&error));
}

#[tokio::test]
async fn an_agent_tells_its_token_to_nobody_but_the_coordinator_that_made_it() {
    let (fake, other, folder) = (Fake::start(), Fake::start(), tempfile::tempdir().unwrap());
    let mut config = fake.config(&folder);
    config.join_token = Some(other.token());
    let agent = start(config);
    let refused = within(async { fake.endpoint.accept().await.unwrap().await });
    assert!(refused.await.is_err());
    let error = agent.error().await;
    assert!(error.is_not_allowed() && words(&error).contains("another"), "{}", words(&error));
}

#[tokio::test]
async fn without_identity_and_token_it_says_what_to_do() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let mut config = fake.config(&folder);
    config.join_token = None;
    let error = start(config).error().await;
    assert!(error.is_not_allowed() && words(&error).contains("packrun agents invite"));
}

#[tokio::test]
async fn with_the_token_of_another_coordinator_it_goes_there_whatever_the_epochs_are() {
    let (fake, mut other, folder) = (Fake::start(), Fake::start(), tempfile::tempdir().unwrap());
    let (agent, mut peer) = fake.join(&folder).await;
    let attempt = peer.assign(script("exit 1")).await;
    peer.ended(attempt).await;
    peer.vanish();
    agent.stop(Stop::Now).await;
    other.epoch = Epoch(1);
    let agent = start(other.config(&folder));
    other.enrol(None).await;
    let mut peer = other.meet().await;
    assert_eq!((peer.hello.epoch, peer.hello.attempts.len()), (Epoch(0), 1));
    peer.welcome(|_| HeldAnswer::Fenced).await;
    let attempt = peer.assign(script("true")).await;
    peer.ended(attempt).await;
    peer.say(ToAgent::Settled(vec![attempt])).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_revoked_agent_ends() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, peer) = fake.join(&folder).await;
    fake.gate.is_closed.store(true, Ordering::SeqCst);
    peer.vanish();
    let refused = within(async { fake.endpoint.accept().await.unwrap().await });
    let (refused, error) = tokio::join!(refused, agent.error());
    assert!(refused.is_err() && error.is_not_allowed());
    assert!(words(&error).contains("revoked"), "{}", words(&error));
}

#[tokio::test]
async fn a_revoked_agent_is_let_in_again_by_a_new_token() {
    let (mut fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, peer) = fake.join(&folder).await;
    let words = "the agent was revoked";
    packrun_protocol::quic::close(&peer.connection, CloseCode::Revoked, words);
    assert!(agent.error().await.is_not_allowed());

    fake.token = TokenId::from_bytes([4; 16]);
    let agent = start(fake.config(&folder));
    // It may be that it was let in again, so it tries that first.
    let peer = fake.meet().await;
    packrun_protocol::quic::close(&peer.connection, CloseCode::Revoked, words);
    fake.agent = AgentId::generate();
    fake.enrol(None).await;
    fake.meet().await.welcome(|_| panic!("nothing is held")).await;
    agent.stop(Stop::Drain).await;
    // The same token makes no second one.
    let agent = start(fake.config(&folder));
    fake.meet().await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn an_agent_that_is_let_in_stays_who_it_is_whatever_token_it_is_given() {
    let (mut fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, _peer) = fake.join(&folder).await;
    agent.stop(Stop::Drain).await;
    fake.token = TokenId::from_bytes([4; 16]);
    let agent = start(fake.config(&folder));
    fake.meet().await.welcome(|_| panic!("nothing is held")).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_token_that_was_put_there_meanwhile_brings_a_refused_agent_back() {
    let (mut fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let file = folder.path().join("token");
    std::fs::write(&file, fake.token().to_string()).unwrap();
    let mut config = fake.config(&folder);
    (config.join_token, config.join_token_file) = (None, Some(file.clone()));
    let agent = start(config);
    fake.enrol(None).await;
    let mut peer = fake.meet().await;
    peer.welcome(|_| panic!("nothing is held")).await;
    let attempt = peer.assign(script("exec sleep 1000")).await;
    peer.started(attempt).await;

    fake.token = TokenId::from_bytes([4; 16]);
    std::fs::write(&file, fake.token().to_string()).unwrap();
    packrun_protocol::quic::close(&peer.connection, CloseCode::CertificateRequired, "no such agent");
    fake.agent = AgentId::generate();
    fake.enrol(None).await;
    let mut peer = fake.meet().await;
    assert_eq!(peer.hello.attempts[0].attempt, attempt, "the coordinator says what becomes of it");
    peer.welcome(|_| HeldAnswer::Fenced).await;
    // The same token again is no way back.
    packrun_protocol::quic::close(&peer.connection, CloseCode::Revoked, "revoked");
    assert!(words(&agent.error().await).contains("revoked"));
}

#[tokio::test]
async fn a_superseded_agent_ends_and_does_not_fight_back() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, peer) = fake.join(&folder).await;
    packrun_protocol::quic::close(
        &peer.connection,
        CloseCode::Superseded,
        "the agent has a newer connection",
    );
    let error = agent.error().await;
    assert!(error.is_not_allowed() && words(&error).contains("a folder of its own"), "{}", words(&error));
}

#[tokio::test]
async fn clocks_that_are_an_hour_apart_are_no_trouble_and_are_told() {
    for ahead in [3_600_000_000, -3_600_000_000] {
        let (fake, folder) = (Fake::ahead(ahead), tempfile::tempdir().unwrap());
        let (agent, mut peer) = fake.join(&folder).await;
        let told = loop {
            let FromAgent::Ping(ping) = within(peer.receive.expect()).await.unwrap() else { panic!() };
            peer.pong(ping).await;
            if let Some(offset) = ping.offset {
                break offset;
            }
        };
        assert!(told.micros.abs_diff(ahead) <= told.error_micros + 1_000_000, "{told:?}");
        let attempt = peer.assign(script("echo a")).await;
        assert_eq!(peer.ended(attempt).await.verdict, Verdict::Succeeded);
        peer.say(ToAgent::Settled(vec![attempt])).await;
        agent.stop(Stop::Drain).await;
    }
}

#[tokio::test]
async fn where_nobody_answers_the_next_address_is_tried() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    // It takes packets and says nothing.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = fake.config(&folder);
    config.coordinators.insert(0, silent.local_addr().unwrap().to_string());
    let agent = start(config);
    fake.enrol(None).await;
    let peer = fake.meet().await;
    peer.vanish();
    fake.meet().await.welcome(|_| panic!("nothing is held")).await;
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn an_agent_that_nobody_knows_ends_with_the_coordinators_words() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, peer) = fake.join(&folder).await;
    let words = "no such agent is enrolled here";
    packrun_protocol::quic::close(&peer.connection, CloseCode::CertificateRequired, words);
    let error = agent.error().await;
    assert!(error.is_not_allowed() && self::words(&error).contains(words), "{error}");
}

#[tokio::test]
async fn one_state_folder_is_one_agents() {
    let (fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    let (agent, _peer) = fake.join(&folder).await;
    let error = start(fake.config(&folder)).error().await;
    assert!(matches!(error, AgentError::InUse { .. }), "{error}");
    agent.stop(Stop::Drain).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_before_its_time_is_over() {
    let (mut fake, folder) = (Fake::start(), tempfile::tempdir().unwrap());
    // Two thirds of it are over at once: it is as long valid before its making as after.
    (fake.valid, fake.age) = (Duration::from_secs(100), Duration::from_secs(50));
    let (agent, mut peer) = fake.join(&folder).await;
    let FromAgent::Renew(request) = peer.next().await.unwrap() else { panic!("no renewal") };
    (fake.valid, fake.age) = (Duration::from_secs(24 * 3600), Duration::ZERO);
    peer.say(ToAgent::Certificate(fake.certificate(request.as_str()))).await;
    // What comes behind it is answered behind it.
    peer.say(ToAgent::Goodbye { restarting: true, reason: packrun_protocol::state::Reason::new("") }).await;
    let peer = fake.meet().await;
    let file = std::fs::read_to_string(state(&folder).join("identity/agent.pem")).unwrap();
    let kept = AgentCertificate::parse_pem(&file).unwrap();
    let shown = packrun_protocol::quic::peer(&peer.connection);
    assert_eq!(shown, Some(packrun_protocol::quic::Peer::Agent(kept)));
    agent.stop(Stop::Drain).await;
}

pub(crate) fn words(error: &AgentError) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        words.push_str(": ");
        words.push_str(&error.to_string());
        source = error.source();
    }
    words
}
