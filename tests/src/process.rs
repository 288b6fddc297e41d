//! The coordinator and agents as processes, on folders and ports of their own.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::api::Api;
use crate::{Programs, in_time};

/// A process whose log is read line by line.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: watch::Receiver<String>,
}

impl Process {
    fn spawn(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        // Nothing of the surroundings may configure what is tested.
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("PACKRUN") {
                command.env_remove(key);
            }
        }
        let mut child = command.spawn().unwrap();
        let log = collect(child.stderr.take().unwrap());
        Self { child, name: name.to_owned(), log }
    }

    /// Waits until the process has logged `text`.
    pub async fn logged(&self, text: &str) {
        let mut log = self.log.clone();
        let what = format!("`{text}` in the log of {}", self.name);
        let found = in_time(&what, log.wait_for(|log| log.contains(text))).await.is_ok();
        assert!(found, "{what}: it ended without; its log:\n{}", *self.log.borrow());
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGTERM, and waits for the end; its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        assert!(sent.success());
        self.ended().await
    }

    /// Waits for the end, and until all that it logged was read; its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let what = format!("the end of {}", self.name);
        let code = in_time(&what, self.child.wait()).await.unwrap().code();
        in_time(&what, async { while self.log.changed().await.is_ok() {} }).await;
        code
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }
}

fn collect(from: impl AsyncRead + Unpin + Send + 'static) -> watch::Receiver<String> {
    let (log, seen) = watch::channel(String::new());
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            log.send_modify(|log| {
                log.push_str(&line);
                log.push('\n');
            });
        }
    });
    seen
}

/// A coordinator on a data folder that outlives its process.
#[derive(Debug)]
pub struct Coordinator {
    programs: Programs,
    arguments: Vec<String>,
    data: TempDir,
    process: Process,
    ready: Value,
}

impl Coordinator {
    /// Starts one on a new folder and waits until it takes work.
    pub async fn start(programs: &Programs) -> Self {
        Self::start_with(programs, &[]).await
    }

    /// The same with these arguments, also when it is started again.
    pub async fn start_with(programs: &Programs, arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let listen = ["127.0.0.1:0", "127.0.0.1:0"];
        let (process, ready) = Self::spawn(programs, data.path(), &listen, &arguments).await;
        Self { programs: programs.clone(), arguments, data, process, ready }
    }

    async fn spawn(
        programs: &Programs,
        data: &Path,
        listen: &[&str; 2],
        arguments: &[String],
    ) -> (Process, Value) {
        let file = data.join("ready.json");
        // What an earlier process has left says nothing about this one.
        let _ = std::fs::remove_file(&file);
        let mut command = Command::new(&programs.packrun);
        command.arg("serve").arg("--data-dir").arg(data);
        command.args(["--listen-agents", listen[0], "--listen-api", listen[1]]).args(arguments);
        let process = Process::spawn("the coordinator", &mut command);
        process.logged("ready").await;
        let ready = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        (process, ready)
    }

    /// SIGKILL, then a start on the same folder and ports.
    pub async fn crash_and_restart(&mut self) {
        self.process.kill().await;
        self.start_again().await;
    }

    /// SIGTERM, then a start on the same folder and ports.
    pub async fn restart(&mut self) {
        assert_eq!(self.process.terminate().await, Some(0), "the coordinator's log:\n{}", self.process.log());
        self.start_again().await;
    }

    async fn start_again(&mut self) {
        let api = self.url().trim_start_matches("http://").to_owned();
        let listen = [self.agents_address(), api];
        let listen = [listen[0].as_str(), listen[1].as_str()];
        let (programs, data) = (&self.programs, self.data.path());
        (self.process, self.ready) = Self::spawn(programs, data, &listen, &self.arguments).await;
    }

    /// The URL of its API.
    #[must_use]
    pub fn url(&self) -> String {
        self.ready["api"].as_str().unwrap().to_owned()
    }

    /// Where agents find it.
    #[must_use]
    pub fn agents_address(&self) -> String {
        self.ready["agents"].as_str().unwrap().to_owned()
    }

    /// The file with the administrator's token.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        PathBuf::from(self.ready["admin_token_file"].as_str().unwrap())
    }

    /// Its data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Its process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A client of its API with the administrator's token.
    #[must_use]
    pub fn api(&self) -> Api {
        let token = std::fs::read_to_string(self.token_file()).unwrap();
        Api::new(&self.url(), token.trim())
    }

    /// Runs the CLI against it.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.programs.packrun);
        command.args(arguments).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.data.path()).env("PACKRUN_SERVER", self.url());
        command.arg("--token-file").arg(self.token_file());
        in_time(&format!("packrun {arguments:?}"), command.output()).await.unwrap()
    }

    /// A join token for one agent.
    pub async fn invite(&self) -> String {
        let made = self.api().post("/v1/join-tokens", &serde_json::json!({})).await;
        made["token"].as_str().unwrap().to_owned()
    }

    /// Starts an agent that joins with a new token, and waits until it is connected.
    pub async fn agent(&self, name: &str, arguments: &[&str]) -> Agent {
        let state = tempfile::tempdir().unwrap();
        let token_file = state.path().join("join-token");
        std::fs::write(&token_file, self.invite().await).unwrap();
        let mut all = vec!["--name", name, "--join-token-file", token_file.to_str().unwrap()];
        all.extend(arguments);
        let address = self.agents_address();
        let process = Agent::spawn(&self.programs, state.path(), &address, &all);
        let agent = Agent { programs: self.programs.clone(), state, process };
        agent.process.logged("connected").await;
        agent
    }
}

/// An agent on a state folder that outlives its process.
#[derive(Debug)]
pub struct Agent {
    programs: Programs,
    state: TempDir,
    process: Process,
}

impl Agent {
    fn spawn(programs: &Programs, state: &Path, coordinator: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(&programs.agent);
        command.arg("run").args(["--coordinator", coordinator]).arg("--state-dir").arg(state);
        Process::spawn("an agent", command.args(arguments))
    }

    /// Starts an agent whose end is to be looked at, on a folder of its own.
    #[must_use]
    pub fn run(programs: &Programs, coordinator: &str, arguments: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let process = Self::spawn(programs, state.path(), coordinator, arguments);
        Self { programs: programs.clone(), state, process }
    }

    /// Starts the agent again on its folder, with these arguments, once its process has ended.
    pub fn start_again(&mut self, coordinator: &Coordinator, arguments: &[&str]) {
        let address = coordinator.agents_address();
        self.process = Self::spawn(&self.programs, self.state.path(), &address, arguments);
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        self.state.path()
    }
}
