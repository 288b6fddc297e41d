//! Width: what must not be quadratic. The bounds are loose, for a slow and busy machine without optimisation.

use std::time::{Duration, Instant};

use packrun_protocol::id::Epoch;
use packrun_protocol::state::Verdict;
use packrun_protocol::time::Timestamp;

use super::make::{self, JobSpec, agent_id, connected, name, new_run, outcome, plan, slots};
use crate::core::event::{Command, Event, Report, SessionId, Ticket};
use crate::core::outcome::Effect;
use crate::core::{Config, Core};

#[test]
fn a_matrix_that_needs_a_matrix_on_thousands_of_agents_is_quick() {
    let begin = Instant::now();
    let now = Timestamp::default();
    let mut core = Core::new(Config::default(), Epoch(1), now);
    let command = |command| Event::Command { ticket: Ticket(0), command };
    let _ = core.apply(now, command(make::register("pack", b"1")));
    for number in 0..2_000 {
        let agent = agent_id(number);
        let labels = packrun_protocol::name::Labels::default();
        let _ = core.apply(now, command(Command::EnrolAgent { agent, name: name("a"), labels }));
        let report = connected(slots(2), Vec::new());
        let _ = core.apply(now, Event::Report { agent, session: SessionId(1), report });
    }
    let wide = |needs: &[u32]| JobSpec { width: 10_000, ..JobSpec::needing(needs) };
    let plan = plan(0, &[wide(&[]), wide(&[0])]);
    let mut effects = core.apply(now, command(Command::CreateRun(Box::new(new_run(0, plan))))).effects;
    let mut ended = 0;
    while let Some(effect) = effects.pop() {
        let Effect::Dispatch { agent, session, assignments } = effect else { continue };
        for assignment in assignments {
            let (attempt, outcome) = (assignment.attempt, outcome(Verdict::Succeeded, 0));
            let report = Report::Ended { attempt, outcome };
            effects.extend(core.apply(now, Event::Report { agent, session, report }).effects);
            ended += 1;
        }
    }
    assert_eq!(ended, 20_000);
    assert!(core.is_idle());
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(30), "20,000 job runs took {took:?}");
}
