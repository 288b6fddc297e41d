//! Who becomes an agent, and who is let in.

use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::cert::{self, AgentCertificate, Authority, COORDINATOR_NAME};
use packrun_protocol::control::{FromAgent, ToAgent};
use packrun_protocol::id::{AgentId, Digest, TokenId};
use packrun_protocol::limit;
use packrun_protocol::quic::{JoinConfig, join_config};
use packrun_protocol::stream::{CloseCode, EnrolAnswer, JoinSecret};

use super::agent::{Agent, ask_to_enrol, client, parting};
use super::scene::{Scene, settings};
use crate::core::Config;
use crate::core::event::Command;

#[tokio::test]
async fn a_token_makes_one_agent() {
    let scene = Scene::open().await;
    let token = scene.invite().await;
    let agent = Agent::enrol(scene.address, &token).await.unwrap();
    let certificate = AgentCertificate::parse_pem(&agent.identity.certificate_pem).unwrap();
    assert_eq!(certificate.agent, agent.id);
    let link = agent.connect(1).await;
    let welcome = link.welcome.unwrap();
    assert_eq!((welcome.agent, welcome.name.as_str()), (agent.id, "builder"));
    let again = Agent::enrol(scene.address, &token).await.err().unwrap();
    assert!(again.contains("does not hold"), "{again}");
}

#[tokio::test]
async fn a_refusal_does_not_say_why() {
    let scene = Scene::open().await;
    let good = scene.invite().await;
    let mut refusals = Vec::new();
    let mut wrong = good.clone();
    wrong.secret = JoinSecret([8; 32]);
    refusals.push(Agent::enrol(scene.address, &wrong).await.err().unwrap());
    let mut unknown = good.clone();
    unknown.id = TokenId::generate();
    refusals.push(Agent::enrol(scene.address, &unknown).await.err().unwrap());
    let expired = scene.invite_for(Duration::ZERO).await;
    refusals.push(Agent::enrol(scene.address, &expired).await.err().unwrap());
    let request = cert::request(&cert::generate_key().unwrap()).unwrap();
    let broken = ask_to_enrol(scene.address, &good, &request[..100]).await.unwrap();
    let EnrolAnswer::Refused(reason) = broken else { panic!("a broken request") };
    refusals.push(reason.to_string());
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    Agent::enrol(scene.address, &good).await.expect("none of these has used up the token");
}

#[tokio::test]
async fn an_agent_does_not_talk_to_a_coordinator_of_another_ca() {
    let scene = Scene::open().await;
    let mut token = scene.invite().await;
    token.ca = Digest::of(b"another");
    assert!(Agent::enrol(scene.address, &token).await.is_err());
}

#[tokio::test]
async fn too_many_enrolments_are_turned_away() {
    let mut settings = settings();
    settings.limits.enrolments_per_second = 1;
    let scene = Scene::open_with(settings, Config::default()).await;
    let mut wrong = scene.invite().await;
    wrong.secret = JoinSecret([8; 32]);
    let mut overloaded = false;
    for _ in 0..100 {
        let error = Agent::enrol(scene.address, &wrong).await.err().unwrap();
        overloaded |= !error.contains("does not hold");
    }
    assert!(overloaded, "a hundred guesses at once");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let scene = Scene::open().await;
    let mut agent = scene.enrolled().await;
    let (foreign, _) = Authority::create(scene.clock.now()).unwrap();
    let key_pem = cert::generate_key().unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    let request = cert::request(&key_pem).unwrap();
    let certificate_pem = foreign.issue_agent(&request, agent.id, scene.clock.now(), week).unwrap();
    agent.identity = cert::Identity { certificate_pem, key_pem };
    assert!(agent.connect_with(agent.hello(1)).await.is_err());
}

