//! Versions of packs: what is archived is kept and can't be run, and what comes after it can.

use super::make::{JobSpec, name, new_run, plan, register};
use super::world::World;
use crate::core::event::{Command, NewRun};
use crate::core::outcome::{Refusal, Reply};

fn archive(version: Option<u32>, archived: bool) -> Command {
    Command::ArchivePack { name: name("pack"), version, archived }
}

/// Tries to run a version.
fn run(world: &mut World, number: u32, version: u32) -> Result<Reply, Refusal> {
    let new = NewRun { version, ..new_run(number, plan(number, &[JobSpec::default()])) };
    world.command(Command::CreateRun(Box::new(new)))
}

#[test]
fn an_archived_version_can_not_be_run_until_it_is_back() {
    let mut world = World::new();
    for content in [b"1", b"2", b"3"] {
        world.command(register("pack", content)).unwrap();
    }
    run(&mut world, 0, 2).unwrap();
    let archived = |version| Err(Refusal::Archived(name("pack"), version));
    for _ in 0..2 {
        assert_eq!(world.command(archive(Some(2), true)), Ok(Reply::Done), "twice is once");
        assert_eq!(run(&mut world, 1, 2), archived(2));
        world.settle();
        world.restart();
    }
    assert!(run(&mut world, 2, 1).is_ok() && run(&mut world, 3, 3).is_ok());
    world.command(archive(Some(2), false)).unwrap();
    assert!(run(&mut world, 4, 2).is_ok());
    for (command, version) in [(archive(Some(0), true), 0), (archive(Some(4), false), 4)] {
        assert_eq!(world.command(command), Err(Refusal::NoPack(name("pack"), version)));
    }
    let nothing = Command::ArchivePack { name: name("nothing"), version: None, archived: true };
    assert_eq!(world.command(nothing), Err(Refusal::NoPack(name("nothing"), 1)));
}

#[test]
fn an_archived_pack_registered_again_is_a_new_version_and_that_one_runs() {
    let mut world = World::new();
    world.command(register("pack", b"1")).unwrap();
    world.command(register("pack", b"2")).unwrap();
    world.command(archive(None, true)).unwrap();
    world.settle();
    world.restart();
    assert!(run(&mut world, 0, 1).is_err() && run(&mut world, 1, 2).is_err());
    let registered = world.command(register("pack", b"2"));
    assert_eq!(registered, Ok(Reply::Registered { version: 3, created: true }), "the same content");
    assert!(run(&mut world, 2, 3).is_ok());
    assert_eq!(run(&mut world, 3, 2), Err(Refusal::Archived(name("pack"), 2)), "the old ones stay archived");
    let again = world.command(register("pack", b"2"));
    assert_eq!(again, Ok(Reply::Registered { version: 3, created: false }));
    world.command(archive(None, false)).unwrap();
    assert!(run(&mut world, 4, 1).is_ok() && run(&mut world, 5, 2).is_ok());
}
