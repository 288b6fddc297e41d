//! A coordinator's API on a port of 127.0.0.1, its data in a folder that goes with it, and agents that do as they are
//! told.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use packrun_protocol::control::Assignment;
use packrun_protocol::id::{AgentId, AttemptId, Digest};
use packrun_protocol::name::{JobKey, Labels, Name};
use packrun_protocol::state::Verdict;
use packrun_protocol::time::Clock;
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::token::ApiToken;
use crate::api::types::{PackRun, Problem};
use crate::api::{App, serve};
use crate::artifacts::ArtifactStore;
use crate::core::change::{Grant, Role};
use crate::core::event::{Arrival, Capacity, Command, LogIndex, Report};
use crate::core::tests::make::{enrolment, outcome};
use crate::core::{Config, Core};
use crate::engine::{self, Messages, Session, ToSession};
use crate::logs::{LogConfig, LogStore};
use crate::store::Store;

/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The roles, and nobody.
pub(crate) const BEARERS: [Option<Role>; 4] =
    [None, Some(Role::Viewer), Some(Role::Operator), Some(Role::Admin)];

/// A coordinator that answers.
pub(crate) struct Site {
    /// What its requests use.
    pub(crate) app: App,
    /// Where it listens.
    pub(crate) url: String,
    pub(crate) client: Client,
    tokens: Vec<(Role, String)>,
    served: JoinHandle<std::io::Result<()>>,
    _folder: TempDir,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An agent, connected.
pub(crate) struct TestAgent {
    pub(crate) id: AgentId,
    session: Session,
    messages: Messages,
    /// What it was told and nobody has looked at.
    unheard: VecDeque<ToSession>,
}

pub(crate) fn client() -> Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    Client::builder().tls_backend_preconfigured(tls).timeout(PATIENCE).no_proxy().build().unwrap()
}

impl Site {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.redb")).unwrap();
        let acquired = store.acquire().await.unwrap();
        let clock = Clock::start();
        let core = Core::new(Config::default(), acquired.0.epoch(), clock.now());
        let (logs, _) = LogStore::open(&folder.path().join("logs"), LogConfig::default(), &|_| true).unwrap();
        let app = App {
            engine: engine::start(core, store, acquired, clock),
            logs,
            artifacts: ArtifactStore::open(&folder.path().join("artifacts"), u64::MAX).unwrap(),
            clock,
            started_at: clock.now(),
            limits: crate::api::Limits::default(),
            ca_fingerprint: Digest::of(b"ca"),
            stop: CancellationToken::new(),
        };
        let mut tokens = Vec::new();
        for role in Role::ALL {
            let token = ApiToken::generate().unwrap();
            let (id, secret) = (token.id(), token.digest());
            let command = Command::CreateToken { id, secret, grant: Grant::Api(role), ttl: None };
            app.engine.command(command).await.unwrap();
            tokens.push((role, token.to_string()));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(serve(listener, None, app.clone()));
        Self { app, url, client: client(), tokens, served, _folder: folder }
    }

    pub(crate) fn token(&self, role: Role) -> &str {
        &self.tokens.iter().find(|(has, _)| *has == role).unwrap().1
    }

    /// A request of whoever has this role, or of nobody.
    pub(crate) fn request(&self, role: Option<Role>, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match role {
            Some(role) => request.bearer_auth(self.token(role)),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Some(Role::Viewer), Method::GET, path)).await
    }

    /// Posts as an administrator.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Some(Role::Admin), Method::POST, path).json(body)).await
    }

    pub(crate) async fn register(&self, yaml: &str) -> Answer {
        let request = self.request(Some(Role::Operator), Method::POST, "/v1/packs");
        send(request.header("content-type", "application/yaml").body(yaml.to_owned())).await
    }

    /// Registers a pack and starts a run of it.
    pub(crate) async fn run(&self, yaml: &str) -> PackRun {
        let name = self.register(yaml).await.json::<Value>()["name"].clone();
        let answer = self.post("/v1/pack-runs", &serde_json::json!({ "pack": name })).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()
    }

    /// An agent that takes so many attempts at once.
    pub(crate) async fn agent(&self, name: &str, slots: u32) -> TestAgent {
        let id = AgentId::generate();
        for command in enrolment(id, name.parse::<Name>().unwrap()) {
            self.app.engine.command(command).await.unwrap();
        }
        let labels = Labels::new([("os".to_owned(), "linux".to_owned())]).unwrap();
        let capacity =
            Capacity { labels, slots, cpu_millis: 64_000, memory_bytes: 1 << 36, ..Capacity::default() };
        let arrival = Arrival { capacity, draining: false, held: Vec::new() };
        let (session, mut messages) = self.app.engine.connect(id, arrival).await.unwrap();
        assert!(matches!(messages.recv().await, Some(ToSession::Welcome { .. })));
        TestAgent { id, session, messages, unheard: VecDeque::new() }
    }

    /// Stops the coordinator; returns when the server has.
    pub(crate) async fn stop(self) {
        self.app.stop.cancel();
        tokio::time::timeout(PATIENCE, self.served).await.unwrap().unwrap().unwrap();
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.unwrap() }
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: impl Into<HeaderName>) -> &str {
        self.headers.get(name.into()).map_or("", |value| value.to_str().unwrap())
    }

    /// The last part of the problem's type; checked to be a problem that says its own status.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header(reqwest::header::CONTENT_TYPE), "application/problem+json", "{self:?}");
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status.as_u16());
        assert!(!problem.detail.is_empty() && !problem.title.is_empty());
        problem.kind.strip_prefix("urn:packrun:problem:").unwrap().to_owned()
    }
}

impl TestAgent {
    /// What the agent is told next.
    pub(crate) async fn told(&mut self) -> ToSession {
        match self.unheard.pop_front() {
            Some(message) => message,
            None => self.next().await,
        }
    }

    async fn next(&mut self) -> ToSession {
        tokio::time::timeout(PATIENCE, self.messages.recv()).await.unwrap().unwrap()
    }

    /// The next attempts it is assigned, started.
    pub(crate) async fn start_next(&mut self) -> Vec<(AttemptId, JobKey)> {
        let ToSession::Dispatch(assignments) = self.told().await else { panic!("no dispatch") };
        let mut started = Vec::new();
        for Assignment { attempt, key, .. } in assignments {
            self.session.record_start(attempt).await.unwrap();
            started.push((attempt, key));
        }
        started
    }

    /// Ends an attempt; returns when that is recorded.
    pub(crate) async fn end(&mut self, attempt: AttemptId, verdict: Verdict) {
        let report = Report::Ended { attempt, outcome: outcome(verdict, 0), log: LogIndex::default() };
        self.session.report(report).await.unwrap();
        loop {
            match self.next().await {
                ToSession::Settled(settled) if settled == attempt => return,
                other => self.unheard.push_back(other),
            }
        }
    }
}
