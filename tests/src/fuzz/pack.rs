//! Pack files and the expressions in them. A pack that is accepted is known by its canonical form, from which it can
//! be made again, and its plan is one that the coordinator and the agents take.

use std::collections::{BTreeMap, HashSet};

use packrun_coordinator::core::plan::Plan;
use packrun_coordinator::pack::{Format, InvalidPack, Limits, Pack, check};
use packrun_protocol::id::JobRunId;
use packrun_protocol::{codec, limit};
use serde_json::{Value, json};

use super::choice;

/// A file, whatever is in it, is a pack or has problems that lie within it.
pub(super) fn packs(data: &[u8]) {
    let (kind, data) = choice(data);
    let format = [Format::Yaml, Format::Toml, Format::Json][usize::from(kind % 3)];
    match check(format, data, &Limits::default()) {
        Ok(pack) => {
            same_from_canonical(&pack);
            if let Some(plan) = plan(&pack) {
                agreed(&pack, &plan);
            }
        }
        Err(error) => located(&error, data),
    }
}

fn located(error: &InvalidPack, data: &[u8]) {
    assert!(!error.problems.is_empty());
    let text = String::from_utf8_lossy(data);
    let (lines, chars) = (1 + text.matches('\n').count(), 1 + text.chars().count());
    for problem in &error.problems {
        assert!((1..=lines).contains(&problem.line) && (1..=chars).contains(&problem.column), "{problem}");
    }
}

fn same_from_canonical(pack: &Pack) {
    let file = from_canonical(&pack.canonical());
    let again = check(Format::Json, file.as_bytes(), &Limits::default())
        .unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(&again, pack, "{file}");
    assert_eq!(again.digest(), pack.digest());
}

/// The plan of `pack` with a value for each parameter, if its texts make one.
fn plan(pack: &Pack) -> Option<Plan> {
    let missing = pack.params().iter().filter(|param| param.default.is_none());
    let given = missing.map(|param| {
        let value = param.choices.first().map_or("v", String::as_str);
        (param.name.to_string(), value.to_owned())
    });
    let arguments = pack.arguments(&given.collect()).unwrap();
    let mut number = 0u128;
    let ids = || {
        number += 1;
        JobRunId::from_bytes(number.to_be_bytes())
    };
    pack.plan(&arguments, &Limits::default(), ids).ok()
}

fn agreed(pack: &Pack, plan: &Plan) {
    assert_eq!(plan.check(), Ok(()));
    let widths: BTreeMap<_, _> = pack.jobs().map(|(name, width)| (name.as_str(), width)).collect();
    assert_eq!(widths.len(), plan.jobs.len());
    for job in &plan.jobs {
        assert_eq!(widths.get(job.name.as_str()), Some(&job.runs.len()));
    }
    for run in plan.job_runs() {
        let bytes = codec::encode(&*run.definition).unwrap();
        assert!(bytes.len() <= limit::JOB_DEFINITION_BYTES_MAX, "{}: {} bytes", run.key, bytes.len());
        let names: HashSet<_> = run.definition.env.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), run.definition.env.len(), "{}: a variable is there twice", run.key);
        for rule in &run.definition.artifacts {
            assert_eq!(rule.check(), Ok(()));
        }
    }
    let record = codec::encode_record(plan).unwrap();
    assert_eq!(&codec::decode_record::<Plan>(&record).unwrap(), plan);
}

