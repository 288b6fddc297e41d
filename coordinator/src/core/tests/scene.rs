//! The stage of the short scenes: one agent, one pack run, and words to look at it.

use packrun_protocol::id::{AgentId, AttemptId, AttemptNumber};
use packrun_protocol::state::{PackRunState, Verdict};

use super::make::{self, JobSpec, job_run_id, new_run, plan, run_id, slots};
use super::world::World;
use crate::core::event::{Command, SessionId};

/// A world with one connected agent of two slots, and these jobs as pack run 0.
pub(super) fn world(jobs: &[JobSpec]) -> (World, AgentId) {
    let mut world = World::new();
    let agent = world.enrol(0, slots(2));
    world.connect(agent);
    create(&mut world, jobs);
    (world, agent)
}

/// These jobs as pack run 0.
pub(super) fn create(world: &mut World, jobs: &[JobSpec]) {
    world.command(make::register("pack", b"1")).unwrap();
    world.command(Command::CreateRun(Box::new(new_run(0, plan(0, jobs))))).unwrap();
    world.settle();
}

pub(super) fn attempt(job_run: u32, number: u32) -> AttemptId {
    AttemptId { job_run: job_run_id(job_run), number: AttemptNumber::new(number).unwrap() }
}

pub(super) fn session(world: &World, agent: AgentId) -> SessionId {
    world.agents[&agent].session.unwrap()
}

/// The agent runs an attempt from start to end.
pub(super) fn run(world: &mut World, agent: AgentId, attempt: AttemptId, verdict: Verdict) {
    world.start(agent, attempt);
    world.end(agent, attempt, verdict);
    world.settle();
}

pub(super) fn states(world: &World, job_runs: u32) -> Vec<&'static str> {
    (0..job_runs).map(|number| world.live.state(job_run_id(number)).as_str()).collect()
}

pub(super) fn run_state(world: &World) -> PackRunState {
    world.live.progress[&run_id(0)].state
}
