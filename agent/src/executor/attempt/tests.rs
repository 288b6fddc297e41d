//! Every state of an attempt with every input, and lives at random.

use super::*;
use proptest::prelude::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_micros(millis * 1000)
}

fn reason() -> Reason {
    Reason::new("because")
}

fn outcome_of(actions: &[Action]) -> Option<Outcome> {
    actions.iter().find_map(|action| match action {
        Action::End(outcome) => Some(outcome.clone()),
        _ => None,
    })
}

/// Feeds the inputs a millisecond apart and gives back the end.
fn life(timeout: Option<Duration>, inputs: &[Input]) -> Outcome {
    let (mut attempt, _) = Attempt::new(timeout, false, false);
    let mut last = Vec::new();
    for (millis, input) in inputs.iter().enumerate() {
        last = attempt.handle(input.clone(), at(millis as i64));
    }
    outcome_of(&last).expect("the last input ends it")
}

fn ending(status: ExitStatus) -> Vec<Input> {
    vec![Input::Exited(status), Input::TreeEnded, Input::OutputEnded { entries: 3 }, Input::Cleaned]
}

fn verdict(timeout: Option<Duration>, before: &[Input], status: ExitStatus) -> Verdict {
    life(timeout, &[before, &ending(status)].concat()).verdict
}

#[test]
fn the_verdict_follows_exit_and_stop() {
    use ExitStatus::{Code, Signal};
    let cancel = [Input::Started, Input::Cancel];
    let timed_out = [Input::Started, Input::Tick];
    let fenced = [Input::Started, Input::Kill];
    let at_once = Some(Duration::ZERO);
    assert_eq!(verdict(None, &[Input::Started], Code(0)), Verdict::Succeeded);
    assert_eq!(verdict(None, &[Input::Started], Code(1)), Verdict::Failed);
    assert_eq!(verdict(None, &[Input::Started], Signal(9)), Verdict::Failed);
    assert_eq!(verdict(None, &cancel, Signal(15)), Verdict::Canceled);
    assert_eq!(verdict(None, &cancel, Code(0)), Verdict::Succeeded, "a success beats a cancel under way");
    assert_eq!(verdict(at_once, &timed_out, Code(0)), Verdict::TimedOut, "but no timeout");
    assert_eq!(verdict(None, &fenced, Code(0)), Verdict::Canceled);
    let outcome = life(None, &[&[Input::Started], &ending(Code(2))[..]].concat());
    assert_eq!(
        (outcome.exit, outcome.entries, outcome.ran_for),
        (Some(Code(2)), 3, Duration::from_millis(1))
    );
}

#[test]
fn a_stop_goes_by_grace_and_kill_to_the_limit() {
    let (mut attempt, action) = Attempt::new(Some(Duration::from_secs(5)), false, true);
    assert_eq!(action, Action::Start);
    assert_eq!(attempt.handle(Input::Started, at(0)), []);
    assert_eq!(attempt.handle(Input::Tick, at(4_999)), []);
    assert_eq!(attempt.handle(Input::Tick, at(5_000)), [Action::Terminate]);
    assert_eq!(attempt.handle(Input::Cancel, at(6_000)), [], "one stop is enough");
    assert_eq!(attempt.deadline(), Some(at(15_000)));
    assert_eq!(attempt.handle(Input::Tick, at(15_000)), [Action::Kill]);
    assert_eq!(attempt.handle(Input::Tick, at(44_999)), []);
    assert_eq!(attempt.handle(Input::Tick, at(45_000)), [Action::Abandon, Action::CloseOutput]);
    assert_eq!(attempt.handle(Input::OutputEnded { entries: 0 }, at(45_000)), [Action::Clean]);
    let outcome = outcome_of(&attempt.handle(Input::Cleaned, at(45_001))).unwrap();
    assert_eq!((outcome.verdict, outcome.exit), (Verdict::TimedOut, None));
    assert!(outcome.reason.unwrap().as_str().contains("30 s"));
}

