//! QUIC as both sides use it: TLS 1.3 with certificates of the coordinator's CA, transport settings, and streams
//! of frames. The only room of this crate that knows quinn, rustls and tokio.
//!
//! Invariants: no session is ever resumed, since that would skip the look at revocations; no data is sent before
//! the handshake is done; a joining agent believes only the CA whose fingerprint its token carries; a peer can make
//! the coordinator hold no more than a frame before it was let in, and far less before it has shown a certificate.

mod framed;
mod tls;

pub use framed::{FrameReader, FrameWriter, ReadError, WriteError};
pub use tls::{
    Admission, JoinConfig, MemberConfig, ServerIdentity, TlsError, join_config, member_config, server_config,
    verify_member,
};

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;

use crate::cert::AgentCertificate;
use crate::limit;
use crate::stream::{ALPN_AGENT, ALPN_ENROL, CloseCode};

/// How long a peer may be silent before the connection counts as lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How often an agent lets hear of itself when it has nothing to say.
pub const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// Bytes that one stream may have on the way unread. A stream's rate is at most this by the round trip: at 50 ms
/// 80 MB/s.
const STREAM_WINDOW: u32 = 4 << 20;

/// Bytes that all streams of a connection may have on the way unread: what a peer can make this side hold.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// The same for a peer of whom nothing is known yet, or that wants to enrol: a request to do so.
const STRANGER_WINDOW: u32 = 64 << 10;

/// The same for an agent with a certificate that was not let in yet: a Hello.
const KNOWN_WINDOW: u32 = STRANGER_WINDOW + (1 << 20);

/// Bidirectional streams of a peer that was not let in yet: its request, or control.
const STRANGER_STREAMS: u32 = 1;

/// Bytes that this side keeps until they are acknowledged.
const SEND_WINDOW: u64 = 32 << 20;

/// Bidirectional streams that an agent may have open at once: control, and files on their way.
const BIDI_STREAMS: u32 = 256;

const _: () = {
    assert!(STREAM_WINDOW as usize >= 2 * limit::FRAME_BYTES_MAX, "any frame fits twice");
    assert!(STRANGER_WINDOW as usize >= 2 * limit::ENROL_BYTES_MAX, "so does a request to enrol");
    assert!(KNOWN_WINDOW as usize > limit::FRAME_BYTES_MAX, "a Hello is a frame");
};

/// What both sides allow the other, which opens at most so many bidirectional streams, and no others.
fn transport(bidi_streams: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok())
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(bidi_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

/// What anybody is allowed who completes a handshake, until [`know`] and [`let_in`].
fn coordinator_transport() -> Arc<TransportConfig> {
    let mut transport = transport(STRANGER_STREAMS);
    transport.receive_window(VarInt::from_u32(STRANGER_WINDOW));
    Arc::new(transport)
}

/// Allows a peer whose certificate was verified what it takes to introduce itself: so much it can make this side hold
/// that was not let in.
pub fn know(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(KNOWN_WINDOW));
}

/// Allows the peer what an agent needs for its work: streams for its logs and files, and windows to fill them.
pub fn let_in(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(BIDI_STREAMS));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(limit::SLOTS_MAX));
}

/// The agent opens all streams: the coordinator may open none.
fn agent_transport() -> Arc<TransportConfig> {
    let mut transport = transport(0);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(transport)
}

/// Who is on the other end of a connection to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// An enrolled agent with a certificate that TLS has verified.
    Agent(AgentCertificate),
    /// Somebody who may do nothing but enrol.
    Joining,
}

/// Who is on the other end, by ALPN and certificate; `None` when they don't go together: the connection is to be
/// closed with [`CloseCode::CertificateRequired`].
#[must_use]
pub fn peer(connection: &Connection) -> Option<Peer> {
    let handshake = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    match handshake.protocol.as_deref() {
        Some(ALPN_ENROL) => Some(Peer::Joining),
        Some(ALPN_AGENT) => {
            let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
            AgentCertificate::parse(chain.first()?).ok().map(Peer::Agent)
        }
        _ => None,
    }
}

/// Closes `connection` with a code and a reason, cut to what one packet carries.
pub fn close(connection: &Connection, code: CloseCode, reason: &str) {
    let mut end = reason.len().min(256);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    connection.close(VarInt::from_u32(code.to_wire()), reason.as_bytes().get(..end).unwrap_or_default());
}

#[cfg(test)]
mod tests;
