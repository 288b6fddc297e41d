//! Packs to plans.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use packrun_protocol::id::JobRunId;
use packrun_protocol::job::Action;

use super::super::{Limits, Pack};
use super::pack;
use crate::core::plan::{Plan, When};

fn given(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn plan(pack: &Pack, values: &[(&str, &str)]) -> Result<Plan, String> {
    let arguments = pack.arguments(&given(values)).map_err(|error| error.to_string())?;
    let mut next: u128 = 0;
    let next_id = || {
        next += 1;
        JobRunId::from_bytes(next.to_be_bytes())
    };
    pack.plan(&arguments, &Limits::default(), next_id).map_err(|error| error.to_string())
}

#[test]
fn a_plan_has_rendered_jobs_behind_all_they_need() {
    let pack = pack(
        "name: p
params: {mode: {choices: [fast, slow]}, dry-run: {default: 'no'}}
env: {A: pack, B: 'pack ${{ params.mode }}'}
jobs:
  last: {run: report, needs: [test], when: always, allow_failure: true, retry: {attempts: 3}}
  test:
    run: 'test ${{ matrix.os }} ${{ matrix.shard }} ${{ params.mode }}'
    needs: [build]
    matrix: {shard: [1, 2], os: [linux, darwin]}
    env: {A: 'job ${{ matrix.shard }}'}
    labels: {os: '${{ matrix.os }}'}
    resources: {cpus: 1.5, memory: 1KiB}
    timeout: 1m
    workdir: 'w/${{ matrix.os }}'
    inputs: [{from: build, artifact: '${{ matrix.os }}/app', to: app}]
    artifacts: [{path: 'out/*.xml', name: 'out-${{ matrix.shard }}'}]
  build: {command: [make, '${{ params.mode }}']}",
    );
    let plan = plan(&pack, &[("mode", "fast")]).unwrap();
    let names: Vec<_> = plan.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["build", "test", "last"]);
    let [build, test, last] = plan.jobs.as_slice() else { panic!() };
    assert_eq!((test.needs[0].0, last.needs[0].0, last.when), (0, 1, When::Always));
    assert!(last.allow_failure && last.retry.attempts == 3);
    assert_eq!(build.runs[0].definition.action, Action::Command(vec!["make".to_owned(), "fast".to_owned()]));
    let keys: Vec<_> = test.runs.iter().map(|run| run.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "test[shard=1,os=linux]",
            "test[shard=1,os=darwin]",
            "test[shard=2,os=linux]",
            "test[shard=2,os=darwin]"
        ]
    );
    let run = &test.runs[3];
    assert_eq!(run.requirement.labels.get("os"), Some("darwin"));
    assert_eq!((run.requirement.cpu_millis, run.requirement.memory_bytes), (1500, 1024));
    let definition = &run.definition;
    assert_eq!(definition.action, Action::Script("test darwin 2 fast".to_owned()));
    assert_eq!(definition.timeout, Some(Duration::from_secs(60)));
    assert_eq!(definition.workdir.as_ref().unwrap().as_str(), "w/darwin");
    assert_eq!(definition.inputs[0].artifact, "darwin/app");
    assert_eq!(definition.artifacts[0].name.as_ref().unwrap().as_str(), "out-2");
    let env: Vec<_> = definition.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        env,
        [
            "B=pack fast",
            "A=job 2",
            "PACKRUN_PARAM_MODE=fast",
            "PACKRUN_PARAM_DRY_RUN=no",
            "PACKRUN_MATRIX_SHARD=2",
            "PACKRUN_MATRIX_OS=darwin",
            "PACKRUN_SHARD_INDEX=4",
            "PACKRUN_SHARD_TOTAL=4"
        ]
    );
}

#[test]
fn values_that_do_not_fit_the_parameters_are_all_refused() {
    let pack = pack(
        "name: p\nparams: {mode: {choices: [fast, slow]}, who: {}, x: {default: y}}\njobs: {a: {run: x}}",
    );
    assert_eq!(
        plan(&pack, &[("mode", "fats"), ("wo", "me"), ("x", "a\0b")]).unwrap_err(),
        "invalid parameters: parameter `mode` is `fats`, but has to be one of `fast`, `slow`; \
         parameter `who` is required; parameter `x` may not contain NUL; \
         unknown parameter `wo`; did you mean `who`?"
    );
    let long = "x".repeat(64 * 1024 + 1);
    assert_eq!(
        plan(&pack, &[("mode", "fast"), ("who", &long)]).unwrap_err(),
        "invalid parameters: parameter `who` takes at most 65536 bytes"
    );
    let arguments = pack.arguments(&given(&[("mode", "fast"), ("who", "")])).unwrap();
    let values: Vec<_> = arguments.iter().map(|(name, value)| (name.as_str(), value)).collect();
    assert_eq!(values, [("mode", "fast"), ("who", ""), ("x", "y")]);
}

