//! One job of a pack file.

mod files;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use packrun_protocol::limit::{LABELS_MAX, LOG_BYTES_MAX, LOG_BYTES_MIN};
use packrun_protocol::name::{JobKey, Labels, MatrixValue, Name};

use super::{KnownNames, name, template, variables, word};
use crate::core::plan::{BACKOFF_MAX, Retry, When};
use crate::pack::fields::{Fields, Reader};
use crate::pack::model::{Action, Axis, Job};
use crate::pack::problem::{Kind, Place, excerpt};
use crate::pack::source::{Key, Node, Value};
use crate::pack::template::Template;
use crate::pack::{quantity, rules};

pub(in crate::pack) const JOB_KEYS: [&str; 16] = [
    "run",
    "command",
    "needs",
    "when",
    "env",
    "matrix",
    "labels",
    "resources",
    "timeout",
    "log_limit",
    "retry",
    "artifacts",
    "inputs",
    "allow_failure",
    "workdir",
    "description",
];
pub(in crate::pack) const RESOURCES_KEYS: [&str; 2] = ["cpus", "memory"];
pub(in crate::pack) const RETRY_KEYS: [&str; 2] = ["attempts", "backoff"];
pub(in crate::pack) const ARTIFACT_KEYS: [&str; 3] = ["path", "name", "optional"];
pub(in crate::pack) const INPUT_KEYS: [&str; 4] = ["from", "artifact", "to", "optional"];

/// Most axes of a matrix.
const AXES_MAX: usize = 16;

/// What stands among the axes of a matrix in a later release. Other reserved keys mean nothing there and are names.
const RESERVED_AXES: [&str; 1] = ["exclude"];

/// Most tries of a job run.
const ATTEMPTS_MAX: u32 = 100;

/// A job without `retry` is tried once; one that only says how often waits this long.
const RETRY_DEFAULT: Retry = Retry { attempts: 1, backoff: Duration::from_secs(1) };

pub(super) struct JobReader<'r, 'p, 'n> {
    pub(super) reader: &'r mut Reader<'p>,
    pub(super) params: &'n BTreeSet<&'n str>,
    /// The positions of the pack's jobs by their names.
    pub(super) positions: &'n HashMap<&'n str, usize>,
    /// The names of the pack's jobs in declared order.
    pub(super) names: &'n [&'n str],
    /// Inputs to compare with what the jobs keep, once all jobs are read.
    pub(super) taken: &'r mut Vec<Taken>,
}

/// What an input takes, if that looks like a glob.
pub(super) struct Taken {
    pub(super) at: Place,
    pub(super) from: Name,
    pub(super) artifact: String,
}

impl<'n> JobReader<'_, '_, 'n> {
    /// The job, unless its name or action is missing, and the positions of the jobs it needs.
    pub(super) fn read(&mut self, key: &'n Key, node: &'n Node) -> (Option<Job>, Vec<usize>) {
        let name = name(self.reader, key);
        let Some(fields) = self.reader.fields(node, "a job", &JOB_KEYS) else { return (None, Vec::new()) };
        let needs = fields.get("needs").map(|node| self.needs(key, node)).unwrap_or_default();
        let needed = fields.get("needs").map(texts).unwrap_or_default();
        let when = fields.get("when").and_then(|node| self.when(node, &needed)).unwrap_or_default();
        let matrix_node = fields.get("matrix");
        let matrix = match (matrix_node, &name) {
            (Some(node), Some(name)) => self.matrix(name, node),
            _ => Vec::new(),
        };
        let axes = matrix_node.map(super::keys);
        let scope = KnownNames { params: self.params, matrix: axes.as_ref() };
        let action = self.action(key, &fields, scope);
        let env = fields.get("env").map(|node| variables(self.reader, node, scope)).unwrap_or_default();
        let labels = fields.get("labels").map(|node| self.labels(node, scope)).unwrap_or_default();
        let (cpu_millis, memory_bytes) =
            fields.get("resources").map(|node| self.resources(node)).unwrap_or_default();
        let timeout = fields.get("timeout").and_then(|node| self.timeout(node));
        let log_limit = fields.get("log_limit").and_then(|node| self.log_limit(node));
        let retry = fields.get("retry").and_then(|node| self.retry(node)).unwrap_or(RETRY_DEFAULT);
        let artifacts = fields.get("artifacts").map(|node| self.artifacts(node, scope)).unwrap_or_default();
        let inputs = fields.get("inputs").map(|node| self.inputs(node, &needed, scope)).unwrap_or_default();
        let allow_failure = self.truth(&fields, "allow_failure");
        let workdir =
            fields.get("workdir").and_then(|node| self.path(node, "`workdir`", scope, rules::relative_path));
        let description = fields.get("description").and_then(|node| self.reader.text(node, "`description`"));
        let job = name.zip(action).map(|(name, action)| Job {
            name,
            description,
            action,
            needs: needs.clone(),
            when,
            env,
            matrix,
            labels,
            cpu_millis,
            memory_bytes,
            timeout,
            log_limit,
            retry,
            artifacts,
            inputs,
            allow_failure,
            workdir,
        });
        (job, needs)
    }

