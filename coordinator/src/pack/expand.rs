//! A checked pack and its arguments to a plan: matrices become job runs, templates become texts, jobs get their
//! topological order. What is rendered is held to the rules that texts without expressions were held to when
//! the file was checked, and to bounds before it is made.
//!
//! A definition's environment has, in this order: the pack's variables that the job doesn't set, the job's, then
//! `PACKRUN_PARAM_<NAME>` for every parameter and `PACKRUN_MATRIX_<AXIS>` for every axis, both in declared order,
//! names in upper case with `-` as `_`; for a matrix job also which of its job runs this is, `PACKRUN_SHARD_INDEX`
//! from 1, and how many it has, `PACKRUN_SHARD_TOTAL`. No name is there twice: a pack can't set variables of packrun's.
//! The last axis of a matrix changes fastest.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;

use packrun_protocol::id::JobRunId;
use packrun_protocol::job::{self, ArtifactRule, Definition, InputRule, Requirement};
use packrun_protocol::limit::JOB_DEFINITION_BYTES_MAX;
use packrun_protocol::name::{JobKey, Labels, MatrixValue, Name};
use thiserror::Error;

use super::argument::Arguments;
use super::check::topological_order;
use super::model::{Action, Job, Pack};
use super::rules::Globs;
use super::template::{RenderError, Scope, Template};
use super::{Limits, PLAN_BYTES_MAX, rules};
use crate::core::plan::{JobIndex, Plan, PlannedJob, PlannedRun};

/// What a text or a rule of a definition counts for beyond its bytes: more than the codec's lengths and tags.
const TEXT_OVERHEAD_BYTES: usize = 32;

/// What a job run counts for beyond its texts.
const RUN_OVERHEAD_BYTES: usize = 512;

/// Why a pack and its arguments give no plan.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A job run's definition would be larger than [`JOB_DEFINITION_BYTES_MAX`].
    #[error("the definition of `{0}`, rendered, exceeds {JOB_DEFINITION_BYTES_MAX} bytes")]
    DefinitionTooLarge(JobKey),
    /// A rendered text breaks a rule.
    #[error("{field} of `{key}`, rendered: {reason}")]
    Field {
        /// Whose.
        key: JobKey,
        /// Which key of the job.
        field: &'static str,
        /// The rule.
        reason: String,
    },
    /// A job run's key is too long. A checked pack has none.
    #[error("a job run of `{job}` can't be named: {reason}")]
    Key {
        /// The job.
        job: Name,
        /// The rule.
        reason: String,
    },
    /// All definitions together would be larger than [`PLAN_BYTES_MAX`].
    #[error("the plan, rendered up to `{0}`, exceeds {PLAN_BYTES_MAX} bytes")]
    PlanTooLarge(JobKey),
}

impl Pack {
    /// The plan of a pack run with these arguments, which are this pack's, its logs within `limits`. `next_id` gives
    /// each job run its id.
    ///
    /// # Errors
    /// When a rendered text breaks a rule (a label, a path out of the workspace) or a bound.
    pub fn plan(
        &self,
        arguments: &Arguments,
        limits: &Limits,
        mut next_id: impl FnMut() -> JobRunId,
    ) -> Result<Plan, PlanError> {
        let order = topological_order(self.jobs.iter().map(|job| job.needs.as_slice()));
        let mut indices = vec![JobIndex(0); self.jobs.len()];
        let mut jobs = Vec::with_capacity(self.jobs.len());
        let mut bytes_left = PLAN_BYTES_MAX;
        for position in order {
            let Some(job) = self.jobs.get(position) else { continue };
            if let Some(index) = indices.get_mut(position) {
                *index = JobIndex(u32::try_from(jobs.len()).unwrap_or(u32::MAX));
            }
            let mut runs = Vec::with_capacity(job.width().unwrap_or(0));
            for number in 0..job.width().unwrap_or(0) {
                runs.push(self.run(job, number, (arguments, limits), &mut bytes_left, &mut next_id)?);
            }
            jobs.push(PlannedJob {
                name: job.name.clone(),
                needs: job.needs.iter().filter_map(|need| indices.get(*need).copied()).collect(),
                when: job.when,
                allow_failure: job.allow_failure,
                retry: job.retry,
                runs,
            });
        }
        check_inputs(&jobs)?;
        Ok(Plan { jobs })
    }

