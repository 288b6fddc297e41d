//! Every state of a job run against every input, and the words of the plan.

use packrun_protocol::id::JobRunId;
use packrun_protocol::state::JobRunState;

use crate::core::job::{Input, next};
use crate::core::plan::When;

#[test]
fn when_is_recorded_in_the_words_that_packs_use() {
    for when in When::ALL {
        assert_eq!(serde_json::to_value(when).unwrap(), when.as_str());
    }
}

#[test]
fn a_job_run_takes_the_steps_of_the_contract_and_no_other() {
    let mut inputs = vec![
        ("assign", Input::Assign),
        ("cancel", Input::Cancel),
        ("release", Input::Release),
        ("retry", Input::Retry),
        ("reuse", Input::Reuse(JobRunId::from_bytes([1; 16]))),
        ("skip", Input::Skip),
        ("start", Input::Start),
    ];
    inputs.extend(JobRunState::ALL.iter().map(|state| ("end", Input::End(*state))));
    let mut steps = Vec::new();
    for from in JobRunState::ALL {
        for (name, input) in &inputs {
            if let Some(to) = next(*from, *input) {
                if let Input::End(end) = input {
                    assert_eq!(*end, to, "an end is the state it names");
                }
                steps.push(format!("{from} -{name}-> {to}"));
            }
        }
    }
    let expected = "\
blocked -cancel-> canceled
blocked -release-> queued
blocked -reuse-> succeeded
blocked -skip-> skipped
queued -assign-> assigned
queued -cancel-> canceled
assigned -retry-> queued
assigned -start-> running
assigned -end-> succeeded
assigned -end-> failed
assigned -end-> timed_out
assigned -end-> canceled
assigned -end-> lost
running -retry-> queued
running -end-> succeeded
running -end-> failed
running -end-> timed_out
running -end-> canceled
running -end-> lost";
    assert_eq!(steps.join("\n"), expected);
}
