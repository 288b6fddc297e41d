//! Who may join and who may not; and that identities outlive restarts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use packrun_protocol::cert::{self, Authority, COORDINATOR_NAME, Identity};
use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber, JobRunId};
use packrun_protocol::quic::{FrameWriter, MemberConfig, member_config};
use packrun_protocol::stream::{ALPN_AGENT, ALPN_ENROL, StreamHeader};
use packrun_protocol::time::Clock;
use packrun_tests::in_time;
use packrun_tests::process::{Agent, Coordinator};
use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::json;

use crate::programs;

#[tokio::test]
async fn agents_and_their_certificates_survive_restarts_of_both_sides() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    let certificate = std::fs::read(agent.state().join("identity/agent.pem")).unwrap();
    let who = coordinator.api().get("/v1/agents/builder").await["id"].clone();

    coordinator.restart().await;
    assert_eq!(agent.process().terminate().await, Some(0));
    agent.start_again(&coordinator, &[]);
    agent.process().logged("connected").await;
    assert_eq!(coordinator.api().get("/v1/agents/builder").await["id"], who);
    assert_eq!(std::fs::read(agent.state().join("identity/agent.pem")).unwrap(), certificate);
    let key = std::fs::metadata(agent.state().join("identity/agent.key.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);

    let id = coordinator.api().run("name: p\njobs:\n  a: { run: exit 0 }\n").await;
    assert_eq!(coordinator.api().ended(&id).await["state"], "completed");
}

#[tokio::test]
async fn a_join_token_that_is_used_expired_or_damaged_lets_nobody_in() {
    let coordinator = Coordinator::start(&programs()).await;
    let api = coordinator.api();
    let used = coordinator.invite().await;
    let refused = async |token: &str| {
        let mut agent =
            Agent::run(&programs(), &coordinator.agents_address(), &["--name", "x", "--join-token", token]);
        let code = agent.process().ended().await;
        (code, agent.process().log())
    };
    let mut first =
        Agent::run(&programs(), &coordinator.agents_address(), &["--name", "first", "--join-token", &used]);
    first.process().logged("connected").await;
    let (code, log) = refused(&used).await;
    assert_eq!(code, Some(4), "{log}");
    assert!(log.contains("packrun agents invite"), "the way out: {log}");

    let short = api.post("/v1/join-tokens", &json!({ "ttl_seconds": 1 })).await;
    in_time("the token's end", async {
        loop {
            let tokens = api.get("/v1/tokens").await;
            let tokens = tokens["items"].as_array().unwrap().clone();
            if tokens.iter().any(|token| token["id"] == short["id"] && token["state"] == "expired") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(refused(short["token"].as_str().unwrap()).await.0, Some(4));

    let fresh = coordinator.invite().await;
    let cut = &fresh[..fresh.len() - 3];
    assert_eq!(refused(cut).await.0, Some(2));
    // The token of another coordinator: the agent finds out before it says anything.
    let other = Coordinator::start(&programs()).await;
    assert_eq!(refused(&other.invite().await).await.0, Some(4));
    let agents = api.get("/v1/agents").await;
    assert_eq!(agents["items"].as_array().unwrap().len(), 1, "{agents}");
}

/// Connects with `config` and says what an agent says first; whether that is let through.
async fn is_let_in(address: SocketAddr, config: ClientConfig) -> bool {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connected = endpoint.connect_with(config, address, COORDINATOR_NAME).unwrap().await;
    let Ok(connection) = connected else { return false };
    let attempt = AttemptId { job_run: JobRunId::generate(), number: AttemptNumber::FIRST };
    for header in [StreamHeader::Control, StreamHeader::Inputs { attempt, input: 0 }] {
        let Ok((send, mut receive)) = connection.open_bi().await else { return false };
        if FrameWriter::new(send).send(&header).await.is_err() {
            return false;
        }
        if matches!(receive.read_chunk(1, true).await, Ok(Some(_))) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn an_agent_without_a_certificate_or_with_a_foreign_one_is_refused() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let address: SocketAddr = coordinator.agents_address().parse().unwrap();
    let ca_pem = std::fs::read_to_string(coordinator.data().join("ca/ca.pem")).unwrap();

    let (foreign, _) = Authority::create(Clock::start().now()).unwrap();
    let key_pem = cert::generate_key().unwrap();
    let request = cert::request(&key_pem).unwrap();
    let day = Duration::from_secs(86_400);
    let certificate_pem =
        foreign.issue_agent(&request, AgentId::generate(), Clock::start().now(), day).unwrap();
    let identity = Identity { certificate_pem, key_pem };
    let foreign = member_config(&MemberConfig { identity: &identity, ca_pem: &ca_pem }).unwrap();
    assert!(!is_let_in(address, foreign).await, "a foreign certificate");

    for alpn in [ALPN_AGENT, ALPN_ENROL] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(cert::der_of(&ca_pem, "CA").unwrap())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        assert!(!is_let_in(address, config).await, "no certificate, {}", String::from_utf8_lossy(alpn));
    }
}

#[tokio::test]
async fn a_revoked_agent_is_cut_off_and_stays_out() {
    let coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    coordinator.api().post("/v1/agents/builder/revoke", &json!({})).await;
    assert_eq!(agent.process().ended().await, Some(4), "{}", agent.process().log());
    agent.start_again(&coordinator, &[]);
    assert_eq!(agent.process().ended().await, Some(4), "{}", agent.process().log());
}