    fn truth(&mut self, fields: &Fields<'_>, name: &str) -> bool {
        fields.get(name).and_then(|node| self.reader.truth(node, &format!("`{name}`"))).unwrap_or(false)
    }

    fn action(&mut self, key: &Key, fields: &Fields<'_>, scope: KnownNames<'_>) -> Option<Action> {
        match (fields.get("run"), fields.get("command")) {
            (Some(node), None) => {
                let script = template(self.reader, node, "`run`", scope)?;
                if let Some(text) = script.literal() {
                    self.reader.checked(node.at, rules::script(text));
                }
                Some(Action::Script(script))
            }
            (None, Some(node)) => {
                let items = self.reader.items(node, "`command`")?;
                let words: Vec<Template> = items
                    .iter()
                    .filter_map(|item| word(self.reader, item, "a word of `command`", scope))
                    .collect();
                let first = words.first().and_then(Template::literal);
                if let Some(text) = first.or(items.is_empty().then_some("")) {
                    self.reader.checked(node.at, rules::program(text));
                }
                Some(Action::Command(words))
            }
            (Some(_), Some(node)) => {
                self.reader.report(node.at, Kind::Value, "a job has `run` or `command`, not both");
                None
            }
            (None, None) => {
                let message = format!("job `{}` needs `run` or `command`", excerpt(&key.text));
                self.reader.report(key.at, Kind::Missing, message);
                None
            }
        }
    }

    fn needs(&mut self, key: &Key, node: &Node) -> Vec<usize> {
        let mut needs = Vec::new();
        let mut seen = HashSet::new();
        for item in self.reader.items(node, "`needs`").unwrap_or_default() {
            let Some(need) = self.reader.scalar(item, "a job's name") else { continue };
            if need == key.text {
                let message = format!("job `{}` needs itself", excerpt(need));
                self.reader.report(item.at, Kind::Dependency, message);
            } else if !seen.insert(need) {
                let message = format!("duplicate need `{}`", excerpt(need));
                self.reader.report(item.at, Kind::Duplicate, message);
            } else if let Some(position) = self.positions.get(need) {
                needs.push(*position);
            } else {
                let message = format!("unknown job `{}` in `needs`", excerpt(need));
                let names = self.names.iter().copied().filter(|name| *name != key.text);
                self.reader.problems.add_unknown(item.at, Kind::UnknownReference, message, need, names);
            }
        }
        needs
    }

    fn when(&mut self, node: &Node, needed: &BTreeSet<&str>) -> Option<When> {
        let text = self.reader.scalar(node, "`when`")?;
        let Some(when) = When::ALL.into_iter().find(|when| when.as_str() == text) else {
            let words @ [a, b, c] = When::ALL.map(When::as_str);
            let message = format!("`{}` is not `{a}`, `{b}` or `{c}`", excerpt(text));
            self.reader.problems.add_unknown(node.at, Kind::Value, message, text, words);
            return None;
        };
        if when == When::Failure && needed.is_empty() {
            let message = "`when: failure` without `needs`: there is nothing that could fail";
            self.reader.report(node.at, Kind::Dependency, message);
        }
        Some(when)
    }

    fn matrix(&mut self, job: &Name, node: &Node) -> Vec<Axis> {
        let entries = self.reader.entries(node, "`matrix`").unwrap_or_default();
        if matches!(node.value, Value::Mapping(_)) && !(1..=AXES_MAX).contains(&entries.len()) {
            self.reader.report(node.at, Kind::Limit, format!("a matrix takes 1 to {AXES_MAX} axes"));
            return Vec::new();
        }
        let matrix: Vec<Axis> = entries.iter().filter_map(|(key, node)| self.axis(key, node)).collect();
        let longest = matrix.iter().filter_map(|axis| {
            Some((&axis.name, axis.values.iter().max_by_key(|value| value.as_str().len())?))
        });
        if let Err(error) = JobKey::new(job, longest) {
            self.reader.report(node.at, Kind::Limit, error.to_string());
        }
        matrix
    }

