//! Two real endpoints on loopback: who gets in, who doesn't, and what frames do when a stream ends early.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use quinn::Endpoint;

use super::*;
use crate::cert::{self, Authority, COORDINATOR_NAME, Identity};
use crate::id::{AgentId, Digest};
use crate::time::{Clock, Timestamp};

const HOUR: Duration = Duration::from_secs(3600);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[derive(Debug, Default)]
struct Switch {
    revoked: AtomicBool,
}

impl Admission for Switch {
    fn admits(&self, _: &AgentCertificate) -> bool {
        !self.revoked.load(Ordering::SeqCst)
    }
}

struct Server {
    ca: Authority,
    endpoint: Endpoint,
    address: SocketAddr,
    switch: Arc<Switch>,
}

fn now() -> Timestamp {
    Clock::start().now()
}

fn serve() -> Server {
    let (ca, _) = Authority::create(now()).unwrap();
    let identity = ca.issue_coordinator(now(), HOUR).unwrap();
    let switch = Arc::new(Switch::default());
    let server = ServerIdentity { identity: &identity, ca_pem: ca.certificate_pem() };
    let endpoint = Endpoint::server(server_config(&server, switch.clone()).unwrap(), LOOPBACK).unwrap();
    let address = endpoint.local_addr().unwrap();
    Server { ca, endpoint, address, switch }
}

fn enrolled(ca: &Authority, agent: AgentId) -> Identity {
    let key_pem = cert::generate_key().unwrap();
    let certificate_pem = ca.issue_agent(&cert::request(&key_pem).unwrap(), agent, now(), HOUR).unwrap();
    Identity { certificate_pem, key_pem }
}

fn member(identity: &Identity, ca: &Authority) -> quinn::ClientConfig {
    member_config(&MemberConfig { identity, ca_pem: ca.certificate_pem() }).unwrap()
}

/// What the server makes of a client with this configuration, and what the client sees: `Ok` once both sides have
/// exchanged a byte. A refused client's handshake looks well to itself until then.
async fn meet(server: &Server, config: quinn::ClientConfig) -> (Option<Peer>, Result<(), String>) {
    let client = Endpoint::client(LOOPBACK).unwrap();
    let accepted = async {
        let connection = server.endpoint.accept().await.unwrap().await.ok()?;
        let peer = peer(&connection);
        if let Ok((mut send, _)) = connection.accept_bi().await {
            send.write_all(b"x").await.ok()?;
            send.finish().ok()?;
            connection.closed().await;
        }
        peer
    };
    let connected = async {
        let connecting = client.connect_with(config, server.address, COORDINATOR_NAME).unwrap();
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
        send.write_all(b"x").await.map_err(|error| error.to_string())?;
        let answer = receive.read_to_end(10).await;
        connection.close(VarInt::from_u32(0), b"");
        answer.map(drop).map_err(|error| error.to_string())
    };
    tokio::join!(accepted, connected)
}

#[tokio::test]
async fn an_enrolled_agent_gets_in_as_itself() {
    let (server, agent) = (serve(), AgentId::generate());
    let (peer, seen) = meet(&server, member(&enrolled(&server.ca, agent), &server.ca)).await;
    assert_eq!(seen, Ok(()));
    assert!(matches!(peer, Some(Peer::Agent(certificate)) if certificate.agent == agent), "its own id");
}

#[tokio::test]
async fn a_revoked_agent_is_refused_also_when_it_was_let_in_before() {
    let server = serve();
    let config = member(&enrolled(&server.ca, AgentId::generate()), &server.ca);
    assert_eq!(meet(&server, config.clone()).await.1, Ok(()));
    server.switch.revoked.store(true, Ordering::SeqCst);
    let (peer, seen) = meet(&server, config).await;
    assert_eq!((peer, seen.is_err()), (None, true));
}

