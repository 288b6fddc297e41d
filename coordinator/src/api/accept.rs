//! Connections: how many there may be, so that clients of the API don't use up the file descriptors that the store,
//! the logs and the agents need; and none waits to send what it has.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// Lets in as many connections at a time as it has places; beyond that they are closed.
#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Semaphore>);

/// A connection's service, with its place.
#[derive(Debug, Clone)]
pub(super) struct Placed<S> {
    service: S,
    _place: Arc<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }
}

impl<S> Accept<TcpStream, S> for Places {
    type Stream = TcpStream;
    type Service = Placed<S>;
    type Future = Ready<io::Result<(TcpStream, Placed<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let place = Arc::clone(&self.0).try_acquire_owned();
        let placed = place.map_err(|_| io::Error::other("there are as many connections as there may be"));
        ready(placed.and_then(|place| {
            // An event of a stream is small, and somebody waits for it.
            stream.set_nodelay(true)?;
            Ok((stream, Placed { service, _place: Arc::new(place) }))
        }))
    }
}

impl<S: Service<R>, R> Service<R> for Placed<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.service.call(request)
    }
}