#[test]
fn a_pipe_that_stays_open_is_closed_after_two_seconds_and_a_deaf_tree_left_after_thirty() {
    let (mut attempt, _) = Attempt::new(None, false, false);
    attempt.handle(Input::Started, at(0));
    let exited = attempt.handle(Input::Exited(ExitStatus::Code(0)), at(10));
    assert_eq!(exited, [Action::EndTree, Action::Reap], "the tree goes before the number is given back");
    assert_eq!(attempt.deadline(), Some(at(2_010)));
    assert_eq!(attempt.handle(Input::Tick, at(2_010)), [Action::CloseOutput]);
    assert_eq!(attempt.handle(Input::OutputEnded { entries: 1 }, at(2_010)), []);
    assert_eq!(attempt.deadline(), Some(at(30_010)));
    assert_eq!(attempt.handle(Input::Tick, at(30_010)), [Action::Abandon, Action::Clean]);
}

#[test]
fn an_artifact_that_is_missing_fails_a_success_and_a_fenced_attempt_collects_nothing() {
    let (mut attempt, action) = Attempt::new(None, true, true);
    assert_eq!(action, Action::Prepare);
    assert_eq!(attempt.handle(Input::Prepared(Ok(())), at(0)), [Action::Start]);
    attempt.handle(Input::Started, at(0));
    attempt.handle(Input::Exited(ExitStatus::Code(0)), at(1));
    attempt.handle(Input::OutputEnded { entries: 0 }, at(1));
    assert_eq!(attempt.clone().handle(Input::TreeEnded, at(1)), [Action::Collect]);
    let mut fenced = attempt.clone();
    fenced.handle(Input::Kill, at(1));
    assert_eq!(fenced.handle(Input::TreeEnded, at(1)), [Action::Clean]);
    attempt.handle(Input::TreeEnded, at(1));
    assert_eq!(attempt.handle(Input::Collected(Err(reason())), at(2)), [Action::Clean]);
    let outcome = outcome_of(&attempt.handle(Input::Cleaned, at(2))).unwrap();
    assert_eq!((outcome.verdict, outcome.reason), (Verdict::Failed, Some(reason())));
}

#[test]
fn a_cancel_before_all_artifacts_are_kept_beats_a_success() {
    let (mut attempt, _) = Attempt::new(None, false, true);
    attempt.handle(Input::Started, at(0));
    attempt.handle(Input::Exited(ExitStatus::Code(0)), at(1));
    attempt.handle(Input::OutputEnded { entries: 0 }, at(1));
    let mut early = attempt.clone();
    early.handle(Input::Cancel, at(1));
    assert_eq!(early.handle(Input::TreeEnded, at(1)), [Action::Clean]);
    assert_eq!(attempt.handle(Input::TreeEnded, at(1)), [Action::Collect]);
    let mut late = attempt.clone();
    late.handle(Input::Collected(Ok(1)), at(2));
    assert_eq!(late.handle(Input::Cancel, at(2)), []);
    assert_eq!(attempt.handle(Input::Cancel, at(2)), [Action::Clean]);
    let verdicts = [early, attempt, late]
        .map(|mut attempt| outcome_of(&attempt.handle(Input::Cleaned, at(3))).unwrap().verdict);
    assert_eq!(verdicts, [Verdict::Canceled, Verdict::Canceled, Verdict::Succeeded]);
}

fn inputs() -> Vec<Input> {
    vec![
        Input::Prepared(Ok(())),
        Input::Prepared(Err(reason())),
        Input::Started,
        Input::StartFailed(reason()),
        Input::Cancel,
        Input::Kill,
        Input::Exited(ExitStatus::Code(0)),
        Input::TreeEnded,
        Input::OutputEnded { entries: 1 },
        Input::Collected(Ok(1)),
        Input::Collected(Err(reason())),
        Input::Cleaned,
        Input::Tick,
    ]
}

/// Every phase, by the shortest way there.
fn phases() -> Vec<(&'static str, Attempt)> {
    let mut phases = Vec::new();
    let (mut attempt, _) = Attempt::new(Some(Duration::ZERO), true, true);
    let steps: [(&str, Option<Input>); 6] = [
        ("preparing", None),
        ("starting", Some(Input::Prepared(Ok(())))),
        ("running", Some(Input::Started)),
        ("terminating", Some(Input::Tick)),
        ("killing", Some(Input::Kill)),
        ("draining", Some(Input::Exited(ExitStatus::Code(0)))),
    ];
    for (name, input) in steps {
        input.map(|input| attempt.handle(input, at(0)));
        phases.push((name, attempt.clone()));
    }
    let (mut attempt, _) = Attempt::new(None, false, true);
    for input in [Input::Started, Input::Exited(ExitStatus::Code(0)), Input::TreeEnded] {
        attempt.handle(input, at(0));
    }
    for (name, input) in [
        ("collecting", Input::OutputEnded { entries: 1 }),
        ("cleaning", Input::Collected(Ok(1))),
        ("ended", Input::Cleaned),
    ] {
        attempt.handle(input, at(0));
        phases.push((name, attempt.clone()));
    }
    phases
}