#[tokio::test]
async fn a_connection_without_a_certificate_is_closed() {
    let scene = Scene::open().await;
    let mut tls =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates({
                let mut roots = rustls::RootCertStore::empty();
                roots.add(cert::der_of(scene.identity.ca_pem(), "CA").unwrap().into()).unwrap();
                roots
            })
            .with_no_client_auth();
    tls.alpn_protocols = vec![packrun_protocol::stream::ALPN_AGENT.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = client();
    let connection = endpoint.connect_with(config, scene.address, COORDINATOR_NAME).unwrap().await.unwrap();
    assert_eq!(parting(&connection.closed().await).0, CloseCode::CertificateRequired);
}

#[tokio::test]
async fn an_agent_that_nobody_enrolled_is_turned_away() {
    let scene = Scene::open().await;
    let mut agent = scene.enrolled().await;
    // As after the restore of a backup from before it enrolled.
    let key_pem = cert::generate_key().unwrap();
    let request = cert::request(&key_pem).unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    let (certificate_pem, _) = scene.identity.issue_agent(&request, AgentId::generate(), week).unwrap();
    agent.identity = cert::Identity { certificate_pem, key_pem };
    let error = agent.connect_with(agent.hello(1)).await.err().unwrap();
    let (code, reason) = parting(&error);
    assert_eq!(code, CloseCode::CertificateRequired, "another coordinator may know it");
    assert!(reason.contains("no such agent"), "{reason}");
}

#[tokio::test]
async fn a_revoked_agent_is_cut_off_and_stays_out() {
    let scene = Scene::open().await;
    let (agent, other) = (scene.enrolled().await, scene.enrolled().await);
    let link = agent.connect(1).await;
    scene.engine.command(Command::RevokeAgent(agent.id)).await.unwrap();
    assert_eq!(link.closed().await.0, CloseCode::Revoked);
    assert!(agent.connect_with(agent.hello(1)).await.is_err(), "by TLS");

    scene.engine.command(Command::RevokeAgent(other.id)).await.unwrap();
    let error = other.connect_with(other.hello(1)).await.err().unwrap();
    assert_eq!(parting(&error).0, CloseCode::Revoked, "it was away when it was revoked");
    assert!(other.connect_with(other.hello(1)).await.is_err());
}

#[tokio::test]
async fn an_agent_renews_its_certificate_and_comes_back_with_it() {
    let scene = Scene::open().await;
    let mut agent = scene.enrolled().await;
    let mut link = agent.connect(1).await;
    let request = cert::request(&agent.identity.key_pem).unwrap();
    link.say(&FromAgent::Renew(request.as_str().try_into().unwrap())).await;
    let renewed = link.until(|message| match message {
        ToAgent::Certificate(pem) => Some(pem),
        _ => None,
    });
    let certificate_pem = renewed.await.as_str().to_owned();
    let [old, new] = [&agent.identity.certificate_pem, &certificate_pem]
        .map(|pem| AgentCertificate::parse_pem(pem).unwrap());
    assert_eq!(new.agent, agent.id);
    assert_ne!(new.serial, old.serial);
    agent.identity.certificate_pem = certificate_pem;
    agent.connect(1).await;
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let mut settings = settings();
    settings.certificate = Duration::from_secs(4);
    let scene = Scene::open_with(settings, Config::default()).await;
    let agent = scene.enrolled().await;
    // On a machine that is slow enough it is over before the session begins.
    let Ok(link) = agent.connect_with(agent.hello(1)).await else { return };
    assert_eq!(link.closed().await.0, CloseCode::CertificateRequired);
}

#[tokio::test]
async fn a_request_to_enrol_that_is_too_large_is_not_read() {
    let scene = Scene::open().await;
    let token = scene.invite().await;
    let config = join_config(JoinConfig { ca: token.ca }).unwrap();
    let connection = client().connect_with(config, scene.address, COORDINATOR_NAME).unwrap().await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let length = u32::try_from(limit::ENROL_BYTES_MAX + 1).unwrap();
    send.write_all(&length.to_le_bytes()).await.unwrap();
    assert_eq!(parting(&connection.closed().await).0, CloseCode::Protocol);
    Agent::enrol(scene.address, &token).await.expect("others are, and the token still holds");
}
