//! Properties over random texts and random packs.

use std::collections::{BTreeMap, HashSet};

use packrun_protocol::id::JobRunId;
use packrun_protocol::{codec, limit};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::{Format, Limits};
use super::check;

const FORMATS: [Format; 3] = [Format::Yaml, Format::Toml, Format::Json];

/// Pieces that pack files are made of, so that random texts get past the parsers.
fn hostile_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("name: p\n"),
        Just("jobs:\n"),
        Just("  a:\n"),
        Just("    run: x\n"),
        Just("    needs: [a, b]\n"),
        Just("    matrix: {x: [1, 2]}\n"),
        Just("${{ params.x }}"),
        Just("${{"),
        Just("$${{"),
        Just("}}"),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just("\""),
        Just("'"),
        Just(": "),
        Just(", "),
        Just("- "),
        Just("|\n"),
        Just("\\u0000"),
        Just("\\"),
        Just("\u{feff}"),
        Just("\0"),
        Just("é🦀"),
        Just("&a "),
        Just("*a"),
        Just("!!x "),
        Just("--- "),
        Just("? "),
        Just("# "),
        Just("%YAML 1.2\n"),
        Just("\t"),
        Just("\r\n"),
        Just("[jobs.a]\n"),
        Just("[[jobs]]\n"),
        Just("run = 'x'\n"),
        Just("1e999"),
        Just("null"),
        Just("\"name\": \"p\","),
        Just("\"jobs\": {\"a\": {\"run\": \"x\"}}"),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// A random job of position `n`, which may need those before it.
fn job(n: usize) -> impl Strategy<Value = Value> {
    let needs = prop::collection::btree_set(0..n.max(1), 0..4);
    let matrix =
        prop::collection::btree_map("[a-c]", prop::collection::btree_set("[a-z0-9.]{1,4}", 1..4), 0..3);
    let text = "[ -~é\n]{0,20}";
    let folder = prop::option::of("[a-z]{1,3}(/[a-z]{1,3})?");
    let about = prop::option::of(text);
    let arguments = prop::option::of(prop::collection::vec(text, 0..3));
    let texts = (text, "[a-z]{1,5}", folder, about, arguments);
    (needs, matrix, texts, any::<bool>(), 1..5u32, 1..5000u32).prop_map(
        move |(needs, matrix, (text, word, folder, about, arguments), flag, attempts, millis)| {
            let needs: Vec<_> = needs.into_iter().filter(|need| *need < n).map(|need| format!("j{need}")).collect();
            let set = |entry: &mut Value, key: &str, text: &Option<String>| {
                if let Some(text) = text {
                    entry[key] = json!(text);
                }
            };
            let input = |need: &String| {
                let mut input = json!({"from": need, "artifact": word, "optional": flag});
                set(&mut input, "to", &folder);
                input
            };
            let inputs: Vec<_> = needs.iter().map(input).collect();
            let references: String = matrix.keys().map(|axis| format!("${{{{ matrix.{axis} }}}}")).collect();
            let text = text.replace("${{", "");
            let mut job = json!({
                "needs": needs,
                "inputs": inputs,
                "env": {"A": text, "B_1": references},
                "labels": {"os": word},
                "allow_failure": flag,
                "retry": {"attempts": attempts, "backoff": format!("{millis}ms")},
                "timeout": format!("{millis}s"),
                "resources": {"cpus": format!("{}.{}", millis % 100, millis % 7), "memory": format!("{millis}MiB")},
                "artifacts": [word, {"path": format!("{word}/*"), "name": word}],
                "when": if flag { "always" } else { "success" },
            });
            match arguments {
                Some(arguments) => {
                    let arguments = arguments.iter().map(|argument| argument.replace("${{", "$${{"));
                    let program = [format!("{word}{references}")];
                    job["command"] = program.into_iter().chain(arguments).collect();
                }
                None => job["run"] = json!(format!("{word} {references} $${{{{ ${{{{params.x}}}} {text}")),
            }
            if !matrix.is_empty() {
                job["matrix"] = json!(matrix);
            }
            set(&mut job, "workdir", &folder);
            set(&mut job, "description", &about);
            job
        },
    )
}

fn pack() -> impl Strategy<Value = Value> {
    let jobs = (1..8usize).prop_flat_map(|count| (0..count).map(job).collect::<Vec<_>>());
    (jobs, "[a-z0-9][a-z0-9-]{0,20}", "[ -~\n]{0,30}").prop_map(|(jobs, name, text)| {
        let jobs: Map<String, Value> =
            jobs.into_iter().enumerate().map(|(n, job)| (format!("j{n}"), job)).collect();
        json!({
            "name": name,
            "description": text,
            "params": {"x": {"default": text, "description": text}, "y": {"choices": ["a", "b"]}},
            "env": {"A": "${{ params.y }}"},
            "jobs": jobs,
        })
    })
}

