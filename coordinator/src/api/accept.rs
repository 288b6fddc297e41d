//! Connections: how many there may be, in all and of one address, so that clients of the API don't use up the file
//! descriptors that the store, the logs and the agents need, nor one of them those of the others; none waits to send
//! what it has, and none is kept whose client takes nothing.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::fleet::network;

/// How often it is said at most that connections are turned away.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Lets in as many connections at a time as it has places; beyond that they are closed. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Places {
    counts: Arc<Mutex<Counts>>,
    most: usize,
    most_of_one: usize,
    stall_time: Duration,
    budget: Budget,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    said: Option<Instant>,
}

/// A place. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

/// A connection's service, with its place.
#[derive(Debug, Clone)]
pub(super) struct Placed<S> {
    service: S,
    stall: Stall,
    budget: Budget,
    _place: Arc<Place>,
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        let (most, most_of_one) = (limits.connections, limits.connections_per_address);
        Self {
            counts: Arc::default(),
            most,
            most_of_one,
            stall_time: limits.stall_time,
            budget: Budget::of(limits.answer_bytes),
        }
    }

    /// A place for a connection from `address`.
    ///
    /// # Errors
    /// When there is none.
    fn take(&self, address: IpAddr) -> io::Result<Place> {
        let address = network(address);
        let mut counts = self.counts();
        let own = counts.by_address.get(&address).copied().unwrap_or(0);
        let (why, limit) = if counts.all >= self.most {
            ("there are as many connections as there may be", self.most)
        } else if own >= self.most_of_one {
            ("its address has as many connections as it may", self.most_of_one)
        } else {
            counts.all += 1;
            counts.by_address.insert(address, own + 1);
            return Ok(Place { places: self.clone(), address });
        };
        if counts.said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
            counts.said = Some(Instant::now());
            tracing::warn!(%address, limit, "a connection to the API is closed: {why}; so are others, unsaid");
        }
        Err(io::Error::other(why))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.counts();
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.by_address.get_mut(&self.address) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.by_address.remove(&self.address);
            }
        }
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
        assert_eq!(places.counts().by_address.len(), 1, "nobody is remembered who left");
    }
}
