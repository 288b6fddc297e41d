//! Listening: HTTP, or HTTPS with the caller's certificate, until the coordinator stops. What an open stream still
//! has to say it says until then; answers under way get a short time more.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};

use super::App;
use super::accept::Places;

/// How long answers under way get when the coordinator stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Largest head of a request, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;

/// Streams that one HTTP/2 connection may have open.
pub(super) const HTTP2_STREAMS_MAX: u32 = 200;

/// Serves the API on `listener` until `app.stop` is canceled: over TLS when there is a configuration for it, which
/// may offer HTTP/2 (`h2`) and HTTP/1.1 by ALPN.
///
/// # Errors
/// When the listener can't be used.
pub async fn serve(listener: TcpListener, tls: Option<RustlsConfig>, app: App) -> io::Result<()> {
    let handle = Handle::new();
    let head_time = app.limits.head_time;
    let stop = app.stop.clone();
    let stopped = handle.clone();
    let stopping = tokio::spawn(async move {
        stop.cancelled().await;
        stopped.graceful_shutdown(Some(STOP_TIME));
    });
    let mut server = axum_server::from_tcp(listener)?
        .handle(handle)
        .first_request_timeout(head_time)
        .accept_error_handler(|from, error| tracing::debug!(?from, %error, "a connection was not accepted"));
    let http = server.http_builder();
    http.http1().header_read_timeout(head_time).max_buf_size(HEAD_BYTES_MAX);
    http.http2()
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(head_time);
    let places = Places::new(&app.limits);
    let service = super::router(app).into_make_service();
    let served = match tls {
        Some(config) => {
            let acceptor = RustlsAcceptor::new(config).acceptor(places);
            server.acceptor(acceptor).serve(service).await
        }
        None => server.acceptor(places).serve(service).await,
    };
    stopping.abort();
    served
}
