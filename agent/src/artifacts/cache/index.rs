//! What the cache holds, who uses it, and what goes first: pure. Only what nobody uses can be evicted, the
//! longest unused first; what is in use may exceed the bound, for a job needs its inputs however large they
//! are.

use std::collections::{BTreeMap, HashMap};

use packrun_protocol::id::Digest;

/// How much of a content is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A part, or nothing yet.
    Partial,
    /// All of it, with the digest checked.
    Whole,
}

#[derive(Debug)]
struct Slot {
    state: State,
    bytes: u64,
    users: u32,
    /// The slot's place in `idle` while it has no users.
    turn: u64,
}

#[derive(Debug)]
pub(super) struct Index {
    slots: HashMap<Digest, Slot>,
    /// Those without users, in the order in which the last one left.
    idle: BTreeMap<u64, Digest>,
    bytes: u64,
    bytes_max: u64,
    turn: u64,
}

/// What a digest's slot says to one who wants the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    pub(super) state: State,
    pub(super) bytes: u64,
    pub(super) is_used: bool,
}

impl Index {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { slots: HashMap::new(), idle: BTreeMap::new(), bytes: 0, bytes_max, turn: 0 }
    }

    pub(super) fn view(&self, digest: &Digest) -> Option<View> {
        let slot = self.slots.get(digest)?;
        Some(View { state: slot.state, bytes: slot.bytes, is_used: slot.users > 0 })
    }

    /// How many bytes are held or reserved.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One more user; a slot that isn't there is made as a partial one of no bytes.
    pub(super) fn hold(&mut self, digest: Digest) {
        let slot =
            self.slots.entry(digest).or_insert(Slot { state: State::Partial, bytes: 0, users: 0, turn: 0 });
        if slot.users == 0 {
            self.idle.remove(&slot.turn);
        }
        slot.users += 1;
    }

    /// One user less.
    pub(super) fn release(&mut self, digest: &Digest) {
        let Some(slot) = self.slots.get_mut(digest) else { return };
        slot.users = slot.users.saturating_sub(1);
        if slot.users == 0 {
            self.turn += 1;
            slot.turn = self.turn;
            self.idle.insert(self.turn, *digest);
        }
    }

    /// What a slot holds from now on.
    pub(super) fn set(&mut self, digest: &Digest, state: State, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(digest) {
            self.bytes = self.bytes.saturating_sub(slot.bytes).saturating_add(bytes);
            (slot.state, slot.bytes) = (state, bytes);
        }
    }

    /// Forgets a slot that has no users.
    pub(super) fn forget(&mut self, digest: &Digest) {
        if self.slots.get(digest).is_some_and(|slot| slot.users == 0)
            && let Some(slot) = self.slots.remove(digest)
        {
            self.idle.remove(&slot.turn);
            self.bytes = self.bytes.saturating_sub(slot.bytes);
        }
    }

    /// Forgets the slot that is to be evicted next and tells it; `None` when the bound is kept or all are in
    /// use.
    pub(super) fn evict(&mut self) -> Option<(Digest, State)> {
        if self.bytes <= self.bytes_max {
            return None;
        }
        let digest = *self.idle.first_key_value()?.1;
        let state = self.slots.get(&digest)?.state;
        self.forget(&digest);
        Some((digest, state))
    }
}
