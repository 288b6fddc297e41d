//! Which agent gets which job run.
//!
//! Job runs of equal requirement form a *class* with one queue, oldest pack run first. A class knows the agents
//! that match it, and of those the ones that could take one more now, most free slots first. Among classes the
//! job run that stands first goes first.
//!
//! Invariants: a class is in `ready` under its first job run whenever it has one and an agent is free for it; an
//! agent never has more taken than its slots, processors and memory, but that it came back with less than it
//! runs. An event costs a logarithm for each class that its agent matches and in which something is queued.
//!
//! An empty class is kept for a while, because making one looks at all agents; but it is not kept up to date. An
//! agent that changes leaves it, once, and is *stale* there. The next job run that comes takes the stale ones up
//! again, which costs as much as leaving did.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use packrun_protocol::id::AgentId;
use packrun_protocol::job::Requirement;
use packrun_protocol::limit;

use super::event::Capacity;
use super::state::Place;

/// Empty classes kept.
pub(super) const IDLE_CLASSES_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ClassId(u64);

#[derive(Debug)]
struct Class {
    requirement: Arc<Requirement>,
    queue: BTreeSet<Place>,
    matching: BTreeSet<AgentId>,
    /// Those of the matching that have room for one more, but for the stale ones.
    free: BTreeSet<(Reverse<u32>, AgentId)>,
    /// Those of the matching that changed while nothing was queued.
    stale: BTreeSet<AgentId>,
    /// The stamp under which it is in `idle`, while its queue is empty.
    idle: Option<u64>,
}

impl Class {
    /// Ranks a matching agent among the free ones, if it has room. Says whether it has.
    fn rank(&mut self, agent: AgentId, host: &Host) -> bool {
        let free = host.availability == Availability::Open && host.fits(&self.requirement);
        if free {
            self.free.insert((Reverse(host.slots_free()), agent));
        }
        free
    }
}

/// Whether an agent may be given more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Availability {
    /// It has no session.
    #[default]
    Away,
    /// It wants nothing more, by its own word.
    Declines,
    /// Someone drained it.
    Drained,
    /// It may.
    Open,
}

#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) capacity: Capacity,
    pub(super) availability: Availability,
    slots_used: u32,
    cpu_used: u64,
    memory_used: u128,
    /// The classes it matches, but for those in which it is stale.
    classes: BTreeSet<ClassId>,
}

impl Host {
    fn slots_free(&self) -> u32 {
        self.capacity.slots.min(limit::SLOTS_MAX).saturating_sub(self.slots_used)
    }

    /// Whether it could take this if it held nothing else.
    pub(super) fn matches(&self, wanted: &Requirement) -> bool {
        self.capacity.labels.satisfy(&wanted.labels)
            && self.capacity.slots > 0
            && wanted.cpu_millis <= self.capacity.cpu_millis
            && wanted.memory_bytes <= self.capacity.memory_bytes
    }

    /// Whether it holds more than it can take, since it came back with less.
    pub(super) fn is_overfull(&self) -> bool {
        self.slots_used > self.capacity.slots.min(limit::SLOTS_MAX)
            || self.cpu_used > self.capacity.cpu_millis.into()
            || self.memory_used > self.capacity.memory_bytes.into()
    }

    /// Whether a match has room for one more now.
    pub(super) fn fits(&self, wanted: &Requirement) -> bool {
        self.slots_free() > 0
            && self.cpu_used + u64::from(wanted.cpu_millis) <= u64::from(self.capacity.cpu_millis)
            && self.memory_used + u128::from(wanted.memory_bytes) <= u128::from(self.capacity.memory_bytes)
    }
}

#[derive(Debug, Default)]
pub(super) struct Schedule {
    hosts: BTreeMap<AgentId, Host>,
    classes: BTreeMap<ClassId, Class>,
    interned: BTreeMap<Arc<Requirement>, ClassId>,
    idle: BTreeSet<(u64, ClassId)>,
    ready: BTreeSet<(Place, ClassId)>,
    stamp: u64,
    /// How often an agent was looked at for a class.
    #[cfg(test)]
    pub(super) looks: usize,
}

impl Schedule {
    pub(super) fn enqueue(&mut self, place: Place, wanted: &Requirement) {
        let id = self.class(wanted);
        let Some(class) = self.classes.get_mut(&id) else { return };
        class.queue.insert(place);
        if let Some(stamp) = class.idle.take() {
            self.idle.remove(&(stamp, id));
            for agent in std::mem::take(&mut class.stale) {
                let Some(host) = self.hosts.get_mut(&agent) else { continue };
                host.classes.insert(id);
                class.rank(agent, host);
                #[cfg(test)]
                {
                    self.looks += 1;
                }
            }
        }
        self.mark(id);
    }

    pub(super) fn dequeue(&mut self, place: Place, wanted: &Requirement) {
        let Some(&id) = self.interned.get(wanted) else { return };
        self.take_out(place, id);
    }

    /// The next job run to assign and its agent, whose room is taken with this.
    pub(super) fn next(&mut self) -> Option<(Place, AgentId)> {
        while let Some((place, id)) = self.ready.pop_first() {
            let Some(class) = self.classes.get(&id) else { continue };
            let Some(&(_, agent)) = class.free.first() else { continue };
            if class.queue.first() != Some(&place) {
                continue;
            }
            let wanted = Arc::clone(&class.requirement);
            self.take(agent, &wanted);
            self.take_out(place, id);
            return Some((place, agent));
        }
        None
    }

