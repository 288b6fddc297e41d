//! What the machine says and does, case by case; `random` looks at all orders of them.

use packrun_protocol::control::{FromAgent, HeldAnswer, HeldPhase, Isolation, Slots, Welcome};
use packrun_protocol::id::{AgentId, AttemptNumber, EpochProof, JobRunId, PackRunId};
use packrun_protocol::job::{Action, Definition};
use packrun_protocol::state::Verdict;

use super::*;
use crate::spool::Started;

mod random;

const EPOCH: Epoch = Epoch(5);
const PROOF: EpochProof = EpochProof::from_bytes([5; 32]);

fn moment(millis: i64) -> Moment {
    let time = Timestamp::from_micros(millis * 1000);
    Moment { at: time, wall: time }
}

fn attempt(job_run: u8, number: u32) -> AttemptId {
    let number = AttemptNumber::new(number).unwrap();
    AttemptId { job_run: JobRunId::from_bytes([job_run; 16]), number }
}

fn assignment(attempt: AttemptId) -> Assignment {
    Assignment {
        attempt,
        pack_run: PackRunId::from_bytes([1; 16]),
        pack: "demo".parse().unwrap(),
        version: 1,
        key: "test".parse().unwrap(),
        definition: std::sync::Arc::new(Definition {
            action: Action::Script("true".into()),
            env: vec![],
            workdir: None,
            timeout: None,
            artifacts: vec![],
            inputs: vec![],
            log_bytes_max: packrun_protocol::limit::LOG_BYTES_MAX,
        }),
    }
}

fn outcome(verdict: Verdict, entries: u64) -> Outcome {
    Outcome {
        verdict,
        exit: None,
        reason: None,
        ended_at: Timestamp::default(),
        ran_for: Duration::ZERO,
        entries,
        artifacts: 0,
        invalid_bytes: 0,
    }
}

fn ended(attempt: AttemptId) -> Record {
    Record::Ended { attempt, outcome: outcome(Verdict::Succeeded, 3) }
}

fn started(attempt: AttemptId) -> Record {
    Record::Started(Started { attempt, pid: 1, start_ticks: 1, at: Timestamp::from_micros(7) })
}

fn machine() -> Machine {
    let capacity = Capacity { slots: Slots::try_from(2).unwrap(), cpu_millis: 2000, memory_bytes: 1 };
    let version = BoundedText::try_from("1").unwrap();
    let seen = Seen { epoch: EPOCH, proof: Some(PROOF) };
    Machine::new(
        Profile { version, labels: Labels::default(), capacity, isolation: Isolation::Subreaper },
        seen,
    )
}

fn frame(message: ToAgent) -> Input {
    Input::Frame(FromCoordinator { epoch: EPOCH, message })
}

fn welcome(attempts: Vec<(AttemptId, HeldAnswer)>) -> ToAgent {
    ToAgent::Welcome(Welcome {
        minor: MINOR,
        agent: AgentId::from_bytes([9; 16]),
        name: "host".parse().unwrap(),
        api: "http://127.0.0.1:7080".try_into().unwrap(),
        lease: Duration::from_secs(60),
        heartbeat: Duration::from_secs(5),
        attempts: attempts.try_into().unwrap(),
        proof: PROOF,
        refused: Labels::default(),
    })
}

/// A machine whose session is live since `millis`.
fn live(millis: i64) -> Machine {
    let mut machine = machine();
    machine.handle(Input::Connected, moment(millis));
    machine.handle(frame(welcome(vec![])), moment(millis));
    machine
}

/// Answers the machine's last ping.
fn pong(machine: &mut Machine, sent: i64, now: i64) -> Vec<Output> {
    machine.handle(pong_of(EPOCH, sent, now), moment(now))
}

fn pong_of(epoch: Epoch, sent: i64, now: i64) -> Input {
    let message = ToAgent::Pong { sent: moment(sent).at, answered: moment(now).at };
    Input::Frame(FromCoordinator { epoch, message })
}

fn starts(outputs: &[Output]) -> Vec<AttemptId> {
    let start = |output: &Output| match output {
        Output::Order(Order::Start { assignment, .. }) => Some(assignment.attempt),
        _ => None,
    };
    outputs.iter().filter_map(start).collect()
}

fn said(outputs: Vec<Output>) -> Vec<FromAgent> {
    let say = |output| match output {
        Output::Send(message) if !matches!(message, FromAgent::Ping(_)) => Some(message),
        _ => None,
    };
    outputs.into_iter().filter_map(say).collect()
}

fn assign(machine: &mut Machine, attempts: &[AttemptId], now: i64) -> Vec<Output> {
    let assignments = attempts.iter().copied().map(assignment).collect();
    machine.handle(frame(ToAgent::Assign(assignments)), moment(now))
}

