//! Labels that an invitation grants are that agent's alone.

use std::time::Duration;

use packrun_protocol::id::{AgentId, Digest, TokenId};
use packrun_protocol::job::Requirement;
use packrun_protocol::name::Labels;
use packrun_protocol::state::Verdict;

use super::make::{self, JobSpec, agent_id, job_run_id, labels, name, slots};
use super::scene::{attempt, create, run};
use super::world::{HonestAgent, World};
use crate::core::change::Grant;
use crate::core::event::{Capacity, Command};

fn token(number: u32) -> TokenId {
    TokenId::from_bytes(make::bytes(3, 100 + number))
}

fn invite(world: &mut World, number: u32, granted: &[(&str, &str)]) {
    let grant = Grant::Join { labels: labels(granted), name: None };
    let (secret, ttl) = (Digest::of(b"secret"), Some(Duration::from_secs(60)));
    world.command(Command::CreateToken { id: token(number), secret, grant, ttl }).unwrap();
}

/// An agent that was granted some labels and claims others.
fn join(world: &mut World, number: u32, granted: &[(&str, &str)], claimed: &[(&str, &str)]) -> AgentId {
    invite(world, number, granted);
    let (agent, secret) = (agent_id(number), Digest::of(b"secret"));
    let name = name(&format!("a{number}"));
    world.command(Command::EnrolAgent { token: token(number), secret, agent, name }).unwrap();
    let capacity = Capacity { labels: labels(claimed), ..slots(1) };
    world.agents.insert(agent, HonestAgent { capacity, ..HonestAgent::default() });
    world.connect(agent);
    agent
}

fn has(world: &World, agent: AgentId) -> (Labels, Labels) {
    let view = world.core.agent(agent).unwrap();
    (view.row.capacity.as_ref().unwrap().labels.clone(), view.refused())
}

#[test]
fn a_granted_label_cannot_be_claimed_by_another_agent() {
    let mut world = World::new();
    let yes: &[_] = &[("gpu", "yes")];
    let trusted = join(&mut world, 1, yes, &[("os", "linux"), ("gpu", "none")]);
    assert_eq!(
        has(&world, trusted),
        (labels(&[("gpu", "yes"), ("os", "linux")]), labels(&[("gpu", "none")]))
    );
    let liar = join(&mut world, 2, &[], &[("os", "linux"), ("gpu", "yes"), ("zone", "a")]);
    assert_eq!(has(&world, liar), (labels(&[("os", "linux"), ("zone", "a")]), labels(yes)));

    let wants = JobSpec {
        requirement: Requirement { labels: labels(yes), ..Requirement::default() },
        width: 2,
        ..JobSpec::default()
    };
    create(&mut world, &[wants]);
    assert_eq!(world.core.agent(trusted).unwrap().held, 1);
    assert_eq!(world.core.agent(liar).unwrap().held, 0);

    // Not even when there is nobody left who has it.
    world.command(Command::RevokeAgent(trusted)).unwrap();
    world.disconnect(liar);
    world.connect(liar);
    assert_eq!(world.core.agent(liar).unwrap().held, 0);
    let why = world.core.why_queued(job_run_id(1)).unwrap();
    assert_eq!(why.as_str(), "no agent has label gpu");
    world.check_restore();
}

#[test]
fn an_invitation_takes_a_claimed_label_away_at_once_and_what_runs_goes_on() {
    let mut world = World::new();
    let claimed: &[_] = &[("gpu", "yes")];
    let first = join(&mut world, 1, &[], claimed);
    let wants = JobSpec {
        requirement: Requirement { labels: labels(claimed), ..Requirement::default() },
        width: 2,
        ..JobSpec::default()
    };
    create(&mut world, &[wants]);
    assert_eq!(world.core.agent(first).unwrap().held, 1, "nobody has granted it");
    invite(&mut world, 9, claimed);
    assert_eq!(has(&world, first), (Labels::default(), labels(claimed)));
    assert_eq!(world.core.agent(first).unwrap().held, 1);
    run(&mut world, first, attempt(0, 1), Verdict::Succeeded);
    assert_eq!(world.core.agent(first).unwrap().held, 0, "it gets no more of it");

    // An invitation that nobody has used and nobody can any more reserves nothing.
    world.command(Command::RevokeToken(token(9))).unwrap();
    world.disconnect(first);
    world.connect(first);
    assert_eq!(has(&world, first), (labels(claimed), Labels::default()));
    assert_eq!(world.core.agent(first).unwrap().held, 1);
}

#[test]
fn what_every_host_says_of_itself_is_never_reserved_and_grants_outlive_a_restart() {
    let mut world = World::new();
    join(&mut world, 1, &[("os", "linux"), ("pool", "release")], &[]);
    invite(&mut world, 9, &[("zone", "a")]);
    let claims: &[_] = &[("arch", "x"), ("os", "linux"), ("pool", "release"), ("zone", "a")];
    let other = join(&mut world, 2, &[], claims);
    let expected = (labels(&[("arch", "x"), ("os", "linux")]), labels(&[("pool", "release"), ("zone", "a")]));
    assert_eq!(has(&world, other), expected);
    world.settle();
    world.restart();
    world.connect(other);
    assert_eq!(has(&world, other), expected);
}
