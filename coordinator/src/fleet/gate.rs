//! Who may come in at all, before anything is known of him: limits by address and by rate. Addresses were
//! validated before they are counted, so nobody can use up another's share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use packrun_protocol::time::Timestamp;

use crate::crowd::{self, Crowd, network};

/// One address gets this part, one in so many, of what all may have at once.
const SHARES: u32 = 4;

/// Lets `burst` through at once and then one per `interval` (the generic cell rate algorithm).
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    interval: Duration,
    tolerance: Duration,
    /// When the next would be due if all came evenly.
    due: Timestamp,
}

impl Rate {
    /// `per_second` on average, at least one, and as many as come in `burst` seconds at once.
    pub(super) fn new(per_second: u32, burst: Duration) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, tolerance: burst.max(interval), due: Timestamp::MIN }
    }

    /// Whether one more may pass now.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        let due = self.due.max(now);
        let passes = (due + self.interval).since(now) <= self.tolerance;
        if passes {
            self.due = due + self.interval;
        }
        passes
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too many come at once: he may try again at once, and will be no burden meanwhile.
    Busy,
    /// His address has as many connections as it may.
    Crowded,
}

/// A rate for all, of which one address gets no more than a share. Of addresses that keep below theirs nothing is
/// remembered, so no more are known than the rate for all lets through.
#[derive(Debug)]
pub(super) struct SharedRate {
    all: Rate,
    share: Rate,
    by_address: HashMap<IpAddr, Rate>,
}

impl SharedRate {
    /// `per_second` on average, and as many as come in `burst` seconds at once; one address gets a share of it.
    pub(super) fn new(per_second: u32, burst: Duration) -> Self {
        let share = Rate::new(per_second.div_ceil(SHARES), burst);
        Self { all: Rate::new(per_second, burst), share, by_address: HashMap::new() }
    }

    /// Whether one more of this address may pass now.
    pub(super) fn take(&mut self, address: IpAddr, now: Timestamp) -> bool {
        let address = network(address);
        let mut own = self.by_address.get(&address).copied().unwrap_or(self.share);
        let passes = own.take(now) && self.all.take(now);
        if passes {
            self.by_address.retain(|_, rate| rate.due > now);
            self.by_address.insert(address, own);
        }
        passes
    }
}

/// Counts connections. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    rate: Arc<Mutex<SharedRate>>,
    connections: Crowd<IpAddr>,
    /// Of these, those that are still shaking hands.
    handshakes: Crowd<IpAddr>,
}

impl Gate {
    pub(super) fn new(rate: SharedRate, under_way_max: usize, per_address_max: usize) -> Self {
        Self {
            rate: Arc::new(Mutex::new(rate)),
            connections: Crowd::new(usize::MAX, per_address_max),
            handshakes: Crowd::new(under_way_max, under_way_max.div_ceil(SHARES as usize)),
        }
    }

    /// Counts a connection in, until its place is dropped.
    pub(super) fn enter(&self, address: IpAddr, now: Timestamp) -> Result<Place, Refused> {
        let address = network(address);
        let connection = self.connections.enter(address).map_err(|_| Refused::Crowded)?;
        let handshake = self.handshakes.enter(address).map_err(|_| Refused::Busy)?;
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if !rate.take(address, now) {
            return Err(Refused::Busy);
        }
        Ok(Place { handshake: Some(handshake), _connection: connection })
    }

    /// How many connections there are, and how many of them are still shaking hands.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.connections.count(), self.handshakes.count())
    }
}

/// A connection that was let in. It counts until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    handshake: Option<crowd::Place<IpAddr>>,
    _connection: crowd::Place<IpAddr>,
}

impl Place {
    /// The handshake is done: another may begin.
    pub(super) fn settle(&mut self) {
        self.handshake = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn gate(under_way: usize, per_address: usize) -> Gate {
        Gate::new(SharedRate::new(1000, Duration::from_secs(1)), under_way, per_address)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_rate_lets_a_burst_through_and_then_its_average() {
        let mut rate = Rate::new(10, Duration::from_secs(1));
        assert_eq!((0..100).filter(|_| rate.take(NOW)).count(), 10);
        let later = NOW + Duration::from_millis(250);
        assert_eq!((0..100).filter(|_| rate.take(later)).count(), 2);
        let much_later = NOW + Duration::from_secs(1000);
        assert_eq!((0..100).filter(|_| rate.take(much_later)).count(), 10, "no more than a burst is saved");
    }

    #[test]
    fn an_address_that_is_full_leaves_room_for_others_and_gets_it_back() {
        let gate = gate(100, 2);
        let (ours, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let first = gate.enter(ours, NOW).unwrap();
        let _second = gate.enter(ours, NOW).unwrap();
        assert_eq!(gate.enter(ours, NOW).unwrap_err(), Refused::Crowded);
        assert_eq!(gate.enter(address("::ffff:192.0.2.1"), NOW).unwrap_err(), Refused::Crowded);
        drop(gate.enter(other, NOW).unwrap());
        drop(first);
        gate.enter(ours, NOW).unwrap();
        assert_eq!(gate.count(), (1, 1), "nobody is counted who left");
    }

    #[test]
    fn an_ipv6_host_counts_once_whatever_address_it_takes() {
        let gate = gate(100, 1);
        let _place = gate.enter(address("2001:db8::1"), NOW).unwrap();
        assert_eq!(gate.enter(address("2001:db8::ffff:2"), NOW).unwrap_err(), Refused::Crowded);
        gate.enter(address("2001:db8:0:1::1"), NOW).unwrap();
    }

    #[test]
    fn one_address_leaves_handshakes_and_enrolments_to_others() {
        let gate = gate(8, 100);
        let mine: Vec<_> =
            std::iter::from_fn(|| gate.enter(address("192.0.2.1"), NOW).ok()).take(8).collect();
        assert_eq!(mine.len(), 2);
        let _other = gate.enter(address("192.0.2.2"), NOW).unwrap();

        let mut rate = SharedRate::new(8, Duration::from_secs(1));
        let taken = |rate: &mut SharedRate, from| (0..8).filter(|_| rate.take(address(from), NOW)).count();
        assert_eq!((taken(&mut rate, "192.0.2.1"), taken(&mut rate, "192.0.2.2")), (2, 2));
        assert!(rate.take(address("192.0.2.3"), NOW + Duration::from_secs(3600)));
        assert_eq!(rate.by_address.len(), 1, "the others are forgotten");
    }

    #[test]
    fn one_address_that_shakes_hands_all_the_time_leaves_handshakes_to_others() {
        let gate = gate(100, 10_000);
        let shakes = |from| {
            let hands = || gate.enter(address(from), NOW).ok().map(|mut place| place.settle());
            std::iter::from_fn(hands).take(1000).count()
        };
        assert_eq!((shakes("192.0.2.1"), shakes("192.0.2.2")), (250, 250));
    }

    #[test]
    fn handshakes_under_way_are_bounded_and_done_ones_make_room() {
        let gate = gate(1, 10);
        let mut first = gate.enter(address("192.0.2.1"), NOW).unwrap();
        assert_eq!(gate.enter(address("192.0.2.2"), NOW).unwrap_err(), Refused::Busy);
        first.settle();
        drop(gate.enter(address("192.0.2.2"), NOW).unwrap());
        drop(first);
        gate.enter(address("192.0.2.2"), NOW).unwrap();
    }
}