/// The actions that each phase answers an input with, at the phase's first moment; all others are ignored.
#[test]
fn every_phase_answers_every_input_as_in_the_table() {
    let mut answers = Vec::new();
    for (phase, attempt) in phases() {
        for input in inputs() {
            let actions = attempt.clone().handle(input.clone(), at(0));
            let names: Vec<_> = actions
                .iter()
                .map(|action| match action {
                    Action::End(outcome) => format!("End {:?}", outcome.verdict),
                    action => format!("{action:?}"),
                })
                .collect();
            if !names.is_empty() {
                answers.push(format!("{phase} {input:?}: {}", names.join(", ")));
            }
        }
    }
    let expected = r#"
preparing Prepared(Ok(())): Start
preparing Prepared(Err(Reason("because"))): Clean
preparing Cancel: Clean
preparing Kill: Clean
starting StartFailed(Reason("because")): Clean
running Cancel: Terminate
running Kill: Kill
running Exited(Code(0)): EndTree, Reap
running Tick: Terminate
terminating Kill: Kill
terminating Exited(Code(0)): EndTree, Reap
killing Exited(Code(0)): EndTree, Reap
collecting Cancel: Clean
collecting Kill: Clean
collecting Collected(Ok(1)): Clean
collecting Collected(Err(Reason("because"))): Clean
cleaning Cleaned: End Succeeded"#;
    assert_eq!(answers, expected.trim().lines().collect::<Vec<_>>());
}

#[test]
fn a_cancel_between_order_and_process_is_not_forgotten() {
    let (mut attempt, _) = Attempt::new(None, false, false);
    attempt.handle(Input::Cancel, at(0));
    assert_eq!(attempt.handle(Input::Started, at(0)), [Action::Terminate]);
}

#[test]
fn a_job_that_closes_its_pipes_before_it_exits_is_not_waited_for() {
    let (mut attempt, _) = Attempt::new(None, false, false);
    attempt.handle(Input::Started, at(0));
    assert_eq!(attempt.handle(Input::OutputEnded { entries: 5 }, at(1)), []);
    attempt.handle(Input::Exited(ExitStatus::Code(0)), at(2));
    assert_eq!(attempt.handle(Input::TreeEnded, at(2)), [Action::Clean]);
    assert_eq!(outcome_of(&attempt.handle(Input::Cleaned, at(2))).unwrap().entries, 5);
}

proptest! {
    #[test]
    fn whatever_comes_an_attempt_ends_once_and_reaps_only_after_the_tree(
        steps in proptest::collection::vec((0_usize..13, 0_i64..40_000), 0..40), artifacts: bool, fetch: bool
    ) {
        let (mut attempt, first) = Attempt::new(Some(Duration::from_secs(60)), fetch, artifacts);
        let (mut now, mut done) = (0, vec![first]);
        for (index, pause) in steps {
            now += pause;
            done.extend(attempt.handle(inputs()[index].clone(), at(now)));
        }
        // From anywhere, the world's answers alone lead to the end.
        for _ in 0..3 {
            for input in inputs().into_iter().filter(|input| !matches!(input, Input::Cancel | Input::Kill)) {
                now += 1;
                done.extend(attempt.handle(input, at(now)));
            }
        }
        let count = |wanted: &Action| done.iter().filter(|action| *action == wanted).count();
        prop_assert_eq!(done.iter().filter(|action| matches!(action, Action::End(_))).count(), 1);
        prop_assert!(matches!(done.last(), Some(Action::End(_))));
        prop_assert_eq!(count(&Action::Clean), 1);
        prop_assert!(count(&Action::Start) <= 1 && count(&Action::Collect) <= 1);
        let place = |wanted: &Action| done.iter().position(|action| action == wanted);
        prop_assert_eq!(place(&Action::Reap), place(&Action::EndTree).map(|at| at + 1));
        prop_assert_eq!(attempt.deadline(), None);
    }
}
