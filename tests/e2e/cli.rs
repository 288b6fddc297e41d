//! The command line as people meet it: what is archived, the end of a log, Ctrl-C, pipes, terminals, shells.

use std::path::Path;
use std::process::{Output, Stdio};

use packrun_tests::in_time;
use packrun_tests::process::Coordinator;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::programs;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The output of a command that does what it was asked to.
async fn ok(coordinator: &Coordinator, arguments: &[&str]) -> String {
    let output = coordinator.cli(arguments).await;
    assert!(output.status.success(), "packrun {arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What is said by a command that ends with `code`.
async fn fails(coordinator: &Coordinator, code: i32, arguments: &[&str]) -> String {
    let output = coordinator.cli(arguments).await;
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(code), &b""[..]),
        "{arguments:?}: {}",
        text(&output)
    );
    String::from_utf8(output.stderr).unwrap()
}

/// A pack file in a folder of its own.
fn pack_file(source: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pack.yaml");
    std::fs::write(&path, source).unwrap();
    let name = path.to_str().unwrap().to_owned();
    (folder, name)
}

#[tokio::test]
async fn what_is_archived_is_kept_and_not_run_until_it_is_back() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let (_folder, file) = pack_file("name: p\njobs:\n  a: { run: exit 0 }\n");
    ok(&coordinator, &["pack", "register", &file]).await;
    let old = ok(&coordinator, &["run", "p", "--detach"]).await.trim().to_owned();
    coordinator.api().ended(&old).await;

    for _ in 0..2 {
        assert_eq!(ok(&coordinator, &["pack", "archive", "p"]).await, "p, up to version 1, is archived\n");
    }
    coordinator.crash_and_restart().await;
    for refused in [&["run", "p"][..], &["run", "p@1", "--wait"], &["runs", "retry", &old]] {
        let said = fails(&coordinator, 2, refused).await;
        assert!(said.contains("version 1 of pack `p` is archived"), "{refused:?}: {said}");
        assert!(said.contains("packrun pack unarchive p@1"), "the way out: {said}");
    }
    assert!(!ok(&coordinator, &["pack", "list"]).await.contains("p "));
    assert!(ok(&coordinator, &["pack", "list", "--archived"]).await.contains("archived"));
    assert!(ok(&coordinator, &["pack", "show", "p"]).await.contains("State:      archived"));
    assert!(ok(&coordinator, &["runs", "show", &old]).await.contains("p@1"), "runs keep their reference");

    assert!(ok(&coordinator, &["pack", "register", &file]).await.starts_with("p@2 "), "the same content");
    ok(&coordinator, &["run", "p", "--wait"]).await;
    assert!(fails(&coordinator, 2, &["run", "p@1"]).await.contains("archived"));
    ok(&coordinator, &["pack", "unarchive", "p@1"]).await;
    ok(&coordinator, &["run", "p@1", "--wait"]).await;
    assert!(fails(&coordinator, 2, &["pack", "archive", "p@3"]).await.contains("no version 3"));
}