/// A pack file again, from the canonical form of its pack.
fn from_canonical(canonical: &str) -> Value {
    fn keyed(list: &Value, key: &str, value: impl Fn(&Value) -> Value) -> Value {
        let entries = list.as_array().unwrap().iter();
        Value::Object(entries.map(|entry| (entry[key].as_str().unwrap().to_owned(), value(entry))).collect())
    }
    fn given(entry: &Value, left_out: &[&str]) -> Value {
        let members = entry.as_object().unwrap().iter();
        let empty = |value: &Value| value.is_null() || *value == json!([]);
        let kept = members.filter(|(key, value)| !left_out.contains(&key.as_str()) && !empty(value));
        Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
    fn optional_fields(list: &Value) -> Value {
        list.as_array().unwrap().iter().map(|entry| given(entry, &[])).collect()
    }
    let pack: Value = serde_json::from_str(canonical).unwrap();
    let jobs = keyed(&pack["jobs"], "name", |job| {
        let mut file = given(job, &["name", "timeout_ms", "resources", "retry", "matrix"]);
        file["env"] = keyed(&job["env"], "name", |entry| entry["value"].clone());
        if job["matrix"] != json!([]) {
            file["matrix"] = keyed(&job["matrix"], "axis", |entry| entry["values"].clone());
        }
        if let Some(millis) = job["timeout_ms"].as_u64() {
            file["timeout"] = json!(format!("{millis}ms"));
        }
        let cpu_millis = job["resources"]["cpu_millis"].as_u64().unwrap();
        file["resources"] = json!({
            "cpus": format!("{}.{:03}", cpu_millis / 1000, cpu_millis % 1000),
            "memory": format!("{}B", job["resources"]["memory_bytes"]),
        });
        file["retry"] = json!({
            "attempts": job["retry"]["attempts"],
            "backoff": format!("{}ms", job["retry"]["backoff_ms"]),
        });
        file["artifacts"] = optional_fields(&job["artifacts"]);
        file["inputs"] = optional_fields(&job["inputs"]);
        file
    });
    let mut file = given(&pack, &["params", "env", "jobs"]);
    file["params"] = keyed(&pack["params"], "name", |param| given(param, &["name"]));
    file["env"] = keyed(&pack["env"], "name", |entry| entry["value"].clone());
    file["jobs"] = jobs;
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_the_checker_panic_and_problems_lie_within_it(text in hostile_text()) {
        for format in FORMATS {
            if let Err(error) = check(format, text.as_bytes()) {
                prop_assert!(!error.problems.is_empty());
                for problem in &error.problems {
                    prop_assert!(problem.line >= 1 && problem.line <= 1 + text.matches('\n').count(), "{problem}");
                    prop_assert!(problem.column >= 1 && problem.column <= 1 + text.chars().count(), "{problem}");
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_the_checker_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in FORMATS {
            let _ = check(format, &bytes);
        }
    }

    #[test]
    fn a_damaged_pack_is_accepted_or_refused_but_never_a_panic(
        file in pack(),
        at in any::<prop::sample::Index>(),
        insert in hostile_text(),
    ) {
        let mut text = file.to_string();
        let position = at.index(text.len());
        text.insert_str(text.floor_char_boundary(position), &insert);
        for format in FORMATS {
            let _ = check(format, text.as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_pack_made_of_its_canonical_form_is_the_same_pack(file in pack()) {
        let text = file.to_string();
        let pack = check(Format::Json, text.as_bytes()).unwrap();
        let as_yaml = check(Format::Yaml, text.as_bytes()).unwrap();
        prop_assert_eq!(&as_yaml, &pack, "JSON is YAML");
        let again = from_canonical(&pack.canonical()).to_string();
        let again = check(Format::Json, again.as_bytes()).unwrap();
        prop_assert_eq!(&again, &pack);
        prop_assert_eq!(again.digest(), pack.digest());
    }

    #[test]
    fn a_plan_is_in_topological_order_with_unique_keys_and_ids(file in pack()) {
        let pack = check(Format::Json, file.to_string().as_bytes()).unwrap();
        let given = BTreeMap::from([("y".to_owned(), "b".to_owned())]);
        let plan = pack.plan(&pack.arguments(&given).unwrap(), &Limits::default(), JobRunId::generate).unwrap();
        prop_assert_eq!(plan.jobs.len(), pack.jobs().count());
        let (mut keys, mut ids) = (HashSet::new(), HashSet::new());
        for (position, job) in plan.jobs.iter().enumerate() {
            prop_assert!(job.needs.iter().all(|need| (need.0 as usize) < position));
            let declared: Vec<_> = file["jobs"][job.name.as_str()]["needs"].as_array().unwrap().clone();
            let needs: Vec<_> =
                job.needs.iter().map(|need| json!(plan.jobs[need.0 as usize].name.as_str())).collect();
            prop_assert_eq!(needs, declared);
            let (_, width) = pack.jobs().find(|(name, _)| **name == job.name).unwrap();
            prop_assert!(job.runs.len() == width && width >= 1);
            for run in &job.runs {
                prop_assert!(keys.insert(run.key.clone()) && ids.insert(run.id));
                prop_assert_eq!(run.key.job(), job.name.as_str());
                prop_assert!(codec::encode(&*run.definition).unwrap().len() <= limit::JOB_DEFINITION_BYTES_MAX);
                let names: HashSet<_> = run.definition.env.iter().map(|(name, _)| name).collect();
                prop_assert_eq!(names.len(), run.definition.env.len());
            }
        }
    }
}
