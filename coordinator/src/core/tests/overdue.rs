//! Agents that are connected and don't end what they should: a cancel and a timeout don't wait for them for ever.

use std::time::Duration;

use packrun_protocol::state::{AttemptState, JobRunState, PackRunState};

use super::make::{JobSpec, artifact, job_run_id, run_id};
use super::scene::{attempt, run_state, session, states, world};
use super::world::World;
use crate::core::Config;
use crate::core::event::{Command, Event, Report, Ticket};
use crate::core::outcome::Effect;

const TIMEOUT: Duration = Duration::from_secs(40);

fn slack() -> Duration {
    Config::default().lease + Config::default().overdue
}

fn timed() -> JobSpec {
    JobSpec { timeout: Some(TIMEOUT), ..JobSpec::default() }
}

/// So much later; whether an agent is told to drop attempt 1 of job run 0.
fn later(world: &mut World, time: Duration) -> bool {
    world.advance(time);
    let step = world.apply(Event::Wake);
    let told = |effect: &Effect| matches!(effect, Effect::Fence { attempt: of, .. } if *of == attempt(0, 1));
    let fenced = step.effects.iter().any(told);
    world.settle();
    fenced
}

#[test]
fn a_cancel_that_its_agent_does_not_follow_ends_without_it() {
    let (mut world, agent) = world(&[JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    assert!(!later(&mut world, slack() * 100), "it may take as long as it likes");
    world.command(Command::CancelRun(run_id(0))).unwrap();
    assert!(!later(&mut world, slack() - Duration::from_millis(1)));
    assert_eq!(states(&world, 1), ["running"]);
    assert!(later(&mut world, Duration::from_millis(1)));
    assert_eq!((states(&world, 1), run_state(&world)), (vec!["canceled"], PackRunState::Canceled));
    assert!(world.agents[&agent].journal.is_empty(), "the agent was told");
    assert!(world.core.next_deadline().is_none_or(|at| at > world.now));
}

#[test]
fn an_attempt_that_outlives_its_timeout_is_lost_and_retried() {
    let (mut world, agent) = world(&[JobSpec { attempts: 2, ..timed() }]);
    assert!(!later(&mut world, slack() + TIMEOUT), "it counts from the start");
    world.start(agent, attempt(0, 1));
    assert!(!later(&mut world, slack() + TIMEOUT - Duration::from_millis(1)));
    assert!(later(&mut world, Duration::from_millis(1)));
    let row = &world.live.attempts[&attempt(0, 1)];
    assert_eq!(row.state, AttemptState::Lost);
    let words = "attempt 1 lost: its agent did not end it in time after its timeout";
    assert_eq!(row.reason.as_ref().unwrap().as_str(), words);
    assert_eq!(world.live.state(job_run_id(0)), JobRunState::Assigned, "the next attempt");
}

#[test]
fn files_that_still_come_put_a_timeout_off_and_no_cancel() {
    let (mut world, agent) = world(&[timed()]);
    world.start(agent, attempt(0, 1));
    let session = session(&world, agent);
    let keep = |world: &mut World, path| {
        let (ticket, artifact) = (Ticket(7_000), artifact(path));
        world.report(agent, session, Report::ArtifactCommitted { ticket, attempt: attempt(0, 1), artifact });
    };
    for path in ["a", "b", "c"] {
        assert!(!later(&mut world, slack() - Duration::from_millis(1)), "{path}");
        keep(&mut world, path);
    }
    world.command(Command::CancelJobRun(job_run_id(0))).unwrap();
    assert!(!later(&mut world, slack() / 2));
    keep(&mut world, "d");
    assert!(later(&mut world, slack() / 2));
    assert_eq!(states(&world, 1), ["canceled"]);
}

#[test]
fn a_restart_gives_agents_the_time_again() {
    let (mut world, agent) = world(&[timed(), JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    world.start(agent, attempt(1, 1));
    world.command(Command::CancelJobRun(job_run_id(1))).unwrap();
    world.settle();
    world.advance(slack() * 3);
    world.restart();
    world.connect(agent);
    world.settle();
    assert!(!later(&mut world, slack() - Duration::from_millis(1)));
    assert_eq!(states(&world, 2), ["running", "running"]);
    assert!(later(&mut world, Duration::from_millis(1)));
    assert_eq!(states(&world, 2), ["lost", "canceled"]);
}
