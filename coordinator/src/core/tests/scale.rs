//! Width: what must not be quadratic. Looks at agents are counted; the time, which takes in all the rest, is only
//! compared with that of a sixteenth of the width, and the shortest of three is taken.

use std::time::{Duration, Instant};

use packrun_protocol::id::Epoch;
use packrun_protocol::job::Requirement;
use packrun_protocol::state::Verdict;
use packrun_protocol::time::Timestamp;

use super::make::{self, JobSpec, agent_id, connected, name, new_run, outcome, plan, slots};
use crate::core::event::{Command, Event, LogIndex, Report, SessionId, Ticket};
use crate::core::outcome::Effect;
use crate::core::schedule::IDLE_CLASSES_MAX;
use crate::core::{Config, Core};

struct Fleet {
    core: Core,
    runs: u32,
    job_runs: u32,
}

impl Fleet {
    /// Agents of two slots.
    fn new(agents: u32) -> Self {
        let mut core = Core::new(Config::default(), Epoch(1), Timestamp::default());
        let mut command = |command| drop(core.apply(Timestamp::default(), order(command)));
        command(make::register("pack", b"1"));
        for number in 0..agents {
            make::enrolment(agent_id(number), name("a")).into_iter().for_each(&mut command);
        }
        for number in 0..agents {
            let report = connected(slots(2), Vec::new());
            let event = Event::Report { agent: agent_id(number), session: SessionId(1), report };
            drop(core.apply(Timestamp::default(), event));
        }
        Self { core, runs: 0, job_runs: 0 }
    }

    /// Carries these jobs to their end. Says how often an agent was looked at, and how long it took.
    fn run(&mut self, jobs: &[JobSpec]) -> (usize, Duration) {
        let new = new_run(self.runs, plan(self.job_runs, jobs));
        let width: u32 = jobs.iter().map(|job| job.width).sum();
        self.runs += 1;
        self.job_runs += width;
        let (before, begin, now) = (self.core.schedule.looks, Instant::now(), Timestamp::default());
        let mut effects = self.core.apply(now, order(Command::CreateRun(Box::new(new)))).effects;
        let mut ended = 0;
        while let Some(effect) = effects.pop() {
            let Effect::Dispatch { agent, session, assignments } = effect else { continue };
            for assignment in assignments {
                let (attempt, outcome) = (assignment.attempt, outcome(Verdict::Succeeded, 0));
                let report = Report::Ended { attempt, outcome, log: LogIndex::default() };
                effects.extend(self.core.apply(now, Event::Report { agent, session, report }).effects);
                ended += 1;
            }
        }
        assert_eq!(ended, width);
        assert!(self.core.is_idle());
        (self.core.schedule.looks - before, begin.elapsed())
    }
}

fn order(command: Command) -> Event {
    Event::Command { ticket: Ticket(0), command }
}

/// So many jobs of this width that need nothing, each with a requirement of its own.
fn different(jobs: u32, width: u32) -> Vec<JobSpec> {
    let of = |cpu_millis| Requirement { cpu_millis, ..Requirement::default() };
    (0..jobs).map(|job| JobSpec { width, requirement: of(job), ..JobSpec::default() }).collect()
}

/// What 16 times the width on 16 times the agents costs must be far nearer to 16 times than to 256.
fn check_growth(jobs: impl Fn(u32) -> Vec<JobSpec>) {
    let cost = |width| Fleet::new(width / 5).run(&jobs(width));
    let costs = (0..3).map(|_| (cost(1_000), cost(16_000)));
    let best = costs.reduce(|(narrow, wide), (again, wide_again)| {
        ((narrow.0, narrow.1.min(again.1)), (wide.0, wide.1.min(wide_again.1)))
    });
    let ((looks, took), (more_looks, took_more)) = best.unwrap();
    assert!(more_looks <= looks * 20, "{looks} looks became {more_looks}");
    assert!(took_more <= took * 100, "{took:?} became {took_more:?}");
}

#[test]
fn a_matrix_that_needs_a_matrix_costs_in_proportion_to_its_width() {
    check_growth(|width| {
        let wide = |needs: &[u32]| JobSpec { width, ..JobSpec::needing(needs) };
        vec![wide(&[]), wide(&[0])]
    });
}

#[test]
fn matrices_of_different_requirements_cost_in_proportion_to_their_width() {
    check_growth(|width| different(20, width / 20));
}

#[test]
fn requirements_that_nothing_queued_has_cost_an_agent_one_look_each() {
    let (agents, jobs) = (50, [JobSpec { width: 2_000, ..JobSpec::default() }]);
    let (alone, _) = Fleet::new(agents).run(&jobs);
    let mut fleet = Fleet::new(agents);
    fleet.run(&different(IDLE_CLASSES_MAX as u32 + 50, 1));
    let (among_idle, _) = fleet.run(&jobs);
    assert!(among_idle <= alone + agents as usize * IDLE_CLASSES_MAX, "{alone} looks became {among_idle}");
}
