//! Connections: how many there may be, in all and of one address, so that clients of the API don't use up the file
//! descriptors that the store, the logs and the agents need, nor one of them those of the others; none waits to send
//! what it has, and none is kept whose client takes nothing.

use std::future::{Ready, ready};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use axum::response::Response;
use axum_server::accept::Accept;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower::Service;

use super::Limits;
use super::answer::Budget;
use super::stall::{Stall, Watched};
use crate::crowd::{Crowd, Full, Place, network};

/// How often it is said at most that connections are turned away.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Lets in as many connections at a time as it has places; beyond that they are closed. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Places {
    crowd: Crowd<IpAddr>,
    /// When it was said last that a connection was turned away.
    said: Arc<Mutex<Option<Instant>>>,
    stall_time: Duration,
    budget: Budget,
}

/// A connection's service, with its place.
#[derive(Debug, Clone)]
pub(super) struct Placed<S> {
    service: S,
    stall: Stall,
    budget: Budget,
    _place: Arc<Place<IpAddr>>,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            crowd: Crowd::new(limits.connections, limits.connections_per_address),
            said: Arc::default(),
            stall_time: limits.stall_time,
            budget: Budget::of(limits.answer_bytes),
        }
    }

    /// A place for a connection from `address`.
    ///
    /// # Errors
    /// When there is none.
    fn take(&self, address: IpAddr) -> io::Result<Place<IpAddr>> {
        let address = network(address);
        self.crowd.enter(address).map_err(|full| {
            let (why, limit) = match full {
                Full::All(limit) => ("there are as many connections as there may be", limit),
                Full::Kind(limit) => ("its address has as many connections as it may", limit),
            };
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
                *said = Some(Instant::now());
                tracing::warn!(%address, limit, "a connection to the API is closed: {why}; so are others, unsaid");
            }
            io::Error::other(why)
        })
    }
}

impl<S> Accept<TcpStream, S> for Places {
    type Stream = Watched<TcpStream>;
    type Service = Placed<S>;
    type Future = Ready<io::Result<(Watched<TcpStream>, Placed<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let placed = stream.peer_addr().and_then(|address| self.take(address.ip()));
        ready(placed.and_then(|place| {
            // An event of a stream is small, and somebody waits for it.
            stream.set_nodelay(true)?;
            let stall = Stall::new(self.stall_time);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_leaves_places_to_others_and_all_of_them_are_counted() {
        let places = Places::new(&Limits { connections: 3, connections_per_address: 2, ..Limits::default() });
        let take = |address: &str| places.take(address.parse().unwrap());
        let mine = [take("192.0.2.1").unwrap(), take("::ffff:192.0.2.1").unwrap()];
        assert!(take("192.0.2.1").unwrap_err().to_string().contains("its address"));
        let other = take("2001:db8::1").unwrap();
        assert!(take("192.0.2.3").unwrap_err().to_string().contains("as many connections as there may be"));
        drop(mine);
        let _more = take("2001:db8::2").unwrap();
        assert!(take("2001:db8::3").is_err(), "of IPv6 a /64 is one address");
        drop(other);
        take("2001:db8::3").unwrap();
        assert_eq!(places.crowd.count(), 1, "nobody is counted who left");
    }
}
