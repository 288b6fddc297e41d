//! Agents that are connected and don't end what they should: a cancel doesn't wait for them for ever.

use std::time::Duration;

use packrun_protocol::state::PackRunState;

use super::make::{JobSpec, job_run_id, run_id};
use super::scene::{attempt, run_state, states, world};
use super::world::World;
use crate::core::Config;
use crate::core::event::{Command, Event};
use crate::core::outcome::Effect;

fn slack() -> Duration {
    Config::default().lease + Config::default().overdue
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
fn a_timeout_alone_takes_nothing_away() {
    let (mut world, agent) =
        world(&[JobSpec { timeout: Some(Duration::from_secs(40)), ..JobSpec::default() }]);
    world.start(agent, attempt(0, 1));
    assert!(!later(&mut world, slack() * 100), "its files may be on their way");
    assert_eq!(states(&world, 1), ["running"]);
}

#[test]
fn a_restart_gives_agents_the_time_again() {
    let (mut world, agent) = world(&[JobSpec::default(), JobSpec::default()]);
    world.start(agent, attempt(0, 1));
    world.start(agent, attempt(1, 1));
    world.command(Command::CancelJobRun(job_run_id(0))).unwrap();
    world.settle();
    world.advance(slack() * 3);
    world.restart();
    world.connect(agent);
    world.settle();
    assert!(!later(&mut world, slack() - Duration::from_millis(1)));
    assert_eq!(states(&world, 2), ["running", "running"]);
    assert!(later(&mut world, Duration::from_millis(1)));
    assert_eq!(states(&world, 2), ["canceled", "running"]);
}
