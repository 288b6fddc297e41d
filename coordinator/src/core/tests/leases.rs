//! Agents that come, go, die and lie, and what becomes of what they hold, told in short scenes.

use std::time::Duration;

use packrun_protocol::control::HeldAttempt;
use packrun_protocol::job::Requirement;
use packrun_protocol::state::{AttemptState, PackRunState, Verdict};

use super::make::{JobSpec, RUNNING, connected, job_run_id, labels, outcome, slots};
use super::scene::{attempt, run, run_state, session, states, world};
use crate::core::event::{Arrival, Capacity, Command, Event, LogIndex, Report, SessionId};
use crate::core::outcome::{CloseReason, Effect, Refusal};
use crate::core::plan::{BACKOFF_MAX, Retry};

#[test]
fn a_retry_waits_longer_each_time_and_the_old_attempt_is_fenced() {
    let (mut world, agent) = world(&[JobSpec { attempts: 3, backoff: 100, ..JobSpec::default() }]);
    let mut waits = Vec::new();
    for number in 1..3 {
        run(&mut world, agent, attempt(0, number), Verdict::Failed);
        assert_eq!(states(&world, 1), ["queued"]);
        let due = world.core.next_deadline().unwrap();
        waits.push(due.since(world.now).as_secs());
        world.now = due;
        world.apply(Event::Wake);
        world.settle();
        assert_eq!(states(&world, 1), ["assigned"]);
    }
    assert!((75..=100).contains(&waits[0]) && (150..=200).contains(&waits[1]), "{waits:?}");

    let over = session(&world, agent);
    let late = world.report(agent, over, Report::Started { ticket: None, attempt: attempt(0, 2) });
    assert!(late.changes.is_empty());
    assert!(matches!(late.effects[..], [Effect::Fence { .. }]));
    run(&mut world, agent, attempt(0, 3), Verdict::Failed);
    assert_eq!(run_state(&world), PackRunState::Failed);
}

#[test]
fn a_restart_cuts_no_retry_s_wait_short() {
    let (mut world, agent) = world(&[JobSpec { attempts: 2, backoff: 100, ..JobSpec::default() }]);
    run(&mut world, agent, attempt(0, 1), Verdict::Failed);
    let due = world.core.next_deadline().unwrap();
    world.restart();
    world.connect(agent);
    world.advance(Duration::from_secs(60));
    world.apply(Event::Wake);
    assert_eq!(states(&world, 1), ["queued"]);
    assert_eq!(world.core.next_deadline(), Some(due));
    world.now = due;
    world.apply(Event::Wake);
    assert_eq!(states(&world, 1), ["assigned"]);
}

#[test]
fn a_retry_recorded_by_a_clock_that_was_hours_ahead_waits_no_longer_than_the_longest_backoff() {
    let (mut world, agent) = world(&[JobSpec { attempts: 2, backoff: 100, ..JobSpec::default() }]);
    let ahead = Duration::from_secs(10 * 3600);
    world.advance(ahead);
    run(&mut world, agent, attempt(0, 1), Verdict::Failed);
    world.now = world.now - ahead;
    world.restart();
    world.connect(agent);
    assert_eq!(states(&world, 1), ["queued"]);
    world.advance(BACKOFF_MAX);
    world.apply(Event::Wake);
    assert_eq!(states(&world, 1), ["assigned"]);
}

#[test]
fn backoff_ends_at_an_hour() {
    let retry = Retry { attempts: u32::MAX, backoff: Duration::MAX };
    let wait = crate::core::attempt::backoff(retry, attempt(0, u32::MAX));
    assert!((2700..=3600).contains(&wait.as_secs()), "{wait:?}");
}

