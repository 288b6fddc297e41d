//! A tree to a checked pack. Names are collected first and resolved afterwards, so order in the file doesn't
//! matter; what is wrong is reported and replaced by a default, so that one pass finds all of it.

mod graph;
pub(super) mod job;

use std::collections::{BTreeSet, HashMap, HashSet};

use packrun_protocol::name::Name;

use self::job::{JobReader, Taken};
use super::fields::Reader;
use super::model::{Job, Pack, Param, Variable};
use super::problem::{Kind, Place, Problems, excerpt};
use super::rules::Globs;
use super::source::{Key, Node, Value};
use super::template::{Reference, Template};
use super::{Limits, rules};

pub(super) use self::graph::topological_order;

pub(in crate::pack) const PACK_KEYS: [&str; 5] = ["name", "description", "params", "env", "jobs"];
pub(in crate::pack) const PARAM_KEYS: [&str; 3] = ["default", "choices", "description"];

/// The pack that `root` describes; `None` with at least one more problem.
pub(super) fn check(root: &Node, limits: &Limits, problems: &mut Problems) -> Option<Pack> {
    let mut reader = Reader { problems };
    let fields = reader.fields(root, "a pack", &PACK_KEYS)?;
    let name = match fields.get("name") {
        Some(node) => reader.parsed(node, "`name`"),
        None => {
            reader.report(fields.at, Kind::Missing, "a pack needs a `name`");
            None
        }
    };
    let description = fields.get("description").and_then(|node| reader.text(node, "`description`"));
    let params_node = fields.get("params");
    let known = params_node.map(keys).unwrap_or_default();
    let scope = KnownNames { params: &known, matrix: None };
    let params = params_node.map(|node| params(&mut reader, node)).unwrap_or_default();
    let env = fields.get("env").map(|node| variables(&mut reader, node, scope)).unwrap_or_default();
    let jobs = match fields.get("jobs") {
        Some(node) => jobs(&mut reader, node, &known, limits.job_runs),
        None => {
            reader.report(fields.at, Kind::Missing, "a pack needs `jobs`");
            Vec::new()
        }
    };
    let pack = Pack { name: name?, description, params, env, jobs };
    reader.problems.is_empty().then_some(pack)
}

/// The names that expressions can refer to, as the file has them, valid or not.
#[derive(Clone, Copy)]
struct KnownNames<'a> {
    params: &'a BTreeSet<&'a str>,
    /// The axes of the job's matrix; `None` outside a job.
    matrix: Option<&'a BTreeSet<&'a str>>,
}

fn keys(node: &Node) -> BTreeSet<&str> {
    match &node.value {
        Value::Mapping(entries) => entries.iter().map(|(key, _)| key.text.as_str()).collect(),
        _ => BTreeSet::new(),
    }
}

/// A key that has to be a name, with the closest valid name suggested.
fn name(reader: &mut Reader<'_>, key: &Key) -> Option<Name> {
    key.text
        .parse()
        .map_err(|error| {
            let fixed = key.text.to_ascii_lowercase().replace(['_', ' ', '.'], "-");
            let suggestion = fixed.parse::<Name>().ok().map(|name| name.to_string());
            reader.problems.add_with(key.at, Kind::Value, format!("{error}"), suggestion);
        })
        .ok()
}

/// A template all of whose references are known.
fn template(reader: &mut Reader<'_>, node: &Node, what: &str, scope: KnownNames<'_>) -> Option<Template> {
    let template = reader.template(node, what)?;
    for reference in template.references() {
        let (known, name) = match reference {
            Reference::Param(name) => (Some(scope.params), name.as_str()),
            Reference::Matrix(name) => (scope.matrix, name.as_str()),
        };
        let Some(known) = known else {
            let message = format!("`{reference}` is only known in a job with a matrix");
            reader.report(node.at, Kind::UnknownReference, message);
            continue;
        };
        if !known.contains(name) {
            let what = match reference {
                Reference::Param(_) => "parameter",
                Reference::Matrix(_) => "matrix axis",
            };
            let message = format!("unknown {what} `{name}` in `${{{{ {reference} }}}}`");
            let candidates = known.iter().copied();
            reader.problems.add_unknown(node.at, Kind::UnknownReference, message, name, candidates);
        }
    }
    Some(template)
}

/// A template whose text a process can be given as an argument or a variable.
fn word(reader: &mut Reader<'_>, node: &Node, what: &str, scope: KnownNames<'_>) -> Option<Template> {
    let word = template(reader, node, what, scope)?;
    if let Some(text) = word.literal() {
        reader.checked(node.at, rules::word(text));
    }
    Some(word)
}

