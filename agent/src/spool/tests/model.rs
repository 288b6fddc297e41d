//! Random lives of a journal against a model in memory: appends, acknowledgements, settlements, reopenings, with a
//! follower that reads along at random and one that starts anew.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Assign(u8),
    Start(u8),
    Write(u8, usize),
    Acknowledge(u8, prop::sample::Index),
    End(u8),
    Settle(u8),
    Reopen,
    Follow,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0u8..10;
    prop_oneof![
        2 => who.clone().prop_map(Step::Assign),
        2 => who.clone().prop_map(Step::Start),
        8 => (who.clone(), 1usize..1500).prop_map(|(who, bytes)| Step::Write(who, bytes)),
        4 => (who.clone(), any::<prop::sample::Index>()).prop_map(|(who, to)| Step::Acknowledge(who, to)),
        1 => who.clone().prop_map(Step::End),
        1 => who.prop_map(Step::Settle),
        1 => Just(Step::Reopen),
        4 => Just(Step::Follow),
    ]
}

#[derive(Debug, Default)]
struct Expected {
    phase: u8,
    written: Vec<Block>,
    acknowledged: u64,
}

/// What the follower holds must be what the model holds: every block from the first unacknowledged one on.
fn check(follower: &mut Follower, model: &BTreeMap<u8, Expected>) -> Result<(), TestCaseError> {
    catch_up(follower);
    let lives: Vec<_> = follower.index().lives().map(|(id, life)| (id, life.clone())).collect();
    let ids: Vec<_> = lives.iter().map(|(id, _)| *id).collect();
    prop_assert_eq!(ids, model.keys().map(|who| attempt(*who)).collect::<Vec<_>>());
    for ((_, life), expected) in lives.iter().zip(model.values()) {
        let phase = match life.phase {
            Phase::Assigned => 0,
            Phase::Running(_) => 1,
            Phase::Ended(_) => 2,
        };
        prop_assert_eq!(phase, expected.phase);
        let wanted = &expected.written[expected.acknowledged as usize..];
        let there: Vec<_> = life.blocks.iter().filter(|at| at.next_seq > expected.acknowledged).collect();
        prop_assert_eq!(there.len(), wanted.len());
        for (at, block) in there.into_iter().zip(wanted) {
            let read = follower.block(*at).unwrap();
            prop_assert_eq!(read.as_ref(), Some(block));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn followers_and_reopened_journals_agree_with_a_model(steps in prop::collection::vec(step(), 1..120)) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), SMALL).unwrap();
        let mut along = Follower::new(folder.path().to_owned());
        let mut model: BTreeMap<u8, Expected> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for step in steps {
            match step {
                Step::Assign(who) => {
                    if seen.insert(who) {
                        model.insert(who, Expected::default());
                        journal.append([assigned(who)]).unwrap();
                    }
                }
                Step::Start(who) => {
                    if let Some(expected) = model.get_mut(&who).filter(|expected| expected.phase == 0) {
                        expected.phase = 1;
                        journal.append([started(who)]).unwrap();
                    }
                }
                Step::Write(who, bytes) => {
                    if let Some(expected) = model.get_mut(&who).filter(|expected| expected.phase == 1) {
                        let block = block(who, expected.written.len() as u64, 1, bytes);
                        expected.written.push(block.clone());
                        journal.append([Record::Block(block)]).unwrap();
                    }
                }
                Step::Acknowledge(who, to) => {
                    if let Some(expected) = model.get_mut(&who) {
                        let to = to.index(expected.written.len() + 1) as u64;
                        expected.acknowledged = expected.acknowledged.max(to);
                        journal.acknowledge(attempt(who), to).unwrap();
                        along.index_mut().acknowledge(attempt(who), to);
                    }
                }
                Step::End(who) => {
                    if let Some(expected) = model.get_mut(&who) {
                        expected.phase = 2;
                        journal.append([ended(who, expected.written.len() as u64)]).unwrap();
                    }
                }
                Step::Settle(who) => {
                    if model.remove(&who).is_some() {
                        journal.append([Record::Settled(attempt(who))]).unwrap();
                    }
                }
                Step::Reopen => {
                    drop(journal);
                    journal = Journal::open(folder.path(), SMALL).unwrap();
                }
                Step::Follow => check(&mut along, &model)?,
            }
        }
        check(&mut along, &model)?;
        check(&mut Follower::new(folder.path().to_owned()), &model)?;
    }
}
