//! Tokens hold once, for a time, and for those who have the secret; names are one agent's each.

use std::time::Duration;

use packrun_protocol::id::{Digest, TokenId};
use packrun_protocol::name::Labels;

use super::make::{self, agent_id, labels, name};
use super::world::World;
use crate::core::Core;
use crate::core::change::{AgentState, Grant, Role, TokenEnd};
use crate::core::event::Command;
use crate::core::outcome::{Refusal, Reply};

fn token(number: u32) -> TokenId {
    TokenId::from_bytes(make::bytes(3, number))
}

fn invite(world: &mut World, number: u32, grant: Grant) {
    let (secret, ttl) = (Digest::of(b"secret"), Some(Duration::from_secs(60)));
    world.command(Command::CreateToken { id: token(number), secret, grant, ttl }).unwrap();
}

fn join(world: &mut World, number: u32, secret: &[u8], agent: u32) -> Result<Reply, Refusal> {
    let (agent, secret) = (agent_id(agent), Digest::of(secret));
    world.command(Command::EnrolAgent { token: token(number), secret, agent, name: name("host") })
}

fn any() -> Grant {
    Grant::Join { labels: Labels::default(), name: None }
}

#[test]
fn a_join_token_holds_once_for_its_time_and_its_secret() {
    let mut world = World::new();
    invite(&mut world, 1, Grant::Join { labels: labels(&[("pool", "gpu")]), name: Some(name("gpu")) });
    assert_eq!(join(&mut world, 1, b"guess", 1), Err(Refusal::NotInvited));
    assert_eq!(join(&mut world, 2, b"secret", 1), Err(Refusal::NotInvited));
    assert_eq!(join(&mut world, 1, b"secret", 1), Ok(Reply::Enrolled { name: name("gpu") }));
    assert_eq!(world.live.agents[&agent_id(1)].granted, labels(&[("pool", "gpu")]));
    assert!(
        matches!(world.live.tokens[&token(1)].end, Some(TokenEnd::Used { agent, .. }) if agent == agent_id(1))
    );
    assert_eq!(join(&mut world, 1, b"secret", 2), Err(Refusal::NotInvited), "used up");

    invite(&mut world, 3, any());
    world.now = world.now + Duration::from_secs(60);
    assert_eq!(join(&mut world, 3, b"secret", 2), Err(Refusal::NotInvited), "expired");

    invite(&mut world, 4, any());
    world.command(Command::RevokeToken(token(4))).unwrap();
    assert_eq!(join(&mut world, 4, b"secret", 2), Err(Refusal::NotInvited), "revoked");
    assert_eq!(world.command(Command::RevokeToken(token(4))), Err(Refusal::NoToken(token(4))));

    invite(&mut world, 5, Grant::Api(Role::Admin));
    assert_eq!(join(&mut world, 5, b"secret", 2), Err(Refusal::NotInvited), "for requests only");
}

#[test]
fn tokens_and_names_outlive_a_restart() {
    let mut world = World::new();
    for number in 1..=3 {
        invite(&mut world, number, any());
    }
    join(&mut world, 1, b"secret", 1).unwrap();
    let (mut core, quarantined) = Core::restore(
        crate::core::Config::default(),
        packrun_protocol::id::Epoch(2),
        world.now,
        world.live.rows(),
    );
    assert!(quarantined.is_empty());
    std::mem::swap(&mut world.core, &mut core);
    assert_eq!(join(&mut world, 1, b"secret", 2), Err(Refusal::NotInvited));
    assert_eq!(join(&mut world, 2, b"secret", 2), Ok(Reply::Enrolled { name: name("host-2") }));
    assert_eq!(join(&mut world, 3, b"secret", 3), Ok(Reply::Enrolled { name: name("host-3") }));
    let state = world.core.agent(agent_id(2)).map(|agent| agent.row.state);
    assert_eq!(state, Some(AgentState::Active));
}

#[test]
fn the_name_of_a_revoked_agent_is_free_and_a_long_one_is_shortened() {
    let mut world = World::new();
    let long = name(&"a".repeat(63));
    let mut enrol = |number, wanted: &packrun_protocol::name::Name| {
        let [create, enrol] = make::enrolment(agent_id(number), wanted.clone());
        world.command(create).unwrap();
        world.command(enrol).unwrap()
    };
    enrol(1, &long);
    assert_eq!(enrol(2, &long), Reply::Enrolled { name: name(&format!("{}-2", "a".repeat(61))) });
    enrol(3, &name("b"));
    world.command(Command::RevokeAgent(agent_id(3))).unwrap();
    let [create, enrol] = make::enrolment(agent_id(4), name("b"));
    world.command(create).unwrap();
    assert_eq!(world.command(enrol), Ok(Reply::Enrolled { name: name("b") }));
}

#[test]
fn there_are_no_more_tokens_than_may_be_and_one_that_ended_makes_room() {
    let mut world = World::new();
    let most = crate::core::Config::default().tokens;
    for number in 0..u32::try_from(most).unwrap() {
        invite(&mut world, number, any());
    }
    let one_more = |world: &mut World, number| {
        let (secret, grant) = (Digest::of(b"secret"), Grant::Api(Role::Viewer));
        world.command(Command::CreateToken { id: token(number), secret, grant, ttl: None })
    };
    assert_eq!(one_more(&mut world, 100_000), Err(Refusal::TooManyTokens(most)));
    world.command(Command::RevokeToken(token(7))).unwrap();
    one_more(&mut world, 100_001).expect("there is room again");
    assert_eq!(one_more(&mut world, 100_002), Err(Refusal::TooManyTokens(most)));
    world.now = world.now + Duration::from_secs(60);
    one_more(&mut world, 100_003).expect("those that have expired count no more");
}