/// A command that goes on, whose lines are read as they come.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(coordinator: &Coordinator, arguments: &[&str]) -> Self {
        let mut child = coordinator.command(arguments).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> Option<String> {
        in_time("a line", self.lines.next_line()).await.unwrap()
    }

    /// The exit code, and what was said on the standard error.
    async fn end(self) -> (Option<i32>, String) {
        let output = in_time("the end of a command", self.child.wait_with_output()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

/// A pack run whose jobs `early` and `late` have said five lines each; `late` says a sixth when its gate is opened.
async fn half_way(coordinator: &Coordinator, gate: &Path) -> String {
    let made = std::process::Command::new("mkfifo").arg(gate).status().unwrap();
    assert!(made.success());
    let say = |name: &str| format!("for n in 1 2 3 4 5; do echo {name}$n; done");
    let source = format!(
        "name: p\njobs:\n  early: {{ run: '{}' }}\n  late: {{ needs: [early], run: '{}; read open < {}; echo late6' }}\n",
        say("early"),
        say("late"),
        gate.display()
    );
    let id = coordinator.api().run(&source).await;
    coordinator.api().stream(&id, None).await.until(|event| event.is_line("late5")).await;
    id
}

#[tokio::test]
async fn the_end_of_a_log_is_shown_and_then_what_comes() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    let id = half_way(&coordinator, &gate).await;

    let logs = async |arguments: &[&str]| {
        let all: Vec<_> = ["logs", &id].into_iter().chain(arguments.iter().copied()).collect();
        ok(&coordinator, &all).await
    };
    assert_eq!(logs(&["--job", "early", "--tail", "2"]).await, "early4\nearly5\n");
    assert_eq!(logs(&["--tail", "6"]).await.lines().next().unwrap(), "early | early5");
    assert_eq!(logs(&["--job", "ear", "--since", "1h"]).await.lines().count(), 5);
    assert_eq!(logs(&["--since", "2999-01-01T00:00:00Z"]).await, "");
    let line = logs(&["--job", "late", "--tail", "1", "--timestamps"]).await;
    let (time, text) = line.trim_end().split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && text == "late5", "{line}");
    let shown: Value = serde_json::from_str(&logs(&["--tail", "1", "--output", "json"]).await).unwrap();
    assert_eq!(shown["text"], "late5");
    assert!(ok(&coordinator, &["runs", "show", &id]).await.contains("running"));

    let mut all = Running::start(&coordinator, &["logs", &id, "--tail", "7", "--follow"]);
    let mut of_late =
        Running::start(&coordinator, &["logs", &id, "--tail", "1", "--follow", "--job", "late"]);
    for expected in ["early | early4", "early | early5", "late  | late1", "late  | late2"] {
        assert_eq!(all.line().await.as_deref(), Some(expected));
    }
    assert_eq!(of_late.line().await.as_deref(), Some("late5"));
    std::fs::write(&gate, "\n").unwrap();
    for expected in ["late  | late3", "late  | late4", "late  | late5", "late  | late6"] {
        assert_eq!(all.line().await.as_deref(), Some(expected));
    }
    assert_eq!((of_late.line().await.as_deref(), of_late.line().await), (Some("late6"), None));
    assert_eq!((all.line().await, all.end().await), (None, (Some(0), String::new())));
    assert_eq!(of_late.end().await.0, Some(0));
    assert_eq!(logs(&["--tail", "0", "--follow"]).await, "", "nothing comes any more");
}

#[tokio::test]
async fn ctrl_c_leaves_the_run_alone_and_says_how_to_go_on() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let (_folder, file) = pack_file("name: p\njobs:\n  a: { run: echo begun; exec sleep 1000 }\n");
    ok(&coordinator, &["pack", "register", &file]).await;
    let mut follower = Running::start(&coordinator, &["run", "p", "--follow"]);
    while follower.line().await.unwrap() != "a | begun" {}
    let pid = follower.child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (code, said) = follower.end().await;
    let id = said.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains(&format!("pack run {id} goes on")), "{said}");
    assert!(said.contains(&format!("packrun runs cancel {id}")), "{said}");

    assert_eq!(coordinator.api().pack_run(&id).await["state"], "running");
    let shown = ok(&coordinator, &["runs", "show", &id, "--job", "a"]).await;
    assert!(shown.contains("running  builder"), "{shown}");
    let mut waiter = Running::start(&coordinator, &["runs", "retry", &id]);
    assert_eq!(waiter.line().await, None);
    let (code, said) = waiter.end().await;
    assert!(code == Some(2) && said.contains("wait until it has ended"), "{said}");
    ok(&coordinator, &["runs", "cancel", &id, "--job", "a"]).await;
    assert_eq!(coordinator.api().ended(&id).await["state"], "failed", "of its only job nothing succeeded");
}