    /// Takes an agent's room for an attempt that it holds, whether there is any or not.
    pub(super) fn take(&mut self, agent: AgentId, wanted: &Requirement) {
        self.update(agent, |host| {
            host.slots_used += 1;
            host.cpu_used += u64::from(wanted.cpu_millis);
            host.memory_used += u128::from(wanted.memory_bytes);
        });
    }

    pub(super) fn give_back(&mut self, agent: AgentId, wanted: &Requirement) {
        self.update(agent, |host| {
            host.slots_used = host.slots_used.saturating_sub(1);
            host.cpu_used = host.cpu_used.saturating_sub(wanted.cpu_millis.into());
            host.memory_used = host.memory_used.saturating_sub(wanted.memory_bytes.into());
        });
    }

    /// Lets an agent have more, or no more.
    pub(super) fn set_availability(&mut self, agent: AgentId, availability: Availability) {
        self.update(agent, |host| host.availability = availability);
    }

    /// Knows an agent by what it can take, and gives it nothing until it is available. What it holds stays taken.
    pub(super) fn set_capacity(&mut self, agent: AgentId, capacity: Capacity) {
        if self.hosts.get(&agent).is_some_and(|host| host.capacity == capacity) {
            return self.set_availability(agent, Availability::Away);
        }
        let mut host = self.remove(agent).unwrap_or_default();
        host.capacity = capacity;
        for (&id, class) in &mut self.classes {
            if host.matches(&class.requirement) {
                class.matching.insert(agent);
                host.classes.insert(id);
            }
        }
        self.hosts.insert(agent, host);
    }

    pub(super) fn remove(&mut self, agent: AgentId) -> Option<Host> {
        self.set_availability(agent, Availability::Away);
        let mut host = self.hosts.remove(&agent)?;
        host.classes.clear();
        for class in self.classes.values_mut() {
            class.matching.remove(&agent);
            class.stale.remove(&agent);
        }
        Some(host)
    }

    pub(super) fn host(&self, agent: AgentId) -> Option<&Host> {
        self.hosts.get(&agent)
    }

    /// How many job runs are queued.
    pub(super) fn len(&self) -> usize {
        self.classes.values().map(|class| class.queue.len()).sum()
    }

    /// All known agents, and those that could ever take a job run of this requirement.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    pub(super) fn matching<'a>(&'a self, wanted: &Requirement) -> impl Iterator<Item = &'a Host> {
        let class = self.interned.get(wanted).and_then(|id| self.classes.get(id));
        class.into_iter().flat_map(|class| &class.matching).filter_map(|agent| self.hosts.get(agent))
    }

    /// Changes an agent, and its rank in every class it matches that has a queue.
    fn update(&mut self, agent: AgentId, change: impl FnOnce(&mut Host)) {
        let Some(host) = self.hosts.get_mut(&agent) else { return };
        let before = (Reverse(host.slots_free()), agent);
        change(host);
        #[cfg(test)]
        {
            self.looks += host.classes.len();
        }
        let mut classes = std::mem::take(&mut host.classes);
        classes.retain(|&id| {
            let Some(class) = self.classes.get_mut(&id) else { return false };
            class.free.remove(&before);
            let Some(&first) = class.queue.first() else {
                class.stale.insert(agent);
                return false;
            };
            if class.rank(agent, host) {
                self.ready.insert((first, id));
            }
            true
        });
        host.classes = classes;
    }

    /// Whether nothing is queued and nothing taken.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.classes.values().all(|class| class.queue.is_empty())
            && self.hosts.values().all(|host| (host.slots_used, host.cpu_used, host.memory_used) == (0, 0, 0))
    }

    fn mark(&mut self, id: ClassId) {
        let Some(class) = self.classes.get(&id) else { return };
        if let (Some(&first), false) = (class.queue.first(), class.free.is_empty()) {
            self.ready.insert((first, id));
        }
    }

    fn take_out(&mut self, place: Place, id: ClassId) {
        let Some(class) = self.classes.get_mut(&id) else { return };
        if !class.queue.remove(&place) {
            return;
        }
        self.ready.remove(&(place, id));
        if !class.queue.is_empty() {
            return self.mark(id);
        }
        self.stamp += 1;
        class.idle = Some(self.stamp);
        self.idle.insert((self.stamp, id));
        if self.idle.len() > IDLE_CLASSES_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((_, id)) = self.idle.pop_first() else { return };
        let Some(class) = self.classes.remove(&id) else { return };
        self.interned.remove(&class.requirement);
        for agent in class.matching {
            if let Some(host) = self.hosts.get_mut(&agent) {
                host.classes.remove(&id);
            }
        }
    }

    fn class(&mut self, wanted: &Requirement) -> ClassId {
        if let Some(&id) = self.interned.get(wanted) {
            return id;
        }
        self.stamp += 1;
        let id = ClassId(self.stamp);
        let requirement = Arc::new(wanted.clone());
        let mut class = Class {
            requirement: Arc::clone(&requirement),
            queue: BTreeSet::new(),
            matching: BTreeSet::new(),
            free: BTreeSet::new(),
            stale: BTreeSet::new(),
            idle: None,
        };
        for (&agent, host) in self.hosts.iter_mut().filter(|(_, host)| host.matches(wanted)) {
            host.classes.insert(id);
            class.matching.insert(agent);
            class.rank(agent, host);
        }
        #[cfg(test)]
        {
            self.looks += self.hosts.len();
        }
        self.interned.insert(requirement, id);
        self.classes.insert(id, class);
        id
    }
}
