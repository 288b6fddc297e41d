//! How many there are at a time, in all and of one kind each: of an address, of an agent. Both doors of the
//! coordinator count whom they let in by it, the one for agents and the one for clients of the API.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts those who are there. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Crowd<K> {
    counts: Arc<Mutex<Counts<K>>>,
    most: usize,
    most_of_one: usize,
}

#[derive(Debug)]
struct Counts<K> {
    all: usize,
    by_kind: HashMap<K, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are as many as there may be, which is so many.
    All(usize),
    /// Of this kind there are as many as there may be, which is so many.
    Kind(usize),
}

/// One who is there, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    counts: Arc<Mutex<Counts<K>>>,
    kind: K,
}

impl<K: Clone + Eq + Hash> Crowd<K> {
    /// At most so many in all, and of one kind.
    pub(crate) fn new(most: usize, most_of_one: usize) -> Self {
        let counts = Counts { all: 0, by_kind: HashMap::new() };
        Self { counts: Arc::new(Mutex::new(counts)), most, most_of_one }
    }

    /// Counts one more in, until its place is dropped.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn enter(&self, kind: K) -> Result<Place<K>, Full> {
        let mut counts = lock(&self.counts);
        let own = counts.by_kind.get(&kind).copied().unwrap_or(0);
        if counts.all >= self.most {
            return Err(Full::All(self.most));
        }
        if own >= self.most_of_one {
            return Err(Full::Kind(self.most_of_one));
        }
        counts.all += 1;
        counts.by_kind.insert(kind.clone(), own + 1);
        Ok(Place { counts: Arc::clone(&self.counts), kind })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.counts).all
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.by_kind.get_mut(&self.kind) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.by_kind.remove(&self.kind);
            }
        }
    }
}

fn lock<K>(counts: &Mutex<Counts<K>>) -> MutexGuard<'_, Counts<K>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What counts as one address: of IPv6 a /64, which is what one host is given.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::from(u64::MAX) << 64)))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_places_and_all_have_theirs_and_nobody_is_remembered_who_left() {
        let crowd = Crowd::new(3, 2);
        let ours: Vec<_> = std::iter::from_fn(|| crowd.enter("ours").ok()).collect();
        assert_eq!(ours.len(), 2);
        assert_eq!(crowd.enter("ours").unwrap_err(), Full::Kind(2));
        let other = crowd.enter("other").unwrap();
        assert_eq!((crowd.enter("third").unwrap_err(), crowd.count()), (Full::All(3), 3));
        drop(ours);
        drop(crowd.enter("third").unwrap());
        drop(other);
        assert_eq!(crowd.count(), 0);
        assert!(lock(&crowd.counts).by_kind.is_empty());
    }

    #[test]
    fn an_ipv6_host_counts_once_whatever_address_it_takes() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