#[tokio::test]
async fn an_agent_of_another_ca_is_refused() {
    let (server, (other, _)) = (serve(), Authority::create(now()).unwrap());
    let (peer, seen) = meet(&server, member(&enrolled(&other, AgentId::generate()), &server.ca)).await;
    assert_eq!((peer, seen.is_err()), (None, true));
}

#[tokio::test]
async fn an_agent_refuses_a_coordinator_of_another_ca() {
    let (server, (other, _)) = (serve(), Authority::create(now()).unwrap());
    let (peer, seen) = meet(&server, member(&enrolled(&server.ca, AgentId::generate()), &other)).await;
    assert_eq!((peer, seen.is_err()), (None, true));
}

#[tokio::test]
async fn the_coordinators_certificate_makes_no_agent() {
    let server = serve();
    let coordinator = server.ca.issue_coordinator(now(), HOUR).unwrap();
    let (peer, seen) = meet(&server, member(&coordinator, &server.ca)).await;
    assert_eq!((peer, seen.is_err()), (None, true));
}

#[tokio::test]
async fn a_joining_agent_believes_only_the_ca_of_its_token() {
    let server = serve();
    let (peer, seen) = meet(&server, join_config(JoinConfig { ca: server.ca.fingerprint() }).unwrap()).await;
    assert_eq!((peer, seen), (Some(Peer::Joining), Ok(())));
    let (peer, seen) = meet(&server, join_config(JoinConfig { ca: Digest::of(b"another") }).unwrap()).await;
    assert_eq!((peer, seen.is_err()), (None, true));
}

#[tokio::test]
async fn a_joining_agent_refuses_a_forged_certificate_beside_the_real_ca() {
    let (real, forger) = (serve(), Authority::create(now()).unwrap().0);
    let forged = forger.issue_coordinator(now(), HOUR).unwrap();
    let identity = ServerIdentity { identity: &forged, ca_pem: real.ca.certificate_pem() };
    real.endpoint.set_server_config(Some(server_config(&identity, real.switch.clone()).unwrap()));
    let (peer, seen) = meet(&real, join_config(JoinConfig { ca: real.ca.fingerprint() }).unwrap()).await;
    assert_eq!((peer, seen.is_err()), (None, true));
}

#[tokio::test]
async fn a_connection_of_an_agent_without_a_certificate_is_nobodys() {
    let server = serve();
    let mut tls =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates({
                let mut roots = rustls::RootCertStore::empty();
                roots.add(cert::der_of(server.ca.certificate_pem(), "CA").unwrap().into()).unwrap();
                roots
            })
            .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_AGENT.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let (peer, _) = meet(&server, quinn::ClientConfig::new(Arc::new(crypto))).await;
    assert_eq!(peer, None);
}

/// A connection of an enrolled agent, both ends.
async fn connect(server: &Server) -> (Connection, Connection, Endpoint) {
    let config = member(&enrolled(&server.ca, AgentId::generate()), &server.ca);
    let client = Endpoint::client(LOOPBACK).unwrap();
    let connecting = client.connect_with(config, server.address, COORDINATOR_NAME).unwrap();
    let accepting = async { server.endpoint.accept().await.unwrap().await.unwrap() };
    let (ours, theirs) = tokio::join!(async { connecting.await.unwrap() }, accepting);
    (ours, theirs, client)
}

/// A stream of an enrolled agent, both ends.
async fn stream(server: &Server) -> (FrameWriter, FrameReader, (Connection, Connection, Endpoint)) {
    let (ours, theirs, client) = connect(server).await;
    let_in(&theirs);
    let mut send = ours.open_uni().await.unwrap();
    send.write_all(&[]).await.unwrap();
    let mut writer = FrameWriter::new(send);
    writer.send(&"first").await.unwrap();
    let mut reader = FrameReader::new(theirs.accept_uni().await.unwrap());
    assert_eq!(reader.expect::<String>().await.unwrap(), "first");
    (writer, reader, (ours, theirs, client))
}

