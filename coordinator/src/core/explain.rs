//! Why a job run waits for an agent, in words for people. This may look at every agent: the scheduler never does.

use packrun_protocol::job::Requirement;

use super::Core;
use super::change::AgentState;
use super::schedule::{Availability, Host, Schedule};

impl Core {
    /// Why no agent has taken a job run with this requirement yet.
    pub(super) fn explain(&self, wanted: &Requirement) -> String {
        if self.schedule.hosts().next().is_some() {
            return self.schedule.explain(wanted);
        }
        let joined = self.agents.values().filter(|agent| agent.row.state != AgentState::Revoked).count();
        match joined {
            0 => "there is no agent; `packrun agents invite` makes a token for one to join".to_owned(),
            1 => "there is 1 agent, which has not connected yet".to_owned(),
            count => format!("there are {count} agents, of which none has connected yet"),
        }
    }
}

impl Schedule {
    fn explain(&self, wanted: &Requirement) -> String {
        let labels = &wanted.labels;
        let able: Vec<&Host> = self.matching(wanted).collect();
        if !able.is_empty() {
            let who = match (able.len(), labels.is_empty()) {
                (1, true) => "1 agent could take it".to_owned(),
                (count, true) => format!("{count} agents could take it"),
                (count, false) => matching(count, wanted),
            };
            return format!("{who}; {}", how_they_are(&able, wanted));
        }
        let labelled: Vec<&Host> = self.hosts().filter(|host| host.capacity.labels.satisfy(labels)).collect();
        if !labelled.is_empty() {
            let who = match (labelled.len(), labels.is_empty()) {
                (1, true) => "there is 1 agent".to_owned(),
                (count, true) => format!("there are {count} agents"),
                (count, false) => matching(count, wanted),
            };
            return format!("{who}; {}", too_small(&labelled, wanted));
        }
        let has = |key: &str, value: Option<&str>| {
            let own = |host: &Host| host.capacity.labels.get(key).map(str::to_owned);
            self.hosts().any(|host| own(host).is_some_and(|own| value.is_none_or(|value| own == value)))
        };
        match labels.iter().find(|(key, value)| !has(key, Some(value))) {
            Some((key, _)) if !has(key, None) => format!("no agent has label {key}"),
            Some((key, value)) => format!("no agent has label {key}={value}"),
            None => format!("no agent has all of {labels}"),
        }
    }
}

fn matching(count: usize, wanted: &Requirement) -> String {
    match count {
        1 => format!("1 agent matches {}", wanted.labels),
        count => format!("{count} agents match {}", wanted.labels),
    }
}

/// `both are full`, or `1 is full, 2 are not connected`.
fn how_they_are(able: &[&Host], wanted: &Requirement) -> String {
    let state = |host: &Host| match host.availability {
        Availability::Open if host.fits(wanted) => "free",
        Availability::Open => "full",
        Availability::Drained => "drained",
        Availability::Declines => "draining by its own word",
        Availability::Away => "not connected",
    };
    let counted = ["free", "full", "drained", "draining by its own word", "not connected"]
        .map(|name| (able.iter().filter(|host| state(host) == name).count(), name));
    let present: Vec<_> = counted.into_iter().filter(|(count, _)| *count > 0).collect();
    match present.as_slice() {
        [(1, name)] => format!("it is {name}"),
        [(2, name)] => format!("both are {name}"),
        [(_, name)] => format!("all are {name}"),
        several => several
            .iter()
            .map(|(count, name)| format!("{count} {} {name}", if *count == 1 { "is" } else { "are" }))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// `it has 2 cpus, and 4 are wanted`.
fn too_small(labelled: &[&Host], wanted: &Requirement) -> String {
    let most_cpus = labelled.iter().map(|host| host.capacity.cpu_millis).max().unwrap_or(0);
    let most_memory = labelled.iter().map(|host| host.capacity.memory_bytes).max().unwrap_or(0);
    let largest = if labelled.len() == 1 { "it has" } else { "they have at most" };
    let (has_cpus, has_memory) = (cpus(most_cpus), memory(most_memory));
    let (wants_cpus, wants_memory) = (cpus(wanted.cpu_millis), memory(wanted.memory_bytes));
    match (most_cpus < wanted.cpu_millis, most_memory < wanted.memory_bytes) {
        (true, true) => {
            format!("{largest} {has_cpus} and {has_memory}; {wants_cpus} and {wants_memory} are wanted")
        }
        (true, false) => format!("{largest} {has_cpus}; {wants_cpus} are wanted"),
        (false, true) => format!("{largest} {has_memory}; {wants_memory} are wanted"),
        (false, false) => format!("none has both {wants_cpus} and {wants_memory}"),
    }
}

fn cpus(millis: u32) -> String {
    format!("{} cpus", f64::from(millis) / 1000.0)
}

fn memory(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            match tenths % 10 {
                0 => format!("{} {unit} of memory", tenths / 10),
                tenth => format!("{}.{tenth} {unit} of memory", tenths / 10),
            }
        }
        None => format!("{bytes} bytes of memory"),
    }
}
