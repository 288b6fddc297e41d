//! All orders of what can happen: a coordinator that says anything at any time, a journal that grows with delay,
//! connections that come and go. What must hold holds after each step.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Connect,
    Disconnect,
    /// Answers for what Hello named: goes on, fenced or settled by the attempt's bits of the number.
    Welcome(u32),
    Assign(u8, u32),
    Cancel(u8, u32),
    Fence(u8, u32),
    Settled(u8, u32),
    LogAck(u8, u32, u64),
    Pong,
    LowerEpoch(u8, u32),
    HigherEpoch,
    Goodbye,
    /// The journal's reader tells the next so many records.
    Journal(usize),
    /// The oldest attempt that runs goes a step further.
    Progress(u8),
    Draining(bool),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let (job, number) = (0..4u8, 1..4u32);
    let of = move || (job.clone(), number.clone());
    prop_oneof![
        3 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        4 => any::<u32>().prop_map(Step::Welcome),
        6 => of().prop_map(|(job, number)| Step::Assign(job, number)),
        2 => of().prop_map(|(job, number)| Step::Cancel(job, number)),
        2 => of().prop_map(|(job, number)| Step::Fence(job, number)),
        2 => of().prop_map(|(job, number)| Step::Settled(job, number)),
        1 => (of(), 0..9u64).prop_map(|((job, number), seq)| Step::LogAck(job, number, seq)),
        3 => Just(Step::Pong),
        1 => of().prop_map(|(job, number)| Step::LowerEpoch(job, number)),
        1 => Just(Step::HigherEpoch),
        1 => Just(Step::Goodbye),
        6 => (1..4usize).prop_map(Step::Journal),
        5 => (0..8u8).prop_map(Step::Progress),
        1 => any::<bool>().prop_map(Step::Draining),
        3 => (1..15_000i64).prop_map(Step::Wait),
    ]
}

/// The world round the machine, and what it has seen of it.
struct World {
    machine: Machine,
    now: i64,
    epoch: Epoch,
    /// Records that are written and not told yet.
    untold: VecDeque<Record>,
    /// What the executor has: whether it started.
    running: BTreeMap<AttemptId, bool>,
    written: BTreeSet<AttemptId>,
    hello: Option<Hello>,
    is_welcomed: bool,
    pings: Vec<Timestamp>,
    /// When what was answered last in this session was sent.
    answered: Option<i64>,
    greeted_at: i64,
    started: BTreeSet<AttemptId>,
    forgotten: BTreeSet<AttemptId>,
    told: BTreeMap<AttemptId, Vec<&'static str>>,
}