    fn run(
        &self,
        job: &Job,
        number: usize,
        (arguments, limits): (&Arguments, &Limits),
        plan_bytes_left: &mut usize,
        next_id: &mut impl FnMut() -> JobRunId,
    ) -> Result<PlannedRun, PlanError> {
        let matrix = combination(job, number);
        let key = JobKey::new(&job.name, matrix.iter().copied())
            .map_err(|error| PlanError::Key { job: job.name.clone(), reason: error.to_string() })?;
        let scope = Scope { params: &arguments.0, matrix: &matrix };
        let mut renderer = Renderer { key: &key, scope, bytes_left: JOB_DEFINITION_BYTES_MAX };
        let log_bytes_max = job.log_limit.unwrap_or(u64::MAX).min(limits.log_bytes);
        let definition = renderer.definition(self, job, number, log_bytes_max)?;
        let requirement = Requirement {
            labels: renderer.labels(job)?,
            cpu_millis: job.cpu_millis,
            memory_bytes: job.memory_bytes,
        };
        let bytes = JOB_DEFINITION_BYTES_MAX - renderer.bytes_left + RUN_OVERHEAD_BYTES;
        match plan_bytes_left.checked_sub(bytes) {
            Some(left) => *plan_bytes_left = left,
            None => return Err(PlanError::PlanTooLarge(key)),
        }
        Ok(PlannedRun { id: next_id(), key, requirement, definition: Arc::new(definition) })
    }
}

fn check_inputs(jobs: &[PlannedJob]) -> Result<(), PlanError> {
    let runs = || jobs.iter().flat_map(|job| job.runs.iter().map(move |run| (&job.name, run)));
    let globs = Globs::new(runs().flat_map(|(job, run)| {
        run.definition.artifacts.iter().map(move |artifact| (job, artifact.path.as_str()))
    }));
    for (_, run) in runs() {
        for input in &run.definition.inputs {
            globs.check_input(&input.from, &input.artifact).map_err(|reason| PlanError::Field {
                key: run.key.clone(),
                field: "`inputs`",
                reason,
            })?;
        }
    }
    Ok(())
}

/// The values of the job's axes in its combination of this number.
fn combination(job: &Job, number: usize) -> Vec<(&Name, &MatrixValue)> {
    let mut rest = number;
    let mut values: Vec<_> = job
        .matrix
        .iter()
        .rev()
        .filter_map(|axis| {
            let count = axis.values.len().max(1);
            let value = axis.values.get(rest % count)?;
            rest /= count;
            Some((&axis.name, value))
        })
        .collect();
    values.reverse();
    values
}

/// The variable that carries a parameter's or an axis's value.
fn variable_name(prefix: &str, name: &Name) -> String {
    format!("{prefix}{}", name.as_str().to_ascii_uppercase().replace('-', "_"))
}

/// Renders one job run's texts within the bound of a definition.
struct Renderer<'a> {
    key: &'a JobKey,
    scope: Scope<'a>,
    bytes_left: usize,
}