#[tokio::test]
async fn raw_bytes_behind_a_frame_lose_nothing() {
    let server = serve();
    let (mut writer, mut reader, _kept) = stream(&server).await;
    writer.push(&"header").unwrap();
    writer.flush().await.unwrap();
    let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let sending = async {
        writer.stream().write_all(&sent).await.unwrap();
        writer.stream().finish().unwrap();
    };
    let receiving = async {
        assert_eq!(reader.expect::<String>().await.unwrap(), "header");
        let mut received = Vec::new();
        while let Some(bytes) = reader.raw().await.unwrap() {
            received.extend_from_slice(&bytes);
        }
        received
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error_and_one_that_ends_behind_it_is_not() {
    let server = serve();
    let (mut writer, mut reader, _kept) = stream(&server).await;
    let half = frame_of("a whole message");
    writer.stream().write_all(&half[..half.len() - 1]).await.unwrap();
    drop(writer);
    assert!(matches!(reader.next::<String>().await, Err(ReadError::Ended)));

    let (mut writer, mut reader, _kept) = stream(&server).await;
    writer.send(&"a whole message").await.unwrap();
    drop(writer);
    assert_eq!(reader.next::<String>().await.unwrap().as_deref(), Some("a whole message"));
    assert!(reader.next::<String>().await.unwrap().is_none());
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_stream_before_it_is_read() {
    let server = serve();
    let (mut writer, mut reader, _kept) = stream(&server).await;
    writer.stream().write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(matches!(reader.next::<String>().await, Err(ReadError::Frame(_))));
}

/// Whether the other side has to allow this first.
fn waits<T>(work: impl Future<Output = T>) -> bool {
    std::pin::pin!(work).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending()
}

#[tokio::test]
async fn a_peer_has_one_stream_and_a_small_window_until_it_is_let_in() {
    let server = serve();
    let (ours, theirs, _client) = connect(&server).await;
    let (mut send, _receive) = ours.open_bi().await.unwrap();
    assert!(waits(ours.open_uni()) && waits(ours.open_bi()));
    let all = vec![0; 2 * KNOWN_WINDOW as usize];
    let written = send.write(&all).await.unwrap();
    assert!(written <= STRANGER_WINDOW as usize, "{written} bytes");
    assert!(waits(send.write(&all[written..])));
    know(&theirs);
    send.write_all(&all[written..KNOWN_WINDOW as usize]).await.unwrap();
    assert!(waits(send.write(&all[KNOWN_WINDOW as usize..])));
    assert!(waits(ours.open_uni()) && waits(ours.open_bi()));
    let_in(&theirs);
    send.write_all(&all[KNOWN_WINDOW as usize..]).await.unwrap();
    ours.open_uni().await.unwrap();
    ours.open_bi().await.unwrap();
}

fn frame_of(text: &str) -> Vec<u8> {
    crate::frame::encode(&text).unwrap()
}

#[tokio::test]
async fn an_agent_opens_no_more_streams_than_it_may() {
    let server = serve();
    let (ours, theirs, _client) = connect(&server).await;
    let_in(&theirs);
    let mut two_way = Vec::new();
    for _ in 0..BIDI_STREAMS {
        two_way.push(ours.open_bi().await.unwrap());
    }
    let mut one_way = Vec::new();
    for _ in 0..limit::SLOTS_MAX {
        one_way.push(ours.open_uni().await.unwrap());
    }
    assert!(waits(ours.open_bi()) && waits(ours.open_uni()));
    assert!(waits(theirs.open_bi()) && waits(theirs.open_uni()), "the coordinator opens none");
    // Those that have ended on both sides make room, which is told once it is worth a frame.
    for mut stream in one_way {
        stream.write_all(b"x").await.unwrap();
        stream.finish().unwrap();
        assert_eq!(theirs.accept_uni().await.unwrap().read_to_end(10).await.unwrap(), b"x");
    }
    ours.open_uni().await.unwrap();
}
