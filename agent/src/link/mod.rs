//! The link: one connection to a coordinator at a time, and all that goes over it.
//!
//! | file | what it is for |
//! | --- | --- |
//! | [`machine`] | what is said and done, pure |
//! | [`dial`] | getting through: addresses in turn, waits, refusals |
//! | [`enrol`], [`identity`], `membership` | becoming an agent, staying one |
//! | `session` | the loop between the machine, the connection, the journal and the executor's side |
//! | `line` | the connection of the moment, or the way to the next |
//! | `epoch` | the highest epoch seen, kept in the state folder |
//! | `work` | inputs and artifacts, a task for an attempt |
//! | `control`, `log_stream`, `artifact_stream`, `inputs` | a kind of stream each |
//! | `journal` | the reader of the spool |
//! | `transfer` | what uploads and downloads share |
//!
//! Invariants: the executor's side is known by the journal's files and [`ipc`](crate::executor::ipc) alone; network
//! trouble ends nothing, it is tried again for ever; every queue and every number of streams is bounded.

use std::path::PathBuf;

use packrun_protocol::id::Epoch;
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::name::Name;
use packrun_protocol::state::Reason;
use packrun_protocol::time::Clock;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use self::dial::Addresses;
use self::journal::{News, Reader};
use self::machine::{Input, Machine, Profile};
use self::membership::Membership;
use self::session::Link;
use crate::artifacts::cache::{Cache, CacheError};
use crate::config::ConfigError;
use crate::executor::ipc::Port;

mod artifact_stream;
mod control;
pub mod dial;
pub mod enrol;
mod epoch;
pub mod identity;
mod inputs;
mod journal;
mod line;
mod log_stream;
pub mod machine;
mod membership;
mod session;
mod transfer;
mod work;

/// Which stream's bytes go first.
const PRIORITY_CONTROL: i32 = 2;
const PRIORITY_LOG: i32 = 1;
const PRIORITY_ARTIFACT: i32 = 0;

/// Whether the agent goes on. It only ever goes down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It goes on.
    Run,
    /// It takes no new attempts and ends when those it has are done.
    Drain,
    /// It ends its attempts, reports that, and ends within seconds.
    Now,
}

/// What the link needs to know.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// The coordinators, `host:port`, in the order they are tried.
    pub coordinators: Vec<String>,
    /// The agent's state folder.
    pub state: PathBuf,
    /// The folder of the journal.
    pub journal: PathBuf,
    /// What the agent wants to be called.
    pub name: Name,
    /// What it says of itself.
    pub profile: Profile,
    /// To join with, if it hasn't yet or isn't let in any more.
    pub join_token: Option<JoinToken>,
    /// A file with that token, which is asked if there is none.
    pub join_token_file: Option<PathBuf>,
    /// Bytes of inputs that are kept for later.
    pub cache_bytes: u64,
}

/// Why the link ended by itself.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The cache of inputs can't be used.
    #[error("failed to open the cache of inputs")]
    Cache(#[from] CacheError),
    /// The agent could not join.
    #[error("failed to join")]
    Enrol(#[from] enrol::EnrolError),
    /// The agent was away for longer than its certificate is valid.
    #[error("the agent's certificate has expired; join again with a new token from `packrun agents invite`")]
    Expired,
    /// The executor's side is gone.
    #[error("what executes the attempts ended unexpectedly; see the log, and start the agent again")]
    ExecutorGone,
    /// The identity can't be used.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// A coordinator will never let it in.
    #[error("the coordinator at {address} refuses this agent: {why}")]
    NotAllowed {
        /// Where.
        address: String,
        /// Why.
        why: Reason,
    },
    /// It has no identity and no token to get one.
    #[error("the agent has not joined yet; give it a token from `packrun agents invite` with --join-token")]
    NotJoined,
    /// Another process came with the agent's identity.
    #[error(
        "another process came to the coordinator at {address} with this agent's identity, and serves in its place: is \
         the state folder copied? Give each agent a folder of its own, and join with a token of its own"
    )]
    Superseded {
        /// Where.
        address: String,
    },
    /// The host gives no thread.
    #[error("failed to start a thread")]
    Thread(#[source] std::io::Error),
    /// The file with the join token can't be used.
    #[error(transparent)]
    Token(#[from] ConfigError),
}

/// Serves a coordinator until `stop` says otherwise.
///
/// # Errors
/// When the agent may not, or its state folder can't be used. Network trouble is no error.
pub async fn run(
    settings: LinkSettings,
    port: Port,
    clock: Clock,
    mut stop: watch::Receiver<Stop>,
) -> Result<(), LinkError> {
    let cache_folder = settings.state.join("cache");
    let cache_bytes = settings.cache_bytes;
    let opened = tokio::task::spawn_blocking(move || Cache::open(&cache_folder, cache_bytes)).await;
    let cache = opened.map_err(|error| LinkError::Thread(error.into()))??;
    let mut addresses = Addresses::new(settings.coordinators.clone());
    let membership = tokio::select! {
        joined = Membership::begin(&settings, &mut addresses, clock) => joined?,
        () = stopped(&mut stop) => return Ok(()),
    };
    let (reader, mut news) =
        Reader::start(settings.journal.clone(), port.grown.clone()).map_err(LinkError::Thread)?;
    let seen = epoch::read(&settings.state, &membership.member.ca);
    let mut machine = Machine::new(settings.profile.clone(), seen.unwrap_or_default());
    let of_journal = read_all(&mut machine, &mut news, clock).await;
    // The file is written before anything of a new epoch is obeyed. Without it the journal is asked, which may
    // still tell of another coordinator's attempts.
    machine.raise(of_journal.filter(|_| seen.is_none()).unwrap_or_default());
    Link::new(settings.state, machine, clock, membership, addresses, cache, reader, port.orders)
        .run(news, port.requests, stop)
        .await
}

/// Waits for the first word to stop.
async fn stopped(stop: &mut watch::Receiver<Stop>) {
    if stop.wait_for(|stop| *stop > Stop::Run).await.is_err() {
        // Nobody can say so any more.
        std::future::pending::<()>().await;
    }
}

/// Tells the machine all that the journal holds, and gives the highest epoch in it.
async fn read_all(machine: &mut Machine, news: &mut mpsc::Receiver<News>, clock: Clock) -> Option<Epoch> {
    loop {
        match news.recv().await? {
            News::Record(record) => {
                // Nobody listens yet: there is nothing to be done.
                machine.handle(Input::Journal(record), session::moment(clock));
            }
            News::Read(epoch) => return Some(epoch),
        }
    }
}