#[test]
fn an_agent_back_within_its_lease_keeps_its_attempts_and_loses_them_after_it() {
    let (mut world, agent) = world(&[JobSpec { attempts: 2, ..JobSpec::default() }]);
    world.start(agent, attempt(0, 1));
    world.disconnect(agent);
    world.advance(Duration::from_secs(59));
    world.apply(Event::Wake);
    world.connect(agent);
    world.advance(Duration::from_secs(120));
    world.apply(Event::Wake);
    world.settle();
    assert_eq!(states(&world, 1), ["running"]);

    world.disconnect(agent);
    world.advance(Duration::from_secs(60));
    world.apply(Event::Wake);
    assert_eq!(states(&world, 1), ["queued"]);
    assert_eq!(world.live.attempts[&attempt(0, 1)].state, AttemptState::Lost);
    world.connect(agent);
    world.settle();
    assert!(!world.agents[&agent].journal.contains_key(&attempt(0, 1)), "the lost attempt is fenced");
    run(&mut world, agent, attempt(0, 2), Verdict::Succeeded);
    assert_eq!(run_state(&world), PackRunState::Completed);
}

#[test]
fn an_assignment_that_never_arrived_is_handed_out_again_under_its_number() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    world.agents.get_mut(&agent).unwrap().journal.clear();
    world.connect(agent);
    world.settle();
    assert!(world.agents[&agent].journal.contains_key(&attempt(0, 1)));
    run(&mut world, agent, attempt(0, 1), Verdict::Succeeded);
    assert_eq!(run_state(&world), PackRunState::Completed);
}

#[test]
fn an_assignment_that_never_arrived_is_lost_when_its_agent_comes_back_without_room() {
    let (mut world, agent) = world(&[JobSpec { width: 2, ..JobSpec::default() }]);
    let model = world.agents.get_mut(&agent).unwrap();
    model.journal.clear();
    model.capacity = slots(1);
    world.connect(agent);
    assert_eq!(states(&world, 2), ["lost", "assigned"]);
    let reason = world.live.job_runs[&job_run_id(0)].reason.clone().unwrap();
    assert_eq!(reason.as_str(), "its agent came back without room for it");
    world.settle();
    assert!(world.agents[&agent].journal.keys().eq([&attempt(1, 1)]));
}

#[test]
fn an_assignment_that_never_arrived_is_lost_when_its_agent_comes_back_without_the_labels() {
    let linux = labels(&[("os", "linux")]);
    let requirement = Requirement { labels: linux.clone(), ..Requirement::default() };
    let (mut world, _) = world(&[JobSpec { requirement, ..JobSpec::default() }]);
    let agent = world.enrol(1, Capacity { labels: linux, ..slots(2) });
    world.connect(agent);
    assert_eq!(states(&world, 1), ["assigned"]);
    world.agents.get_mut(&agent).unwrap().capacity = slots(2);
    world.connect(agent);
    assert_eq!(states(&world, 1), ["lost"]);
}

#[test]
fn a_running_attempt_that_its_agent_knows_nothing_of_is_lost_at_once() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    world.agents.get_mut(&agent).unwrap().journal.clear();
    world.connect(agent);
    assert_eq!(states(&world, 1), ["lost"]);
    assert_eq!(run_state(&world), PackRunState::Failed);
}

#[test]
fn a_restart_judges_no_lease_before_agents_had_the_time_to_report() {
    let (mut world, agent) = world(&[JobSpec::default(), JobSpec::needing(&[0])]);
    world.start(agent, attempt(0, 1));
    world.settle();
    world.advance(Duration::from_secs(3600));
    world.restart();
    world.apply(Event::Wake);
    assert_eq!(states(&world, 2), ["running", "blocked"]);
    // It ended while the coordinator was away.
    world.end(agent, attempt(0, 1), Verdict::Succeeded);
    world.advance(Duration::from_secs(59));
    world.connect(agent);
    world.settle();
    assert_eq!(states(&world, 2), ["succeeded", "assigned"]);
}

#[test]
fn a_restart_between_commit_and_dispatch_loses_no_assignment() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    // The commit was made, its effects never left.
    world.agents.get_mut(&agent).unwrap().journal.clear();
    world.restart();
    world.connect(agent);
    world.settle();
    assert!(world.agents[&agent].journal.contains_key(&attempt(0, 1)));
}