#[test]
fn hello_tells_all_that_the_journal_holds_and_welcome_what_becomes_of_it() {
    let mut machine = machine();
    let [a, b, c, d] = [1, 2, 3, 4].map(|job_run| attempt(job_run, 1));
    for record in [a, b, c, d].map(|attempt| Record::Assigned { attempt, epoch: Epoch(7) }) {
        machine.handle(Input::Journal(record), moment(0));
    }
    machine.raise(Epoch(7));
    machine.handle(Input::Journal(started(b)), moment(0));
    machine.handle(Input::Journal(ended(c)), moment(0));
    let [FromAgent::Hello(hello)] = &said(machine.handle(Input::Connected, moment(0)))[..] else { panic!() };
    assert_eq!((hello.epoch, hello.proof, hello.draining), (Epoch(7), None, false));
    let phases: Vec<_> = hello.attempts.iter().map(|held| (held.attempt, held.phase)).collect();
    let running = HeldPhase::Running(Timestamp::from_micros(7));
    let assigned = HeldPhase::Assigned;
    assert_eq!(phases, [(a, assigned), (b, running), (c, HeldPhase::Ended), (d, assigned)]);
    // Between the two it goes on.
    machine.handle(Input::Journal(started(a)), moment(1));
    let go_on = HeldAnswer::GoOn { log_from: 2 };
    let answers = vec![(a, go_on), (b, HeldAnswer::Fenced), (c, go_on), (d, HeldAnswer::Settled)];
    let message = FromCoordinator { epoch: Epoch(7), message: welcome(answers) };
    let outputs = machine.handle(Input::Frame(message), moment(2));
    let mut logs = machine.handle(pong_of(Epoch(7), 2, 3), moment(3));
    logs.retain(|output| matches!(output, Output::OpenLog(..)));
    assert_eq!(logs, [Output::OpenLog(a, 2), Output::OpenLog(c, 2)]);
    for forgotten in [b, d] {
        assert!(outputs.contains(&Output::Forget(forgotten)));
        assert!(outputs.contains(&Output::Order(Order::Forget(vec![forgotten]))));
    }
    let at = Timestamp::from_micros(7);
    let news = [
        FromAgent::Started { attempt: a, at },
        FromAgent::Ended { attempt: c, outcome: outcome(Verdict::Succeeded, 3) },
    ];
    assert_eq!(said(outputs), news);
}

#[test]
fn a_welcome_that_answers_for_other_attempts_ends_the_session() {
    let mut machine = machine();
    machine.handle(Input::Connected, moment(0));
    let answers = vec![(attempt(1, 1), HeldAnswer::Settled)];
    let outputs = machine.handle(frame(welcome(answers)), moment(0));
    assert!(matches!(outputs[..], [Output::Leave(Leave::Protocol(_))]), "{outputs:?}");
}

#[test]
fn an_assignment_starts_once_and_never_below_a_known_one() {
    let mut machine = live(0);
    assert_eq!(starts(&assign(&mut machine, &[attempt(1, 2)], 1)), [attempt(1, 2)]);
    assert!(starts(&assign(&mut machine, &[attempt(1, 2), attempt(1, 1)], 2)).is_empty());
    assert_eq!(starts(&assign(&mut machine, &[attempt(1, 3)], 3)), [attempt(1, 3)]);
    machine.handle(frame(ToAgent::Settled(vec![attempt(1, 3), attempt(1, 2)])), moment(4));
    let known = [attempt(1, 1), attempt(1, 2), attempt(1, 3)];
    assert!(starts(&assign(&mut machine, &known, 5)).is_empty());
    assert_eq!(starts(&assign(&mut machine, &[attempt(1, 4)], 6)), [attempt(1, 4)]);
}

#[test]
fn more_than_there_are_slots_for_ends_the_session_once_and_nothing_of_it_starts() {
    let mut machine = live(0);
    let many: Vec<_> = (1..100).map(|job_run| attempt(job_run, 1)).collect();
    let leave = Output::Leave(Leave::Protocol("more attempts than the agent has slots"));
    assert_eq!(assign(&mut machine, &many, 1), [leave]);
    assert!(machine.is_empty());
}

#[test]
fn what_comes_after_a_long_silence_waits_for_a_sign_of_the_coordinator() {
    let mut machine = live(0);
    let outputs = assign(&mut machine, &[attempt(1, 1)], 10_001);
    assert!(starts(&outputs).is_empty());
    assert!(matches!(outputs[..], [Output::Send(FromAgent::Ping(_))]), "{outputs:?}");
    assert!(assign(&mut machine, &[attempt(2, 1)], 10_002).is_empty(), "it was asked just now");
    assert_eq!(starts(&pong(&mut machine, 10_001, 10_050)), [attempt(1, 1), attempt(2, 1)]);
}