impl Renderer<'_> {
    /// What the job's run of this number, from 0, has to do.
    fn definition(
        &mut self,
        pack: &Pack,
        job: &Job,
        number: usize,
        log_bytes_max: u64,
    ) -> Result<Definition, PlanError> {
        let action = match &job.action {
            Action::Script(script) => job::Action::Script(
                self.parsed("`run`", script, |text| rules::script(text).map(|()| text.to_owned()))?,
            ),
            Action::Command(words) => {
                let words: Vec<String> =
                    words.iter().map(|word| self.word("`command`", word)).collect::<Result<_, _>>()?;
                rules::program(words.first().map_or("", String::as_str))
                    .map_err(|reason| self.broken("`command`", reason))?;
                job::Action::Command(words)
            }
        };
        let env = self.env(pack, job, number)?;
        let workdir = match &job.workdir {
            Some(workdir) => Some(self.parsed("`workdir`", workdir, rules::relative_path)?),
            None => None,
        };
        let artifacts = job.artifacts.iter().map(|artifact| {
            Ok(ArtifactRule {
                path: self.parsed("`artifacts`", &artifact.path, |path| {
                    rules::artifact_path(path).map(|()| path.to_owned())
                })?,
                name: match &artifact.name {
                    Some(name) => Some(self.parsed("`artifacts`", name, str::parse)?),
                    None => None,
                },
                optional: artifact.optional,
            })
        });
        let artifacts = artifacts.collect::<Result<Vec<_>, _>>()?;
        let mut names = HashSet::new();
        for name in artifacts.iter().filter_map(|artifact| artifact.name.as_ref()) {
            rules::distinct_name(&mut names, name.as_str())
                .map_err(|reason| self.broken("`artifacts`", reason))?;
        }
        let inputs = job.inputs.iter().map(|input| {
            self.take(input.from.as_str().len())?;
            Ok(InputRule {
                from: input.from.clone(),
                artifact: self.parsed("`inputs`", &input.artifact, |path| {
                    rules::input_path(path).map(|path| path.to_string())
                })?,
                to: match &input.to {
                    Some(to) => Some(self.parsed("`inputs`", to, rules::input_path)?),
                    None => None,
                },
                optional: input.optional,
            })
        });
        let inputs = inputs.collect::<Result<_, _>>()?;
        Ok(Definition { action, env, workdir, timeout: job.timeout, artifacts, inputs, log_bytes_max })
    }

    fn env(&mut self, pack: &Pack, job: &Job, number: usize) -> Result<Vec<(String, String)>, PlanError> {
        let own: HashSet<&str> = job.env.iter().map(|variable| variable.name.as_str()).collect();
        let inherited = pack.env.iter().filter(|variable| !own.contains(variable.name.as_str()));
        let mut env = Vec::with_capacity(pack.env.len() + job.env.len() + pack.params.len());
        for variable in inherited.chain(&job.env) {
            let name = self.kept(&variable.name)?;
            env.push((name, self.word("`env`", &variable.value)?));
        }
        let Scope { params, matrix } = self.scope;
        let params = pack.params.iter().filter_map(|param| Some((&param.name, params.get(&param.name)?)));
        for (name, value) in params {
            env.push((self.kept(&variable_name("PACKRUN_PARAM_", name))?, self.kept(value)?));
        }
        for (name, value) in matrix {
            env.push((self.kept(&variable_name("PACKRUN_MATRIX_", name))?, self.kept(value.as_str())?));
        }
        if !matrix.is_empty() {
            for (name, value) in [("INDEX", number + 1), ("TOTAL", job.width().unwrap_or(0))] {
                env.push((self.kept(&format!("PACKRUN_SHARD_{name}"))?, self.kept(&value.to_string())?));
            }
        }
        Ok(env)
    }

    fn labels(&mut self, job: &Job) -> Result<Labels, PlanError> {
        let labels = job.labels.iter().map(|(key, value)| {
            let key = self.kept(key)?;
            Ok((key, self.text("`labels`", value)?))
        });
        let labels = labels.collect::<Result<Vec<_>, _>>()?;
        Labels::new(labels).map_err(|error| self.broken("`labels`", error))
    }

    fn text(&mut self, field: &'static str, template: &Template) -> Result<String, PlanError> {
        let rendered = template.render(self.scope, self.bytes_left).map_err(|error| match error {
            RenderError::TooLarge => PlanError::DefinitionTooLarge(self.key.clone()),
            RenderError::Unbound(_) => self.broken(field, error),
        })?;
        self.take(rendered.len())?;
        Ok(rendered)
    }

    fn word(&mut self, field: &'static str, template: &Template) -> Result<String, PlanError> {
        let text = self.text(field, template)?;
        rules::word(&text).map_err(|error| self.broken(field, error))?;
        Ok(text)
    }

    fn parsed<T, E: Display>(
        &mut self,
        field: &'static str,
        template: &Template,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, PlanError> {
        let text = self.text(field, template)?;
        parse(&text).map_err(|error| self.broken(field, error))
    }

    fn kept(&mut self, text: &str) -> Result<String, PlanError> {
        self.take(text.len())?;
        Ok(text.to_owned())
    }

    fn take(&mut self, bytes: usize) -> Result<(), PlanError> {
        match self.bytes_left.checked_sub(bytes.saturating_add(TEXT_OVERHEAD_BYTES)) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None => Err(PlanError::DefinitionTooLarge(self.key.clone())),
        }
    }

    fn broken(&self, field: &'static str, reason: impl Display) -> PlanError {
        PlanError::Field { key: self.key.clone(), field, reason: reason.to_string() }
    }
}
