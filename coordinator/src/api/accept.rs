//! Connections: how many there may be, so that clients of the API don't use up the file descriptors that the store,
//! the logs and the agents need; none waits to send what it has, and none is kept whose client takes nothing.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use axum::response::Response;
use axum_server::accept::Accept;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::answer::Budget;
use super::stall::{Stall, Watched};

/// Lets in as many connections at a time as it has places; beyond that they are closed.
#[derive(Debug, Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    stall_time_max: Duration,
    budget: Budget,
}

/// A connection's service, with its place.
#[derive(Debug, Clone)]
pub(super) struct Placed<S> {
    service: S,
    stall: Stall,
    budget: Budget,
    _place: Arc<OwnedSemaphorePermit>,
}

impl Places {
    /// So many, each for a client that takes nothing for at most so long.
    pub(super) fn new(count: usize, stall_time_max: Duration, budget: Budget) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), stall_time_max, budget }
    }
}

impl<S> Accept<TcpStream, S> for Places {
    type Stream = Watched<TcpStream>;
    type Service = Placed<S>;
    type Future = Ready<io::Result<(Watched<TcpStream>, Placed<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let place = Arc::clone(&self.free).try_acquire_owned();
        let placed = place.map_err(|_| io::Error::other("there are as many connections as there may be"));
        ready(placed.and_then(|place| {
            // An event of a stream is small, and somebody waits for it.
            stream.set_nodelay(true)?;
            let stall = Stall::new(self.stall_time_max);
            let stream = Watched::new(stream, &stall);
            Ok((stream, Placed { service, stall, budget: self.budget.clone(), _place: Arc::new(place) }))
        }))
    }
}

impl<S, B> Service<Request<B>> for Placed<S>
where
    S: Service<Request<B>, Response = Response>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (version, budget, stall) = (request.version(), self.budget.clone(), self.stall.clone());
        let answered = self.service.call(request);
        Box::pin(async move { Ok(budget.send(version, answered.await?, &stall)) })
    }
}
