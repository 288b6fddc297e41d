//! The program itself: where settings come from, and what its exit code says.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use packrun_protocol::id::{Digest, TokenId};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::stream::JoinSecret;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The program with no setting but its state folder.
fn agent(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packrun-agent"));
    command.env_clear().env("PACKRUN_STATE_DIR", folder.path().join("state"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn token() -> String {
    let token =
        JoinToken { ca: Digest::of(b"ca"), id: TokenId::from_bytes([1; 16]), secret: JoinSecret([2; 32]) };
    token.to_string()
}

/// An address where nobody answers.
fn nobody() -> (std::net::UdpSocket, String) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

/// Runs to the end: exit code and what was said.
fn end(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The first line on stderr with these words.
fn line(child: &mut Child, words: &str) -> String {
    let stderr = child.stderr.as_mut().unwrap();
    let mut lines = BufReader::new(stderr).lines();
    lines.find_map(|line| line.ok().filter(|line| line.contains(words))).unwrap()
}

#[test]
fn settings_that_make_no_agent_end_with_2_and_say_which() {
    let folder = tempfile::tempdir().unwrap();
    for (words, code, said) in [
        (vec!["run"], 2, "--coordinator HOST:PORT"),
        (vec![], 2, "Usage"),
        (vec!["run", "--no-such-flag"], 2, "--no-such-flag"),
        (vec!["run", "--coordinator", "host"], 2, "HOST:PORT"),
        (vec!["run", "--coordinator", "h:1", "--label", "gpu"], 2, "--label: `gpu` is not KEY=VALUE"),
        (vec!["run", "--coordinator", "h:1", "--log", "inof"], 2, "`inof` is no level"),
        (vec!["run", "--coordinator", "h:1", "--join-token", "x"], 2, "packrun agents invite"),
        (vec!["--config", "/no/such/file", "run"], 2, "/no/such/file"),
        (vec!["run", "--coordinator", "127.0.0.1:1"], 4, "has not joined yet"),
    ] {
        let (status, stderr) = end(agent(&folder).args(&words));
        assert_eq!(status, Some(code), "{words:?}: {stderr}");
        assert!(stderr.contains(said), "{words:?}: {stderr}");
    }
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, "slotz = 3\n").unwrap();
    let (status, stderr) = end(agent(&folder).arg("--config").arg(&file).arg("run"));
    assert!(status == Some(2) && stderr.contains("slotz") && stderr.contains("line 1"), "{stderr}");
    // As valid as any, and larger than one is.
    std::fs::write(&file, "#".repeat((1 << 20) + 1)).unwrap();
    let (status, stderr) = end(agent(&folder).arg("--config").arg(&file).arg("run"));
    assert!(status == Some(2) && stderr.contains("more than 1048576 bytes"), "{stderr}");
}

#[test]
fn a_variable_that_says_nothing_sensible_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (variable, value) in [
        ("PACKRUN_LOG", "inof"),
        ("PACKRUN_SLOTS", "two"),
        ("PACKRUN_LABEL", "gpu"),
        ("PACKRUN_CACHE_BYTES", "-1"),
        ("PACKRUN_CONFIG", "/no/such/file"),
    ] {
        let (status, stderr) =
            end(agent(&folder).args(["run", "--coordinator", "127.0.0.1:1"]).env(variable, value));
        let said = if variable == "PACKRUN_CONFIG" { value } else { variable };
        assert!(status == Some(2) && stderr.contains(said), "{variable}: {status:?} {stderr}");
    }
    let garbage = std::os::unix::ffi::OsStrExt::from_bytes(b"a=\xff");
    let garbage: &std::ffi::OsStr = garbage;
    let (status, stderr) =
        end(agent(&folder).args(["run", "--coordinator", "h:1"]).env("PACKRUN_LABEL", garbage));
    assert!(status == Some(2) && stderr.contains("PACKRUN_LABEL: it is not UTF-8"), "{stderr}");
}

#[test]
fn a_file_of_the_coordinator_is_refused_with_its_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("coordinator.toml");
    std::fs::write(&file, "# of the coordinator\nlisten_api = '127.0.0.1:7080'\n").unwrap();
    let (status, stderr) = end(agent(&folder).arg("run").env("PACKRUN_CONFIG", &file));
    assert_eq!(status, Some(2), "{stderr}");
    for said in ["coordinator.toml", "line 2", "unknown field `listen_api`", "`state_dir`"] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
}

#[test]
fn a_state_folder_that_cannot_be_used_ends_with_2_and_says_why_once() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = ["run", "--coordinator", "127.0.0.1:1"];
    for (path, file) in [("state", "state"), ("state/journal", "state"), ("state/workspaces", "workspaces")] {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        let (status, stderr) = end(agent(&folder).args(coordinator));
        let said = stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
        assert!(status == Some(2) && said.contains(file), "{status:?} {stderr}");
        assert_eq!(said.matches("os error").count(), 1, "{said}");
        std::fs::remove_file(path).unwrap();
    }
    let (_, stderr) = end(agent(&folder).args(["--config", "/no/such/file", "run"]));
    assert_eq!(stderr.matches("os error").count(), 1, "{stderr}");
}

#[test]
fn a_flag_goes_before_a_variable_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (_socket, address) = nobody();
    let file = folder.path().join("agent.toml");
    let text = format!("coordinator = '{address}'\nname = 'of-file'\njoin_token = '{}'\n", token());
    std::fs::write(&file, text).unwrap();
    for (variable, flag, name) in [
        (None, None, "of-file"),
        (Some("of-variable"), None, "of-variable"),
        (Some("of-variable"), Some("of-flag"), "of-flag"),
    ] {
        let mut command = agent(&folder);
        command.arg("--config").arg(&file).arg("run");
        command.envs(variable.map(|name| ("PACKRUN_NAME", name)));
        command.args(flag.map(|name| format!("--name={name}")));
        let mut child = command.spawn().unwrap();
        let said = line(&mut child, "the agent starts");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(said.contains(&format!("name={name}")), "{said}");
    }
}

#[test]
fn a_token_by_a_flag_goes_before_a_variable_with_a_file_and_an_empty_variable_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (_socket, address) = nobody();
    let mut command = agent(&folder);
    command.args(["run", "--coordinator", &address, "--join-token", &token()]);
    command.env("PACKRUN_JOIN_TOKEN_FILE", "/no/such/file").env("PACKRUN_SLOTS", "").env("PACKRUN_NAME", "");
    command.env("PACKRUN_CONFIG", "");
    let mut child = command.spawn().unwrap();
    line(&mut child, "the agent starts");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut command = agent(&folder);
    command.args(["run", "--coordinator", &address, "--join-token-file", "/no/such/file"]);
    let (status, stderr) = end(command.env("PACKRUN_JOIN_TOKEN", token()));
    assert!(status == Some(2) && stderr.contains("/no/such/file"), "{status:?} {stderr}");
}

#[test]
fn a_signal_ends_it_with_0_also_while_nobody_answers() {
    let (_socket, address) = nobody();
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, format!("{}\n", token())).unwrap();
        let mut command = agent(&folder);
        command.args(["run", "--coordinator", &address, "--join-token-file"]).arg(token_file);
        let mut child = command.spawn().unwrap();
        line(&mut child, "the agent starts");
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn help_teaches_by_example() {
    let folder = tempfile::tempdir().unwrap();
    let output = agent(&folder).args(["run", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout);
    for words in ["Examples:", "--join-token-file token.txt", "PACKRUN_SLOTS", "Exit codes"] {
        assert!(help.contains(words), "{words}: {help}");
    }
}
