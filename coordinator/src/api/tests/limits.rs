//! Limits on connections and heads: what one client does beyond them, and that others are answered.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use packrun_protocol::id::PackRunId;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::site::Site;
use crate::api::serve::{HEAD_BYTES_MAX, HTTP2_STREAMS_MAX};
use crate::api::{App, Limits, serve};

/// The same site, served with other limits.
fn served(site: &Site, limits: Limits) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, None, App { limits, ..site.app.clone() }));
    address
}

/// What comes of these bytes, up to so many.
async fn answer(address: SocketAddr, bytes: &[u8], most: usize) -> Vec<u8> {
    let mut connection = TcpStream::connect(address).await.unwrap();
    // One that is refused may be closed before it has sent all.
    let _ = connection.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut start = connection.take(most as u64);
    let read = tokio::time::timeout(Duration::from_secs(60), start.read_to_end(&mut answer));
    let _ = read.await.expect("it is answered or closed");
    answer
}

#[tokio::test]
async fn a_head_over_its_limit_is_refused_and_others_are_answered() {
    let site = Site::start().await;
    let address = served(&site, Limits::default());
    let large = "x".repeat(HEAD_BYTES_MAX);
    for head in [
        format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {large}\r\n\r\n"),
        format!("GET /healthz?{large} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: x\r\n".repeat(101)),
    ] {
        let answer = answer(address, head.as_bytes(), 12).await;
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 431", "{}", &head[..40]);
    }
    assert_eq!(site.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn who_sends_no_head_is_let_go() {
    let site = Site::start().await;
    let address = served(&site, Limits { head_time: Duration::from_millis(200), ..Limits::default() });
    for begun in ["", "GET /healthz HTTP/1.1\r\nHost:"] {
        let answer = answer(address, begun.as_bytes(), 1000).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    let whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(answer(address, whole, 12).await, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_connection_of_http_2_is_told_how_many_streams_it_may_have() {
    let site = Site::start().await;
    let address = served(&site, Limits::default());
    // The preface, and SETTINGS without any.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let settings = answer(address, hello, 60).await;
    let told = [&[0, 3][..], &HTTP2_STREAMS_MAX.to_be_bytes()].concat();
    assert_eq!(settings[3], 4, "{settings:?}");
    assert!(settings.windows(6).any(|setting| setting == told), "{settings:?}");
}

#[tokio::test]
async fn streams_more_than_there_may_be_are_turned_away() {
    let site = Site::start().await;
    let address = served(&site, Limits { streams: 0, ..Limits::default() });
    let token = site.token(crate::core::change::Role::Viewer);
    let paths = ["/v1/events".to_owned(), format!("/v1/pack-runs/{}/stream", PackRunId::generate())];
    for path in paths {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        assert_eq!(answer(address, head.as_bytes(), 12).await, b"HTTP/1.1 503", "{path}");
    }
}