impl World {
    fn new() -> Self {
        Self {
            machine: machine(),
            now: 0,
            epoch: EPOCH,
            untold: VecDeque::new(),
            running: BTreeMap::new(),
            written: BTreeSet::new(),
            hello: None,
            is_welcomed: false,
            pings: Vec::new(),
            answered: None,
            greeted_at: 0,
            started: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    fn say(&mut self, message: ToAgent) {
        let frame = FromCoordinator { epoch: self.epoch, message };
        self.feed(Input::Frame(frame));
    }

    fn feed(&mut self, input: Input) {
        let outputs = self.machine.handle(input, moment(self.now));
        for output in outputs {
            match output {
                Output::Send(message) => self.said(message),
                Output::Order(order) => self.ordered(order),
                Output::Leave(_) => self.away(),
                _ => {}
            }
        }
    }

    fn away(&mut self) {
        (self.hello, self.is_welcomed, self.answered) = (None, false, None);
        self.pings.clear();
        self.told.clear();
    }

    fn said(&mut self, message: FromAgent) {
        let (attempt, what) = match message {
            FromAgent::Hello(hello) => {
                for held in hello.attempts.iter() {
                    assert!(!self.forgotten.contains(&held.attempt), "a forgotten attempt in Hello");
                }
                self.hello = Some(hello);
                return;
            }
            FromAgent::Ping(ping) => return self.pings.push(ping.sent),
            FromAgent::Started { attempt, .. } => (attempt, "started"),
            FromAgent::Ended { attempt, .. } => (attempt, "ended"),
            FromAgent::Renew(_) | FromAgent::Draining(_) => return assert!(self.is_welcomed),
        };
        assert!(self.is_welcomed, "{what} before Welcome");
        assert!(!self.forgotten.contains(&attempt), "{what} of a forgotten attempt");
        let told = self.told.entry(attempt).or_default();
        assert!(!told.contains(&what) && !told.contains(&"ended"), "{what} after {told:?}");
        told.push(what);
    }

    fn ordered(&mut self, order: Order) {
        match order {
            Order::Start { assignment, epoch, .. } => {
                let attempt = assignment.attempt;
                assert!(self.started.insert(attempt), "{attempt} started twice");
                let higher = |other: &&AttemptId| other.job_run == attempt.job_run && **other > attempt;
                assert!(!self.started.iter().any(|other| higher(&other)), "{attempt} after a higher one");
                assert!(self.now - self.answered.expect("a sign") <= 10_000, "a stale start");
                assert!(!self.forgotten.contains(&attempt));
                self.untold.push_back(Record::Assigned { attempt, epoch });
                self.written.insert(attempt);
                self.running.insert(attempt, false);
            }
            Order::Forget(attempts) => {
                for attempt in attempts {
                    self.running.remove(&attempt);
                    self.written.remove(&attempt);
                    self.untold.push_back(Record::Settled(attempt));
                }
            }
            Order::Cancel { attempt, .. } => self.end(attempt, Verdict::Canceled),
            _ => {}
        }
    }

    fn end(&mut self, attempt: AttemptId, verdict: Verdict) {
        if self.running.remove(&attempt).is_some() {
            self.untold.push_back(Record::Ended { attempt, outcome: outcome(verdict, 1) });
        }
    }

    fn forget(&mut self, attempt: AttemptId) {
        if self.is_welcomed {
            self.forgotten.insert(attempt);
        }
    }

    fn welcome(&mut self, answers: u32) {
        let Some(hello) = self.hello.clone().filter(|_| !self.is_welcomed) else { return };
        self.is_welcomed = true;
        self.answered = Some(self.greeted_at);
        let mut attempts = Vec::new();
        for (at, held) in hello.attempts.iter().enumerate() {
            attempts.push((
                held.attempt,
                match answers >> (2 * at) & 3 {
                    0 => HeldAnswer::Fenced,
                    1 => HeldAnswer::Settled,
                    _ => HeldAnswer::GoOn { log_from: 0 },
                },
            ));
        }
        let forgotten = attempts.iter().filter(|(_, answer)| !matches!(answer, HeldAnswer::GoOn { .. }));
        self.forgotten.extend(forgotten.map(|(attempt, _)| *attempt));
        self.say(welcome(attempts));
    }

    fn tell(&mut self, records: usize) {
        for record in self.untold.drain(..records.min(self.untold.len())).collect::<Vec<_>>() {
            self.feed(Input::Journal(record));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect if self.hello.is_none() => {
                self.greeted_at = self.now;
                self.feed(Input::Connected);
            }
            Step::Connect => {}
            Step::Disconnect => {
                self.away();
                self.feed(Input::Disconnected);
            }
            Step::Welcome(answers) => self.welcome(answers),
            // What follows is said by a coordinator that keeps to the order of the protocol.
            Step::Journal(records) => self.tell(records),
            Step::Progress(which) => {
                let attempt = self.running.keys().nth(usize::from(which) / 2).copied();
                let Some(attempt) = attempt else { return };
                match self.running.insert(attempt, true) {
                    Some(false) if which % 2 == 0 => self.untold.push_back(started(attempt)),
                    _ => self.end(attempt, Verdict::Succeeded),
                }
            }
            Step::Draining(draining) => self.feed(Input::Draining(draining)),
            Step::Wait(millis) => {
                self.now += millis;
                self.feed(Input::Tick);
            }
            _ if !self.is_welcomed => {}
            Step::Assign(job, number) => self.say(ToAgent::Assign(vec![assignment(attempt(job, number))])),
            Step::Cancel(job, number) => {
                let reason = Reason::new("enough");
                self.say(ToAgent::Cancel { attempt: attempt(job, number), reason });
            }
            Step::Fence(job, number) => {
                self.forget(attempt(job, number));
                self.say(ToAgent::Fence(attempt(job, number)));
            }
            Step::Settled(job, number) => {
                self.forget(attempt(job, number));
                self.say(ToAgent::Settled(vec![attempt(job, number)]));
            }
            Step::LogAck(job, number, seq) => self.say(ToAgent::LogAck(vec![(attempt(job, number), seq)])),
            Step::Pong => {
                if let Some(sent) = self.pings.pop() {
                    self.pings.clear();
                    self.answered = Some(sent.as_micros() / 1000);
                    let answered = moment(self.now).at;
                    self.say(ToAgent::Pong { sent, answered });
                }
            }
            Step::LowerEpoch(job, number) => {
                let epoch = Epoch(self.machine.seen.epoch.0 - 1);
                let frame = FromCoordinator { epoch, message: ToAgent::Fence(attempt(job, number)) };
                let held = self.machine.held.len();
                self.feed(Input::Frame(frame));
                assert_eq!((self.machine.held.len(), self.hello.is_none()), (held, true));
            }
            Step::HigherEpoch => self.epoch = Epoch(self.epoch.0 + 1),
            Step::Goodbye => {
                let reason = Reason::new("");
                self.say(ToAgent::Goodbye { restarting: true, reason });
                assert!(self.hello.is_none());
            }
        }
    }

    /// A session in which all goes on: whatever is written and not forgotten is told.
    fn settle(&mut self) {
        self.step(Step::Disconnect);
        self.tell(usize::MAX);
        self.step(Step::Connect);
        let hello = self.hello.clone().expect("a Hello");
        let held: BTreeSet<_> = hello.attempts.iter().map(|held| held.attempt).collect();
        assert!(self.written.is_subset(&held), "Hello names all of {:?}: {held:?}", self.written);
        self.welcome(u32::MAX);
        for attempt in &self.written {
            let is_told = self.told.get(attempt).is_some_and(|told| told.contains(&"ended"));
            assert_eq!(is_told, !self.running.contains_key(attempt), "{attempt}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn in_any_order_nothing_is_started_twice_or_told_too_often_or_forgotten(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
    }
}
