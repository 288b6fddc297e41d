//! What is said of a job run that waits, and of no other.

use packrun_protocol::id::AgentId;
use packrun_protocol::job::Requirement;

use super::make::{JobSpec, agent_id, job_run_id, labels, slots};
use super::scene::{create, world};
use super::world::World;
use crate::core::Gauges;
use crate::core::event::{Capacity, Command, Report};

fn why(world: &World, number: u32) -> Option<String> {
    world.core.why_queued(job_run_id(number)).map(|reason| reason.as_str().to_owned())
}

fn on(pairs: &[(&str, &str)]) -> Requirement {
    Requirement { labels: labels(pairs), ..Requirement::default() }
}

fn of(requirement: Requirement) -> JobSpec {
    JobSpec { requirement, ..JobSpec::default() }
}

#[test]
fn a_waiting_job_run_says_why() {
    let huge = Requirement { cpu_millis: 999_000, ..Requirement::default() };
    let (mut world, agent) = world(&[
        JobSpec { width: 2, ..JobSpec::default() },
        of(on(&[("gpu", "yes")])),
        of(huge),
        of(on(&[])),
        JobSpec::needing(&[0, 1]),
    ]);
    let gauges = Gauges { pack_runs: 1, queued: 3, held: 2, connected: 1 };
    assert_eq!(world.core.gauges(), gauges);
    assert_eq!(why(&world, 0), None, "it is assigned");
    assert_eq!(why(&world, 2).unwrap(), "no agent has label gpu");
    assert_eq!(why(&world, 3).unwrap(), "there is 1 agent; it has 64 cpus; 999 cpus are wanted");
    assert_eq!(why(&world, 4).unwrap(), "1 agent could take it; it is full");
    assert_eq!(why(&world, 5).unwrap(), "it waits for j0, j1");
    let (run, key) = world.core.live_job_run(job_run_id(5)).unwrap();
    assert_eq!(key.as_str(), "j4");
    let all = world.core.why_all_queued(run);
    assert_eq!(all.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [2, 3, 4, 5]);
    for (index, reason) in all {
        assert_eq!(Some(reason.as_str().to_owned()), why(&world, index), "all at once say the same as each");
    }
    world.disconnect(agent);
    assert_eq!(why(&world, 4).unwrap(), "1 agent could take it; it is not connected");
}

/// One job run that wants `requirement`, and no agent.
fn waiting(requirement: Requirement) -> World {
    let mut world = World::new();
    create(&mut world, &[of(requirement)]);
    world
}

fn join(world: &mut World, number: u32, capacity: Capacity) -> AgentId {
    let agent = world.enrol(number, capacity);
    world.connect(agent);
    agent
}

#[test]
fn every_state_of_the_fleet_has_its_words() {
    let linux = |slots_: u32| Capacity { labels: labels(&[("os", "linux")]), ..slots(slots_) };
    let wanted = Requirement { cpu_millis: 4_000, memory_bytes: 4 << 30, labels: labels(&[("os", "linux")]) };
    let mut world = waiting(wanted);
    let says = |world: &World| why(world, 0).unwrap();
    assert_eq!(says(&world), "there is no agent; `packrun agents invite` makes a token for one to join");
    let first = world.enrol(1, Capacity { cpu_millis: 2_000, ..linux(1) });
    assert_eq!(says(&world), "there is 1 agent, which has not connected yet");
    world.connect(first);
    assert_eq!(says(&world), "1 agent matches os=linux; it has 2 cpus; 4 cpus are wanted");
    join(&mut world, 2, Capacity { cpu_millis: 2_000, memory_bytes: 3 << 29, ..linux(1) });
    assert_eq!(says(&world), "2 agents match os=linux; they have at most 2 cpus; 4 cpus are wanted");
    join(&mut world, 3, Capacity { memory_bytes: 3 << 29, ..linux(1) });
    assert_eq!(
        says(&world),
        "3 agents match os=linux; none has both 4 cpus and 4 GiB of memory",
        "one has the memory, another the processors"
    );
    world.command(Command::RevokeAgent(first)).unwrap();
    assert_eq!(
        says(&world),
        "2 agents match os=linux; they have at most 1.5 GiB of memory; 4 GiB of memory are wanted"
    );

    let mut world = waiting(on(&[("gpu", "v100"), ("os", "linux")]));
    let gpu = |value| Capacity { labels: labels(&[("gpu", value), ("os", "plan9")]), ..slots(1) };
    join(&mut world, 1, gpu("none"));
    assert_eq!(says(&world), "no agent has label gpu=v100");
    join(&mut world, 2, gpu("v100"));
    assert_eq!(says(&world), "no agent has label os=linux");
    join(&mut world, 3, linux(1));
    assert_eq!(says(&world), "no agent has all of gpu=v100, os=linux");
}

#[test]
fn those_that_could_take_it_are_counted_by_what_keeps_them() {
    let linux = Capacity { labels: labels(&[("os", "linux")]), ..slots(1) };
    let mut world = World::new();
    let agents: Vec<_> = (1..4).map(|number| join(&mut world, number, linux.clone())).collect();
    create(&mut world, &[JobSpec { width: 4, ..of(on(&[("os", "linux")])) }]);
    let says = |world: &World| why(world, 3).unwrap();
    assert_eq!(says(&world), "3 agents match os=linux; all are full");
    world.command(Command::RevokeAgent(agents[2])).unwrap();
    assert_eq!(says(&world), "2 agents match os=linux; both are full");
    world.command(Command::DrainAgent(agents[0])).unwrap();
    assert_eq!(says(&world), "2 agents match os=linux; 1 is full, 1 is drained");
    world.disconnect(agents[0]);
    assert_eq!(
        says(&world),
        "2 agents match os=linux; 1 is full, 1 is drained",
        "to come back is not enough"
    );
    world.command(Command::ResumeAgent(agents[0])).unwrap();
    assert_eq!(says(&world), "2 agents match os=linux; 1 is full, 1 is not connected");
    world.disconnect(agents[1]);
    assert_eq!(says(&world), "2 agents match os=linux; both are not connected");
    world.connect(agents[1]);
    let session = world.agents[&agents[1]].session.unwrap();
    world.report(agents[1], session, Report::Draining(true));
    world.command(Command::RevokeAgent(agents[0])).unwrap();
    assert_eq!(says(&world), "1 agent matches os=linux; it is draining by its own word");
    assert_eq!(agents[0], agent_id(1));
}