#[tokio::test]
async fn scripts_get_what_they_need_and_nothing_else() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    for (name, job) in [("good", "echo text"), ("bad", "echo text; exit 3")] {
        let (status, _) = api.register(&format!("name: {name}\njobs:\n  a: {{ run: '{job}' }}\n")).await;
        assert!(status.is_success());
    }
    let id = ok(&coordinator, &["run", "good", "--detach", "--idempotency-key", "mine"]).await;
    assert_eq!(ok(&coordinator, &["run", "good", "--idempotency-key", "mine"]).await, id);
    assert_eq!(id.trim().len(), 36, "{id}");
    assert_eq!(ok(&coordinator, &["run", "good", "--wait"]).await, "");
    let said = fails(&coordinator, 1, &["run", "bad", "--wait"]).await;
    assert!(said.contains("failed: see `packrun runs show"), "{said}");
    let ended: Value =
        serde_json::from_str(&ok(&coordinator, &["run", "good", "--wait", "--output", "json"]).await)
            .unwrap();
    assert_eq!(ended["state"], "completed");

    // What is shown as JSON is what the API says.
    let id = id.trim();
    let agent = api.get("/v1/agents/builder").await;
    for (arguments, path) in [
        (&["pack", "list"][..], "/v1/packs".to_owned()),
        (&["pack", "list", "good"], "/v1/packs/good/versions".into()),
        (&["pack", "show", "good@1"], "/v1/packs/good/versions/1".into()),
        (&["runs", "list", "--pack", "bad"], "/v1/pack-runs?pack=bad".into()),
        (&["runs", "show", id], format!("/v1/pack-runs/{id}")),
        (&["artifacts", "list", id], format!("/v1/pack-runs/{id}/artifacts")),
        (&["agents", "list"], "/v1/agents".into()),
        (&["agents", "show", "build"], format!("/v1/agents/{}", agent["id"].as_str().unwrap())),
        (&["tokens", "list"], "/v1/tokens".into()),
        (&["status"], "/v1/status".into()),
    ] {
        let all: Vec<_> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let shown: Value = serde_json::from_str(&ok(&coordinator, &all).await).unwrap();
        assert_eq!(shown, api.get(&path).await, "{arguments:?}");
    }
}

/// A shell that knows the program as `packrun`, and what came of a script in it.
async fn shell(coordinator: &Coordinator, shell: &str, script: &str) -> Output {
    let program = programs().packrun;
    let mut command = coordinator.command(&[]);
    let environment: Vec<_> =
        command.as_std().get_envs().map(|(key, value)| (key.to_owned(), value.unwrap().to_owned())).collect();
    command = Command::new(shell);
    let script = format!("packrun() {{ '{}' \"$@\"; }}\n{script}", program.display());
    command.arg("-c").arg(script).env_clear().envs(environment).stdin(Stdio::null()).kill_on_drop(true);
    in_time(shell, command.output()).await.unwrap()
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_error_and_only_a_terminal_gets_colours() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let id = coordinator.api().run("name: p\njobs:\n  a: { run: seq 1 60000 }\n").await;
    coordinator.api().ended(&id).await;
    for command in [format!("logs {id}"), format!("logs {id} --follow")] {
        let script = format!("{{ packrun {command}; echo $? > \"$HOME/code\"; }} | head -n 1");
        let output = shell(&coordinator, "sh", &script).await;
        assert_eq!(text(&output), "1\n", "{command}");
        let code = std::fs::read_to_string(coordinator.data().join("code")).unwrap();
        assert_eq!(code, "141\n", "{command}");
    }
    let packrun = programs().packrun.display().to_string();
    let terminal = format!("script -qec \"{packrun} runs list\" /dev/null");
    for (script, colours) in
        [("packrun runs list", false), (&*terminal, true), (&*format!("NO_COLOR=1 {terminal}"), false)]
    {
        let output = shell(&coordinator, "sh", script).await;
        let shown = text(&output);
        assert!(shown.contains("completed"), "{script}: {shown}");
        assert_eq!(shown.contains("\u{1b}["), colours, "{script}: {shown:?}");
    }
}

#[tokio::test]
async fn completions_are_scripts_of_their_shells() {
    let coordinator = Coordinator::start(&programs()).await;
    let script = "source <(packrun completions bash) && complete -p packrun";
    let output = shell(&coordinator, "bash", script).await;
    assert!(output.status.success() && text(&output).contains("-F _packrun"), "{}", text(&output));
    let script = "COMP_WORDS=(packrun pack arch) COMP_CWORD=2; source <(packrun completions bash)
        _packrun packrun arch pack; echo \"${COMPREPLY[*]}\"";
    assert_eq!(text(&shell(&coordinator, "bash", script).await), "archive\n");
    for name in ["bash", "zsh", "fish"] {
        let script = ok(&coordinator, &["completions", name]).await;
        assert!(script.contains("unarchive"), "{name}");
        let file = coordinator.data().join(name);
        std::fs::write(&file, script).unwrap();
        match std::process::Command::new(name).arg("-n").arg(&file).status() {
            Ok(status) => assert!(status.success(), "{name}"),
            // Only bash is everywhere.
            Err(error) => assert_ne!(name, "bash", "{error}"),
        }
    }
}