fn variables(reader: &mut Reader<'_>, node: &Node, scope: KnownNames<'_>) -> Vec<Variable> {
    let mut variables = Vec::new();
    for (key, value) in reader.entries(node, "`env`").unwrap_or_default() {
        reader.checked(key.at, rules::variable_name(&key.text));
        if let Some(value) = word(reader, value, "a variable", scope) {
            variables.push(Variable { name: key.text.clone(), value });
        }
    }
    variables
}

fn params(reader: &mut Reader<'_>, node: &Node) -> Vec<Param> {
    let entries = reader.entries(node, "`params`").unwrap_or_default();
    entries.iter().filter_map(|(key, node)| param(reader, key, node)).collect()
}

fn param(reader: &mut Reader<'_>, key: &Key, node: &Node) -> Option<Param> {
    let name = name(reader, key);
    let fields = reader.fields(node, "a parameter", &PARAM_KEYS)?;
    let description = fields.get("description").and_then(|node| reader.text(node, "`description`"));
    let default = fields.get("default").and_then(|node| reader.text(node, "`default`"));
    let mut choices: Vec<String> = Vec::new();
    if let Some(node) = fields.get("choices") {
        let mut seen = HashSet::new();
        for item in reader.items(node, "`choices`").unwrap_or_default() {
            let Some(choice) = reader.text(item, "a choice") else { continue };
            if seen.insert(choice.clone()) {
                choices.push(choice);
            } else {
                let message = format!("duplicate choice `{}`", excerpt(&choice));
                reader.report(item.at, Kind::Duplicate, message);
            }
        }
        if matches!(&node.value, Value::Sequence(items) if items.is_empty()) {
            reader.report(
                node.at,
                Kind::Value,
                "`choices` may not be empty; leave it out to allow any value",
            );
        }
    }
    if let (Some(default), Some(node)) = (&default, fields.get("default"))
        && !choices.is_empty()
        && !choices.contains(default)
    {
        let message = format!("the default `{}` is none of the choices", excerpt(default));
        let candidates = choices.iter().map(String::as_str);
        reader.problems.add_unknown(node.at, Kind::Value, message, default, candidates);
    }
    Some(Param { name: name?, description, default, choices })
}

fn jobs(reader: &mut Reader<'_>, node: &Node, params: &BTreeSet<&str>, runs_max: usize) -> Vec<Job> {
    let entries = reader.entries(node, "`jobs`").unwrap_or_default();
    if matches!(&node.value, Value::Mapping(entries) if entries.is_empty()) {
        reader.report(node.at, Kind::Missing, "a pack needs at least one job");
    }
    let positions: HashMap<&str, usize> =
        entries.iter().enumerate().map(|(position, (key, _))| (key.text.as_str(), position)).collect();
    let names: Vec<&str> = entries.iter().map(|(key, _)| key.text.as_str()).collect();
    let mut jobs = Vec::with_capacity(entries.len());
    let mut needs = Vec::with_capacity(entries.len());
    let mut runs: usize = 0;
    let mut taken = Vec::new();
    for (key, node) in entries {
        let mut job_reader = JobReader {
            reader: &mut *reader,
            params,
            positions: &positions,
            names: &names,
            taken: &mut taken,
        };
        let (job, needed) = job_reader.read(key, node);
        runs = runs.saturating_add(job.as_ref().map_or(1, |job| job.width().unwrap_or(usize::MAX)));
        jobs.extend(job);
        needs.push(needed);
    }
    if runs > runs_max {
        let message = format!("more than {runs_max} job runs in all; matrices count by their product");
        reader.report(node.at, Kind::Limit, message);
    }
    let artifacts = jobs.iter().flat_map(|job| job.artifacts.iter().map(|artifact| (&job.name, artifact)));
    let globs = Globs::new(artifacts.filter_map(|(job, artifact)| Some((job, artifact.path.literal()?))));
    for Taken { at, from, artifact } in taken {
        reader.checked(at, globs.check_input(&from, &artifact));
    }
    for cycle in graph::cycles(&needs) {
        let place = cycle.first().and_then(|first| entries.get(*first)).map_or(Place(0), |(key, _)| key.at);
        let path: Vec<_> =
            cycle.iter().chain(cycle.first()).filter_map(|job| names.get(*job).copied()).collect();
        reader.report(place, Kind::Dependency, graph::describe(&path));
    }
    jobs
}