#[test]
fn a_newer_session_takes_over_and_the_older_one_is_deaf() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    let old = session(&world, agent);
    world.connect(agent);
    let step = world.report(agent, old, Report::Started { ticket: None, attempt: attempt(0, 1) });
    assert!(step.changes.is_empty() && step.effects.is_empty());
    let step = world.report(agent, old, connected(slots(9), Vec::new()));
    let why = step.effects.iter().find_map(|effect| match effect {
        Effect::CloseSession { session, why, .. } if *session == old => Some(*why),
        _ => None,
    });
    assert_eq!(why, Some(CloseReason::Superseded));
    world.report(agent, old, Report::Disconnected);
    assert_eq!(world.core.next_deadline(), None, "the end of the older session begins no lease");
}

#[test]
fn an_end_said_twice_is_recorded_once_and_settled_twice() {
    let (mut world, agent) = world(&[JobSpec::default(), JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    let session = session(&world, agent);
    let end = || Report::Ended {
        attempt: attempt(0, 1),
        outcome: outcome(Verdict::Succeeded, 0),
        log: LogIndex::default(),
    };
    let settled = |effects: &[Effect]| matches!(effects, [Effect::Settled { .. }]);
    assert!(settled(&world.report(agent, session, end()).effects));
    let again = world.report(agent, session, end());
    assert!(settled(&again.effects) && again.changes.is_empty());
}

#[test]
fn a_revoked_agent_loses_all_and_stays_out() {
    let (mut world, agent) = world(&[JobSpec { attempts: 2, ..JobSpec::default() }]);
    world.command(Command::RevokeAgent(agent)).unwrap();
    assert_eq!(states(&world, 1), ["queued"]);
    world.last_session += 1;
    let session = SessionId(world.last_session);
    let held = vec![HeldAttempt { attempt: attempt(0, 1), phase: RUNNING }];
    let step = world.report(agent, session, connected(slots(2), held));
    assert!(matches!(step.effects[..], [Effect::CloseSession { why: CloseReason::Revoked, .. }]));
    assert_eq!(world.command(Command::ResumeAgent(agent)), Err(Refusal::Revoked(agent)));
}

#[test]
fn a_drained_agent_finishes_what_it_has_and_gets_no_more() {
    let (mut world, agent) = world(&[JobSpec { width: 3, ..JobSpec::default() }]);
    world.command(Command::DrainAgent(agent)).unwrap();
    run(&mut world, agent, attempt(0, 1), Verdict::Succeeded);
    assert_eq!(states(&world, 3), ["succeeded", "assigned", "queued"]);
    world.connect(agent);
    assert_eq!(states(&world, 3)[2], "queued", "a new session doesn't end the drain");
    world.command(Command::ResumeAgent(agent)).unwrap();
    assert_eq!(states(&world, 3)[2], "assigned");
}

#[test]
fn an_agent_that_declines_gets_nothing_until_it_says_otherwise_or_comes_back() {
    let (mut world, agent) = world(&[JobSpec { width: 5, ..JobSpec::default() }]);
    let over = session(&world, agent);
    world.report(agent, over, Report::Draining(true));
    run(&mut world, agent, attempt(0, 1), Verdict::Succeeded);
    assert_eq!(states(&world, 5)[2], "queued");
    world.report(agent, over, Report::Draining(false));
    assert_eq!(states(&world, 5)[2], "assigned");
    world.report(agent, over, Report::Draining(true));
    world.settle();
    run(&mut world, agent, attempt(1, 1), Verdict::Succeeded);
    assert_eq!(states(&world, 5)[3], "queued");
    world.connect(agent);
    assert_eq!(states(&world, 5)[3], "assigned");
}

#[test]
fn an_agent_that_comes_declining_gets_nothing_not_even_at_first() {
    let (mut world, _) = world(&[JobSpec { width: 3, ..JobSpec::default() }]);
    let (agent, over) = (world.enrol(1, slots(2)), SessionId(99));
    let arrival = Arrival { capacity: slots(2), draining: true, held: Vec::new() };
    world.report(agent, over, Report::Connected(arrival));
    assert_eq!(states(&world, 3)[2], "queued");
    world.report(agent, over, Report::Draining(false));
    assert_eq!(states(&world, 3)[2], "assigned");
}

#[test]
fn an_agent_that_does_not_come_back_after_a_restart_loses_its_attempts() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    world.settle();
    world.restart();
    world.now = world.core.next_deadline().unwrap();
    world.apply(Event::Wake);
    assert_eq!(states(&world, 1), ["lost"]);
}
