//! Clients that take nothing of what they are sent.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::site::Site;
use crate::api::{App, Limits, serve};
use crate::core::change::Role;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that no pair of sockets buffers.
const LARGE: usize = 8_000_000;

/// A place where the site is served to clients that may take nothing for so long, with so large a budget.
fn served(site: &Site, stall: Duration, budget: usize) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits { stall_time: stall, answer_bytes: budget, ..site.app.limits };
    tokio::spawn(serve(listener, None, App { limits, ..site.app.clone() }));
    address
}

/// A client that asks for `path` and reads nothing.
async fn stuck(site: &Site, address: SocketAddr, path: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let token = site.token(Role::Viewer);
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    connection
}

async fn status(site: &Site, address: SocketAddr, path: &str) -> StatusCode {
    let request = site.client.request(Method::GET, format!("http://{address}{path}"));
    let answer = request.bearer_auth(site.token(Role::Viewer)).send().await.unwrap();
    let status = answer.status();
    answer.bytes().await.unwrap();
    status
}

/// As many clients that read nothing as take all of the budget; again, if they were given up before that was seen.
async fn exhaust(site: &Site, address: SocketAddr, path: &str, count: usize) -> Vec<TcpStream> {
    let exhausted = async {
        loop {
            let mut connections = Vec::new();
            for _ in 0..count {
                connections.push(stuck(site, address, path).await);
            }
            if status(site, address, path).await == StatusCode::SERVICE_UNAVAILABLE {
                return connections;
            }
        }
    };
    tokio::time::timeout(PATIENCE, exhausted).await.expect("the budget is finite")
}

/// Asks until that is the answer.
async fn until(site: &Site, address: SocketAddr, path: &str, expected: StatusCode) {
    let asked = async { while status(site, address, path).await != expected {} };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| panic!("{path} is never answered {expected}"));
}

/// Whether the connection ends before so many bytes have come.
async fn is_cut(mut connection: TcpStream, bytes: usize) -> bool {
    let mut all = Vec::new();
    // A reset is an end as well.
    let _ = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut all)).await.expect("it is closed");
    all.len() < bytes
}

async fn site_with_a_large_pack() -> Site {
    let site = Site::start().await;
    let comment = format!("# {}\n", "x".repeat(98));
    let pack =
        format!("name: large\njobs:\n  a: {{ run: 'true' }}\n{}", comment.repeat(LARGE / comment.len()));
    assert_eq!(site.register(&pack).await.status, StatusCode::CREATED);
    site
}

#[tokio::test]
async fn large_answers_have_a_budget_and_those_who_read_nothing_lose_their_share() {
    let site = site_with_a_large_pack().await;
    let address = served(&site, Duration::from_secs(3), 2 * LARGE + LARGE / 2);
    let large = "/v1/packs/large";
    let stuck = exhaust(&site, address, large, 2).await;
    assert_eq!(status(&site, address, "/v1/packs").await, StatusCode::OK, "small answers take none of it");
    until(&site, address, large, StatusCode::OK).await;
    // One of them was given up for that; the other may still be in time.
    let mut cut = false;
    for connection in stuck {
        cut |= is_cut(connection, LARGE).await;
    }
    assert!(cut);
}

#[tokio::test]
async fn a_stream_that_has_nothing_to_say_is_not_given_up() {
    let site = site_with_a_large_pack().await;
    let address = served(&site, Duration::from_millis(500), LARGE + LARGE / 2);
    let mut patient = stuck(&site, address, "/v1/events").await;
    let mut start = [0; 12];
    patient.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    // These are given up one after the other, while the patient one hears nothing.
    for _ in 0..3 {
        let _stuck = exhaust(&site, address, "/v1/packs/large", 1).await;
        until(&site, address, "/v1/packs/large", StatusCode::OK).await;
    }
    site.run("name: small\njobs:\n  a: { run: 'true' }\n").await;
    let mut told = Vec::new();
    let event = async {
        while !String::from_utf8_lossy(&told).contains("event: state") {
            assert_ne!(patient.read_buf(&mut told).await.unwrap(), 0, "it is still open");
        }
    };
    tokio::time::timeout(PATIENCE, event).await.expect("it hears of it");
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The kind, the flags and the payload of the next frame.
async fn next_frame(connection: &mut TcpStream) -> std::io::Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    connection.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    connection.read_exact(&mut payload).await?;
    Ok((head[3], head[4], payload))
}

#[tokio::test]
async fn a_stream_of_http_2_without_a_window_costs_its_client_the_connection() {
    let site = site_with_a_large_pack().await;
    let address = served(&site, Duration::from_millis(300), LARGE);
    let mut connection = TcpStream::connect(address).await.unwrap();
    // SETTINGS: the window of a stream is 0. HEADERS: GET http /healthz, all of it.
    let path = b"/healthz";
    let head = [&[0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()], &path[..], &[0x41, 1, b'x']].concat();
    let asked = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]),
        frame(1, 0x5, 1, &head),
    ];
    connection.write_all(&asked.concat()).await.unwrap();
    let mut kinds = Vec::new();
    let closed = async {
        while let Ok((kind, flags, payload)) = next_frame(&mut connection).await {
            // It lives, and says so whenever it is asked.
            if (kind, flags) == (6, 0) && connection.write_all(&frame(6, 1, 0, &payload)).await.is_err() {
                break;
            }
            kinds.push(kind);
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("it is closed");
    assert!(kinds.contains(&1) && !kinds.contains(&0), "HEADERS, and no DATA: {kinds:?}");
    assert_eq!(status(&site, address, "/healthz").await, StatusCode::OK);
}