#[test]
fn a_rendered_text_keeps_the_rules_of_its_place() {
    let fields = [
        ("workdir: '${{ params.x }}'", "../..", "`workdir`"),
        ("workdir: '${{ params.x }}'", "", "`workdir`"),
        ("artifacts: ['${{ params.x }}']", "/etc/passwd", "`artifacts`"),
        ("artifacts: ['a${{ params.x }}']", "[", "`artifacts`"),
        ("artifacts: ['${{ params.x }}']", ".packrun/x", "`artifacts`"),
        ("artifacts: [{path: a, name: '${{ params.x }}'}]", "A", "`artifacts`"),
        ("inputs: [{from: b, artifact: a, to: 'a/${{ params.x }}/b'}]", "..", "`inputs`"),
        ("inputs: [{from: b, artifact: a, to: '${{ params.x }}/b'}]", ".packrun", "`inputs`"),
        ("inputs: [{from: b, artifact: '${{ params.x }}'}]", "*.xml", "`inputs`"),
        ("labels: {os: '${{ params.x }}'}", "a\nb", "`labels`"),
    ];
    for (line, value, field) in fields {
        let text = format!(
            "name: p\nparams: {{x: {{}}}}\njobs:\n  b: {{run: x, artifacts: ['*.xml']}}\n  a:\n    run: x\n    needs: [b]\n    {line}\n"
        );
        let error = plan(&pack(&text), &[("x", value)]).unwrap_err();
        assert!(error.starts_with(&format!("{field} of `a`, rendered: ")), "{line}: {error}");
    }
    let twice = "artifacts: [{path: a, name: '${{ params.x }}'}, {path: b, name: n}]";
    let text = format!("name: p\nparams: {{x: {{}}}}\njobs: {{a: {{run: x, {twice}}}}}");
    assert_eq!(
        plan(&pack(&text), &[("x", "n")]).unwrap_err(),
        "`artifacts` of `a`, rendered: duplicate artifact name `n`"
    );
    let script = pack("name: p\nparams: {x: {}}\njobs: {a: {run: ' ${{ params.x }}'}}");
    assert_eq!(
        plan(&script, &[("x", "\n")]).unwrap_err(),
        "`run` of `a`, rendered: a script may not be empty"
    );
    let command = pack("name: p\nparams: {x: {}}\njobs: {a: {command: ['${{ params.x }}']}}");
    assert_eq!(
        plan(&command, &[("x", "")]).unwrap_err(),
        "`command` of `a`, rendered: a command has to start with a program"
    );
}

#[test]
fn rendered_sizes_are_bounded_before_they_are_reached() {
    let many = "${{ params.x }}".repeat(30_000);
    let large = "v".repeat(60_000);
    let one = pack(&format!("name: p\nparams: {{x: {{}}}}\njobs: {{a: {{run: '{many}'}}}}"));
    assert!(plan(&one, &[("x", &large)]).unwrap_err().contains("exceeds 524288 bytes"));
    let shards = (0..10_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let wide =
        pack(&format!("name: p\nparams: {{x: {{}}}}\njobs: {{a: {{run: x, matrix: {{n: [{shards}]}}}}}}"));
    assert!(plan(&wide, &[("x", &large)]).unwrap_err().contains("exceeds 67108864 bytes"));
    assert!(plan(&wide, &[("x", "small")]).is_ok());
}

#[test]
fn ten_thousand_jobs_are_no_matter() {
    let mut text = "name: p\njobs:\n".to_owned();
    for n in (0..10_000).rev() {
        let needs = if n == 0 { String::new() } else { format!("j{}", n - 1) };
        write!(text, "  j{n}:\n    run: 'echo {n}'\n    needs: [{needs}]\n    labels: {{os: linux}}\n")
            .unwrap();
    }
    let plan = plan(&pack(&text), &[]).unwrap();
    assert_eq!(plan.jobs.len(), 10_000);
    assert_eq!(plan.jobs[9_999].name.as_str(), "j9999");
    let shards = (0..10_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let wide =
        pack(&format!("name: p\njobs: {{a: {{run: 'x ${{{{ matrix.n }}}}', matrix: {{n: [{shards}]}}}}}}"));
    let plan = self::plan(&wide, &[]).unwrap();
    let keys: HashSet<_> = plan.jobs[0].runs.iter().map(|run| run.key.clone()).collect();
    assert_eq!(keys.len(), 10_000);
}

#[test]
fn a_log_has_the_jobs_limit_or_the_coordinators_whichever_is_lower() {
    let limits = Limits { log_bytes: 1 << 20, ..Limits::default() };
    let pack =
        pack("name: p\njobs: {a: {run: x}, b: {run: x, log_limit: 2KiB}, c: {run: x, log_limit: 1GiB}}");
    let plan = pack.plan(&pack.arguments(&BTreeMap::new()).unwrap(), &limits, JobRunId::generate).unwrap();
    let bytes: Vec<_> = plan.job_runs().map(|run| run.definition.log_bytes_max).collect();
    assert_eq!(bytes, [1 << 20, 2 << 10, 1 << 20]);
    assert!(pack.canonical().contains(r#""log_limit_bytes":2048"#), "{}", pack.canonical());
}
