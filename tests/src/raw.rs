//! HTTP without a client: bytes on a connection, for what no honest client sends.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::in_time;

/// The start of a connection of HTTP/2: the preface, and settings that leave all as it is.
#[must_use]
pub fn http2_start() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), http2_frame(4, 0, 0, &[])].concat()
}

/// A frame of HTTP/2: of this kind, with these flags, on this stream.
#[must_use]
pub fn http2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a request in HTTP/2: `GET` or `POST` of `path` over plain HTTP.
#[must_use]
pub fn http2_head(method: &str, path: &str) -> Vec<u8> {
    let method = if method == "POST" { 0x83 } else { 0x82 };
    let length = u8::try_from(path.len()).unwrap();
    [&[method, 0x86, 0x04, length], path.as_bytes(), &[0x41, 1, b'x']].concat()
}

/// A connection to the API at `url`.
pub async fn connect(url: &str) -> TcpStream {
    let address = url.trim_start_matches("http://");
    in_time("a connection", TcpStream::connect(address)).await.unwrap()
}

/// What comes back for `bytes` until the other side closes, or has said nothing for `silence`.
pub async fn exchange(url: &str, bytes: &[u8], silence: Duration) -> Vec<u8> {
    let mut connection = connect(url).await;
    // Whoever is closed on while he writes is refused as well.
    let _ = connection.write_all(bytes).await;
    let mut all = Vec::new();
    loop {
        match tokio::time::timeout(silence, connection.read_buf(&mut all)).await {
            Ok(Ok(1..)) => {}
            _ => return all,
        }
    }
}

/// Writes `bytes` again and again until the other side closes the connection, and reads what it says meanwhile.
///
/// # Panics
/// When it doesn't.
pub async fn flood(url: &str, start: &[u8], mut next: impl FnMut(u32) -> Vec<u8>) {
    let (mut from, mut to) = connect(url).await.into_split();
    let reads = tokio::spawn(async move { while matches!(from.read(&mut [0; 4096]).await, Ok(1..)) {} });
    let written = async {
        to.write_all(start).await?;
        for number in 0.. {
            to.write_all(&next(number)).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    in_time("the end of a flood", written).await.unwrap_err();
    in_time("the end of a connection", reads).await.unwrap();
}