    fn axis(&mut self, key: &Key, node: &Node) -> Option<Axis> {
        if self.reader.is_reserved(key, &RESERVED_AXES) {
            return None;
        }
        let name = name(self.reader, key);
        let items = self.reader.items(node, "a matrix axis")?;
        if items.is_empty() {
            self.reader.report(node.at, Kind::Value, "a matrix axis needs at least one value");
        }
        let mut seen = HashSet::with_capacity(items.len());
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            let Some(value) = self.reader.parsed::<MatrixValue>(item, "a matrix value") else { continue };
            if !seen.insert(value.clone()) {
                let message = format!("duplicate matrix value `{value}`");
                self.reader.report(item.at, Kind::Duplicate, message);
            }
            values.push(value);
        }
        Some(Axis { name: name?, values })
    }

    fn labels(&mut self, node: &Node, scope: KnownNames<'_>) -> Vec<(String, Template)> {
        let mut labels = BTreeMap::new();
        for (key, node) in self.reader.entries(node, "`labels`").unwrap_or_default() {
            self.reader.checked(key.at, Labels::new([(key.text.clone(), String::new())]));
            let Some(value) = template(self.reader, node, "a label", scope) else { continue };
            if let Some(text) = value.literal() {
                self.reader.checked(node.at, Labels::new([("label".to_owned(), text.to_owned())]));
            }
            labels.insert(key.text.clone(), value);
        }
        if labels.len() > LABELS_MAX {
            self.reader.report(node.at, Kind::Limit, format!("a job takes at most {LABELS_MAX} labels"));
        }
        labels.into_iter().collect()
    }

    fn resources(&mut self, node: &Node) -> (u32, u64) {
        let Some(fields) = self.reader.fields(node, "`resources`", &RESOURCES_KEYS) else { return (0, 0) };
        let cpus = fields
            .get("cpus")
            .and_then(|node| self.reader.quantity(node, "`cpus`", quantity::CPU_RULE, quantity::cpu_millis));
        let memory = fields
            .get("memory")
            .and_then(|node| self.reader.quantity(node, "`memory`", quantity::MEMORY_RULE, quantity::memory));
        (cpus.unwrap_or(0), memory.unwrap_or(0))
    }

    fn duration(&mut self, node: &Node, what: &str) -> Option<Duration> {
        self.reader.quantity(node, what, quantity::DURATION_RULE, quantity::duration)
    }

    fn timeout(&mut self, node: &Node) -> Option<Duration> {
        let timeout = self.duration(node, "`timeout`")?;
        if timeout.is_zero() {
            self.reader.report(node.at, Kind::Value, "`timeout` may not be 0; leave it out for no limit");
        }
        Some(timeout)
    }

    fn log_limit(&mut self, node: &Node) -> Option<u64> {
        let limit = self.reader.quantity(node, "`log_limit`", quantity::MEMORY_RULE, quantity::memory)?;
        if !(LOG_BYTES_MIN..=LOG_BYTES_MAX).contains(&limit) {
            self.reader.report(node.at, Kind::Value, "`log_limit` is from 1KiB to 1TiB");
        }
        Some(limit)
    }

    fn retry(&mut self, node: &Node) -> Option<Retry> {
        let fields = self.reader.fields(node, "`retry`", &RETRY_KEYS)?;
        let rule = format!("`attempts` is a number from 1 to {ATTEMPTS_MAX}");
        let attempts = fields.get("attempts").and_then(|node| {
            self.reader.quantity(node, "`attempts`", &rule, |text| {
                text.parse().ok().filter(|attempts| (1..=ATTEMPTS_MAX).contains(attempts))
            })
        });
        let backoff = fields.get("backoff").and_then(|node| {
            let backoff = self.duration(node, "`backoff`")?;
            if backoff > BACKOFF_MAX {
                self.reader.report(node.at, Kind::Value, "`backoff` is at most 1h");
            }
            Some(backoff)
        });
        Some(Retry {
            attempts: attempts.unwrap_or(RETRY_DEFAULT.attempts),
            backoff: backoff.unwrap_or(RETRY_DEFAULT.backoff),
        })
    }
}

/// The names in a list of needs, whether there are such jobs or not: what else refers to them is then no second
/// problem.
fn texts(node: &Node) -> BTreeSet<&str> {
    let Value::Sequence(items) = &node.value else { return BTreeSet::new() };
    let texts = items.iter().filter_map(|item| match &item.value {
        Value::Plain(text) | Value::Quoted(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}
