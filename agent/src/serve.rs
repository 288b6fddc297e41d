//! A whole agent: its state folder, the keeper with the executor, and the link, until it is told to stop.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use packrun_protocol::bounded::BoundedText;
use packrun_protocol::time::Clock;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use thiserror::Error;
use tokio::sync::watch;

use crate::config::AgentConfig;
use crate::executor::Settings;
use crate::executor::keeper::{self, KeeperError};
use crate::link::enrol::EnrolError;
use crate::link::machine::Profile;
use crate::link::{self, LinkError, LinkSettings, Stop};

/// How long is waited for the executor's side to end, at the end.
const KEEPER_LIMIT: Duration = Duration::from_secs(5);

/// Why an agent ended by itself.
#[derive(Debug, Error)]
pub enum AgentError {
    /// Another agent uses the state folder.
    #[error("another agent uses the state folder {}; stop it, or give this one another --state-dir", path.display())]
    InUse {
        /// Which folder.
        path: PathBuf,
    },
    /// The executor's side can't start.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The link ended.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The state folder can't be used.
    #[error("failed to use the state folder {}: {why}", path.display())]
    State {
        /// Which folder.
        path: PathBuf,
        /// Why; in the text already.
        why: io::Error,
    },
}

impl AgentError {
    /// Whether no coordinator lets this agent in as it is: only a person can help.
    #[must_use]
    pub fn is_not_allowed(&self) -> bool {
        match self {
            Self::Link(error) => match error {
                LinkError::Expired
                | LinkError::NotAllowed { .. }
                | LinkError::NotJoined
                | LinkError::Superseded { .. } => true,
                LinkError::Enrol(error) => {
                    matches!(error, EnrolError::Refused(_) | EnrolError::Stranger(_) | EnrolError::Answer(_))
                }
                _ => false,
            },
            _ => false,
        }
    }
}

/// Runs an agent until `stop` says otherwise, or it may not go on. When the future is dropped, its attempts end.
///
/// # Errors
/// When the agent may not serve any coordinator, or its state folder can't be used. Network trouble is none.
pub async fn run(config: AgentConfig, stop: watch::Receiver<Stop>) -> Result<(), AgentError> {
    let clock = Clock::start();
    let (state, lock) = claim(&config.state_dir)?;
    let journal = state.join("journal");
    let settings =
        Settings { workspaces: state.join("workspaces"), host: config.environment, isolation: None };
    let folder = journal.clone();
    let (keeper, port) =
        tokio::task::spawn_blocking(move || keeper::start(&folder, config.journal, settings, clock))
            .await
            .map_err(|error| KeeperError::Thread(error.into()))??;
    tracing::info!(
        state = %state.display(), name = %config.name, isolation = ?keeper.isolation, "the agent starts"
    );
    let version = BoundedText::try_from(env!("CARGO_PKG_VERSION"));
    let settings = LinkSettings {
        coordinators: config.coordinators,
        state: state.clone(),
        journal,
        name: config.name,
        profile: Profile {
            version: version
                .or_else(|_| BoundedText::try_from(""))
                .map_err(|error| AgentError::State { path: state.clone(), why: io::Error::other(error) })?,
            labels: config.labels,
            capacity: config.capacity,
            isolation: keeper.isolation,
        },
        join_token: config.join_token,
        join_token_file: config.join_token_file,
        cache_bytes: config.cache_bytes,
    };
    let ended = link::run(settings, port, clock, stop).await;
    let joined = tokio::task::spawn_blocking(move || keeper.thread.join().is_ok());
    let kept = match tokio::time::timeout(KEEPER_LIMIT, joined).await {
        Ok(Ok(true)) => Ok(()),
        Ok(_) => Err(LinkError::ExecutorGone),
        Err(_) => {
            tracing::warn!("processes that even SIGKILL doesn't end are left behind");
            Ok(())
        }
    };
    drop(lock);
    Ok(ended.and(kept)?)
}

/// The state folder is this agent's.
struct Claim(File);

impl Drop for Claim {
    /// Closing the file is not enough while another thread has a child that is about to execute its program.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Makes the state folder if it isn't there, and takes it for this agent alone.
fn claim(path: &Path) -> Result<(PathBuf, Claim), AgentError> {
    let refused = |why| AgentError::State { path: path.to_owned(), why };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(refused)?;
    let path = path.canonicalize().map_err(refused)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(path.join("lock")).map_err(refused)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((path, Claim(lock))),
        Err(Errno::WOULDBLOCK) => Err(AgentError::InUse { path }),
        Err(error) => Err(refused(error.into())),
    }
}