#[test]
fn a_host_that_slept_starts_nothing_though_its_clock_stood_still() {
    let mut machine = live(0);
    let later = Moment { at: moment(100).at, wall: moment(3_600_000).at };
    let message = frame(ToAgent::Assign(vec![assignment(attempt(1, 1))]));
    let outputs = machine.handle(message, later);
    assert!(starts(&outputs).is_empty());
    // A pong to what was sent before the sleep is no sign either.
    let answered = moment(3_600_000).at;
    let pong = frame(ToAgent::Pong { sent: moment(0).at, answered });
    assert!(starts(&machine.handle(pong, Moment { at: moment(101).at, ..later })).is_empty());
    let pong = frame(ToAgent::Pong { sent: moment(100).at, answered });
    let outputs = machine.handle(pong, Moment { at: moment(110).at, ..later });
    assert_eq!(starts(&outputs), [attempt(1, 1)]);
}

#[test]
fn what_waits_is_dropped_with_the_session_and_can_be_canceled_before() {
    let mut machine = live(0);
    assign(&mut machine, &[attempt(1, 1), attempt(2, 1)], 20_000);
    let reason = Reason::new("enough");
    let cancel = ToAgent::Cancel { attempt: attempt(1, 1), reason: reason.clone() };
    let [FromAgent::Ended { attempt: canceled, outcome }] =
        &said(machine.handle(frame(cancel), moment(20_001)))[..]
    else {
        panic!()
    };
    assert_eq!(
        (*canceled, outcome.verdict, &outcome.reason),
        (attempt(1, 1), Verdict::Canceled, &Some(reason))
    );
    machine.handle(Input::Disconnected, moment(20_002));
    let [FromAgent::Hello(hello)] = &said(machine.handle(Input::Connected, moment(20_003)))[..] else {
        panic!()
    };
    let held: Vec<_> = hello.attempts.iter().map(|held| (held.attempt, held.phase)).collect();
    assert_eq!(held, [(attempt(1, 1), HeldPhase::Ended)]);
}

#[test]
fn a_lower_epoch_changes_nothing_and_a_higher_one_is_kept() {
    let mut machine = live(0);
    assign(&mut machine, &[attempt(1, 1)], 1);
    let fence = |epoch| Input::Frame(FromCoordinator { epoch, message: ToAgent::Fence(attempt(1, 1)) });
    let outputs = machine.handle(fence(Epoch(4)), moment(2));
    let (epoch, highest) = (Epoch(4), EPOCH);
    assert_eq!(outputs, [Output::Leave(Leave::LowerEpoch { epoch, highest })]);
    assert!(machine.is_busy());
    machine.handle(Input::Connected, moment(3));
    let go_on = vec![(attempt(1, 1), HeldAnswer::GoOn { log_from: 0 })];
    let message = FromCoordinator { epoch: Epoch(6), message: welcome(go_on) };
    let seen = Seen { epoch: Epoch(6), proof: Some(PROOF) };
    assert_eq!(machine.handle(Input::Frame(message), moment(4))[0], Output::Epoch(seen));
    assert!(matches!(machine.handle(fence(EPOCH), moment(5))[..], [Output::Leave(_)]));
    let [FromAgent::Hello(hello)] = &said(machine.handle(Input::Connected, moment(6)))[..] else { panic!() };
    assert_eq!((hello.epoch, hello.proof), (Epoch(6), Some(PROOF)));
    // One of whom no Welcome came has given no proof: another's is none of it.
    let outputs = machine.handle(fence(Epoch(7)), moment(7));
    assert_eq!(outputs[0], Output::Epoch(Seen { epoch: Epoch(7), proof: None }));
}

#[test]
fn a_coordinator_that_says_nothing_is_left() {
    let mut machine = machine();
    machine.handle(Input::Connected, moment(0));
    assert_eq!(machine.deadline(), Some(moment(10_000).at));
    assert_eq!(machine.handle(Input::Tick, moment(10_000)), [Output::Leave(Leave::Silent)]);
    let mut machine = live(0);
    assert_eq!(machine.deadline(), Some(moment(5_000).at), "a ping went with the Welcome");
    for now in [5_000, 10_000, 15_000, 20_000] {
        assert!(matches!(machine.handle(Input::Tick, moment(now))[..], [Output::Send(FromAgent::Ping(_))]));
    }
    pong(&mut machine, 0, 20_001);
    assert_eq!(machine.handle(Input::Tick, moment(29_999)).len(), 1);
    assert_eq!(machine.handle(Input::Tick, moment(30_000)), [Output::Leave(Leave::Silent)]);
}