/// A pack file in JSON again, from the canonical form of its pack. Its objects are written here: what is listed in order
/// keeps it.
fn from_canonical(canonical: &str) -> String {
    fn object(entries: impl Iterator<Item = (String, String)>) -> String {
        let entries: Vec<_> = entries.map(|(key, text)| format!("{}:{text}", json!(key))).collect();
        format!("{{{}}}", entries.join(","))
    }
    fn keyed(list: &Value, key: &str, text: impl Fn(&Value) -> String) -> String {
        let entries = list.as_array().unwrap().iter();
        object(entries.map(|entry| (entry[key].as_str().unwrap().to_owned(), text(entry))))
    }
    fn given<'v>(entry: &'v Value, left_out: &[&str]) -> impl Iterator<Item = (String, String)> {
        let is_given = |(key, value): &(&'v String, &'v Value)| {
            !left_out.contains(&key.as_str()) && !value.is_null() && **value != json!([])
        };
        let kept: Vec<_> = entry.as_object().unwrap().iter().filter(is_given).collect();
        kept.into_iter().map(|(key, value)| (key.clone(), value.to_string()))
    }
    let variables = |list: &Value| keyed(list, "name", |variable| variable["value"].to_string());
    let job = |job: &Value| {
        let (resources, retry) = (&job["resources"], &job["retry"]);
        let cpu_millis = resources["cpu_millis"].as_u64().unwrap();
        let cpus = format!("{}.{:03}", cpu_millis / 1000, cpu_millis % 1000);
        let (memory, backoff) = (&resources["memory_bytes"], &retry["backoff_ms"]);
        let lists = ["artifacts", "inputs"].map(|list| {
            let entries = job[list].as_array().unwrap().iter();
            let entries: Vec<_> = entries.map(|entry| object(given(entry, &[]))).collect();
            (list.to_owned(), format!("[{}]", entries.join(",")))
        });
        let rewritten = [
            ("env", variables(&job["env"])),
            ("resources", json!({"cpus": cpus, "memory": format!("{memory}B")}).to_string()),
            ("retry", json!({"attempts": retry["attempts"], "backoff": format!("{backoff}ms")}).to_string()),
        ];
        let matrix = Some(&job["matrix"]).filter(|axes| **axes != json!([]));
        let matrix = matrix.map(|axes| keyed(axes, "axis", |axis| axis["values"].to_string()));
        let timeout = job["timeout_ms"].as_u64().map(|millis| json!(format!("{millis}ms")).to_string());
        let optional = [("matrix", matrix), ("timeout", timeout)];
        let optional = optional.into_iter().filter_map(|(key, text)| Some((key, text?)));
        let rewritten = rewritten.into_iter().chain(optional).map(|(key, text)| (key.to_owned(), text));
        let left_out = ["name", "env", "resources", "retry", "matrix", "timeout_ms", "artifacts", "inputs"];
        object(given(job, &left_out).chain(rewritten).chain(lists))
    };
    let pack: Value = serde_json::from_str(canonical).unwrap();
    let rewritten = [
        ("params".to_owned(), keyed(&pack["params"], "name", |param| object(given(param, &["name"])))),
        ("env".to_owned(), variables(&pack["env"])),
        ("jobs".to_owned(), keyed(&pack["jobs"], "name", job)),
    ];
    object(given(&pack, &["params", "env", "jobs"]).chain(rewritten))
}

/// A text with expressions is rendered as the rule says, which is written here a second time and in another way.
pub(super) fn expressions(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut texts = text.splitn(3, '\0');
    let (param, axis) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    let text = texts.next().unwrap_or_default();
    let file = json!({
        "name": "p",
        "params": {"x": {"default": param}},
        "jobs": {"a": {"run": text, "matrix": {"y": [axis]}, "env": {"E": text}}},
    });
    let Ok(pack) = check(Format::Json, file.to_string().as_bytes(), &Limits::default()) else { return };
    same_from_canonical(&pack);
    let expected = rendered(text, param, axis).unwrap();
    let Some(plan) = plan(&pack) else { return };
    let definition = &plan.jobs[0].runs[0].definition;
    assert_eq!(definition.action, packrun_protocol::job::Action::Script(expected.clone()));
    assert_eq!(definition.env[0], ("E".to_owned(), expected));
}

/// `text` with these values; `None` when it has what is no expression.
fn rendered(text: &str, param: &str, axis: &str) -> Option<String> {
    let (mut rendered, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix("$${{") {
            rendered.push_str("${{");
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("${{") {
            let end = behind.find("}}")?;
            rendered.push_str(match behind[..end].trim() {
                "params.x" => param,
                "matrix.y" => axis,
                _ => return None,
            });
            rest = &behind[end + 2..];
        } else {
            rendered.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    Some(rendered)
}
