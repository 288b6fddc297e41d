//! One session per agent: a newer connection asks the older one to leave, and waits until it has. So two sessions
//! of one agent never write the same logs, and the core sees them one after the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use packrun_protocol::id::AgentId;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Holder {
    leave: CancellationToken,
    /// Held by whoever sits. Those who wait for it have a clone, and are served in their order.
    chair: Arc<tokio::sync::Mutex<()>>,
}

type Holders = HashMap<AgentId, Holder>;

/// Which agents have a session. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Holders>>);

/// An agent's only session. Another can begin once this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    agent: AgentId,
    leave: CancellationToken,
    chair: Option<OwnedMutexGuard<()>>,
}

impl Seats {
    /// Takes the agent's seat once its earlier session has left it.
    pub(super) async fn take(&self, agent: AgentId) -> Seat {
        let leave = CancellationToken::new();
        let chair = {
            let mut holders = self.holders();
            let holder = Holder { leave: leave.clone(), chair: Arc::default() };
            match holders.entry(agent) {
                Entry::Occupied(mut sitting) => {
                    let holder = Holder { chair: sitting.get().chair.clone(), ..holder };
                    let chair = holder.chair.clone();
                    sitting.insert(holder).leave.cancel();
                    chair
                }
                Entry::Vacant(vacant) => vacant.insert(holder).chair.clone(),
            }
        };
        // From here on it gives its place up when it is dropped, also while it still waits.
        let mut seat = Seat { seats: self.clone(), agent, leave, chair: None };
        seat.chair = Some(chair.lock_owned().await);
        seat
    }

    /// How many agents have a session.
    pub(super) fn count(&self) -> usize {
        self.holders().len()
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Returns when a newer connection of the agent wants the seat.
    pub(super) async fn wanted(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.chair = None;
        let mut holders = self.seats.holders();
        if holders.get(&self.agent).is_some_and(|holder| Arc::strong_count(&holder.chair) == 1) {
            holders.remove(&self.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_newer_session_begins_when_the_older_has_left() {
        let (seats, agent) = (Seats::default(), AgentId::generate());
        let first = seats.take(agent).await;
        assert!(first.wanted().now_or_never().is_none());
        let mut second = Box::pin(seats.take(agent));
        assert!(second.as_mut().now_or_never().is_none(), "the first is there");
        first.wanted().await;
        let mut third = Box::pin(seats.take(agent));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.await;
        second.wanted().await;
        drop(second);
        let third = third.await;
        assert!(third.wanted().now_or_never().is_none());
        drop(seats.take(AgentId::generate()).await);
        drop(third);
        assert!(seats.holders().is_empty(), "nobody is remembered who left");
    }

    #[tokio::test]
    async fn one_who_gave_up_waiting_holds_nobody_up() {
        let (seats, agent) = (Seats::default(), AgentId::generate());
        let first = seats.take(agent).await;
        assert!(seats.take(agent).now_or_never().is_none());
        assert!(seats.take(agent).now_or_never().is_none(), "the first still sits");
        drop(first);
        drop(seats.take(agent).await);
        assert!(seats.holders().is_empty());
    }
}