#[test]
fn the_clocks_offset_is_told_before_any_log_is_sent() {
    let mut machine = live(0);
    let [a, b] = [attempt(1, 1), attempt(2, 1)];
    assert_eq!(starts(&assign(&mut machine, &[a, b], 1)), [a, b]);
    machine.handle(frame(ToAgent::Fence(b)), moment(2));
    let answer = ToAgent::Pong { sent: moment(0).at, answered: moment(60_005).at };
    let [Output::Send(FromAgent::Ping(ping)), Output::OpenLog(of, 0)] =
        &machine.handle(frame(answer), moment(10))[..]
    else {
        panic!()
    };
    let offset = Some(ClockOffset { micros: 60_000_000, error_micros: 5_000 });
    assert_eq!((ping.offset, *of), (offset, a));
    assert!(assign(&mut machine, &[attempt(3, 1)], 11).contains(&Output::OpenLog(attempt(3, 1), 0)));
    // An answer to nothing says nothing.
    machine.handle(frame(ToAgent::Pong { sent: moment(4_999).at, answered: moment(0).at }), moment(5_001));
    assert_eq!(machine.offset(), offset);
}

#[test]
fn draining_is_said_once_and_also_when_it_began_during_the_greeting() {
    let mut machine = machine();
    machine.handle(Input::Connected, moment(0));
    assert!(machine.handle(Input::Draining(true), moment(1)).is_empty());
    assert_eq!(said(machine.handle(frame(welcome(vec![])), moment(2))), [FromAgent::Draining(true)]);
    assert!(said(machine.handle(Input::Draining(true), moment(3))).is_empty());
    machine.handle(Input::Disconnected, moment(4));
    let [FromAgent::Hello(hello)] = &said(machine.handle(Input::Connected, moment(5)))[..] else { panic!() };
    assert!(hello.draining);
    assert!(said(machine.handle(frame(welcome(vec![])), moment(6))).is_empty());
}

#[test]
fn a_certificate_is_asked_for_until_it_comes() {
    let mut machine = live(0);
    let pem = BoundedText::try_from("new").unwrap();
    let certificate = || frame(ToAgent::Certificate(pem.clone()));
    let again = Duration::from_secs(60);
    machine.handle(Input::RenewAt { at: moment(1_000).at, again }, moment(0));
    assert!(machine.handle(Input::Tick, moment(999)).is_empty());
    assert!(machine.handle(certificate(), moment(999)).is_empty(), "nobody has asked for it");
    assert_eq!(machine.handle(Input::Tick, moment(1_000)), [Output::Renew]);
    assert!(!machine.handle(Input::Tick, moment(1_001)).contains(&Output::Renew));
    pong(&mut machine, 0, 1_002);
    pong(&mut machine, 1_002, 1_003);
    machine.handle(Input::Tick, moment(60_000));
    assert!(machine.handle(Input::Tick, moment(61_000)).contains(&Output::Renew));
    // In the next session at once: the answer may have been lost with this one.
    machine.handle(Input::Disconnected, moment(61_001));
    machine.handle(Input::Connected, moment(61_002));
    assert!(machine.handle(frame(welcome(vec![])), moment(61_003)).contains(&Output::Renew));
    assert_eq!(machine.handle(certificate(), moment(61_004)), [Output::Install(pem.clone())]);
    assert!(machine.handle(certificate(), moment(61_005)).is_empty(), "it has come");
}

#[test]
fn acknowledgements_only_go_forward_and_only_for_what_is_held() {
    let mut machine = live(0);
    assign(&mut machine, &[attempt(1, 1)], 1);
    let ack = |seq| frame(ToAgent::LogAck(vec![(attempt(1, 1), seq), (attempt(2, 1), seq)]));
    let outputs = machine.handle(ack(5), moment(2));
    assert_eq!(outputs, [Output::Order(Order::LogAck(vec![(attempt(1, 1), 5)]))]);
    assert!(machine.handle(ack(5), moment(3)).is_empty());
    assert!(machine.handle(ack(4), moment(4)).is_empty());
}

#[test]
fn who_lost_an_attempt_says_at_least_as_many_entries_as_the_coordinator_has() {
    let mut machine = machine();
    let lost = attempt(1, 1);
    machine.handle(Input::Journal(Record::Assigned { attempt: lost, epoch: EPOCH }), moment(0));
    let record = Record::Ended { attempt: lost, outcome: outcome(Verdict::Lost, 0) };
    machine.handle(Input::Journal(record), moment(0));
    machine.handle(Input::Connected, moment(0));
    let go_on = vec![(lost, HeldAnswer::GoOn { log_from: 40 })];
    let [FromAgent::Ended { outcome, .. }] = &said(machine.handle(frame(welcome(go_on)), moment(1)))[..]
    else {
        panic!()
    };
    assert_eq!(outcome.entries, 40);
}
