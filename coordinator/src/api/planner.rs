//! From a pack file, or a pack version and its parameters, to a plan, and from the store back to that: the work that
//! costs processor time and memory.
//! It is done on blocking threads, of which only a few work at a time; what was checked is remembered, within bounds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use packrun_protocol::id::{Digest, JobRunId};
use packrun_protocol::name::Name;
use tokio::sync::Semaphore;

use super::App;
use super::problem::{ApiError, ProblemKind};
use crate::core::plan::Plan;
use crate::engine::{Reader, StoreError};
use crate::pack::{self, Format, Pack};

/// Packs that are checked, and plans that are made, at a time. One of them may take some hundred MiB.
const WORKERS_MAX: usize = 4;

/// Plans that are read from the store at a time. One of them may take a hundred MiB.
const READERS_MAX: usize = 8;

/// Checked packs remembered.
const REMEMBERED_MAX: usize = 64;

/// Bytes of their files, all together. A checked pack is a small multiple of its file.
const REMEMBERED_BYTES_MAX: usize = 8 << 20;

/// A pack file that was checked.
#[derive(Debug)]
pub(super) struct Checked {
    /// The pack's name.
    pub(super) name: Name,
    /// Its canonical form.
    pub(super) canonical: String,
    /// The sha256 of that.
    pub(super) digest: Digest,
}

/// A pack version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) name: Name,
    pub(super) number: u32,
}

/// The packs checked last, the latest first.
#[derive(Debug, Default)]
struct Remembered(VecDeque<(Version, Arc<Pack>, usize)>);

impl Remembered {
    fn find(&mut self, version: &Version) -> Option<Arc<Pack>> {
        let at = self.0.iter().position(|(known, ..)| known == version)?;
        let found = self.0.remove(at)?;
        let pack = Arc::clone(&found.1);
        self.0.push_front(found);
        Some(pack)
    }

    fn keep(&mut self, version: Version, pack: Arc<Pack>, bytes: usize) {
        self.0.retain(|(known, ..)| *known != version);
        self.0.push_front((version, pack, bytes));
        while self.0.len() > REMEMBERED_MAX || self.bytes() > REMEMBERED_BYTES_MAX {
            self.0.pop_back();
        }
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(.., bytes)| bytes).sum()
    }
}

/// Makes plans. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Planner {
    workers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    remembered: Arc<Mutex<Remembered>>,
    limits: pack::Limits,
}

impl Planner {
    pub(super) fn new(limits: pack::Limits) -> Self {
        Self {
            workers: Arc::new(Semaphore::new(WORKERS_MAX)),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            remembered: Arc::default(),
            limits,
        }
    }

    /// The pack in a file, checked.
    ///
    /// # Errors
    /// With all that is wrong with it.
    pub(super) async fn check(&self, format: Format, source: Bytes) -> Result<Checked, ApiError> {
        let limits = self.limits;
        self.work(move |_| {
            let pack = pack::check(format, &source, &limits)?;
            let canonical = pack.canonical();
            Ok(Checked { name: pack.name().clone(), digest: Digest::of(canonical.as_bytes()), canonical })
        })
        .await
    }

    /// What a run of a pack version with these parameters does.
    ///
    /// # Errors
    /// When there is no such version, or it doesn't take these parameters.
    pub(super) async fn plan(
        &self,
        app: &App,
        version: Version,
        params: Arc<BTreeMap<String, String>>,
    ) -> Result<Plan, ApiError> {
        let (engine, limits) = (app.engine.clone(), self.limits);
        self.work(move |remembered| {
            let known = lock(remembered).find(&version);
            let pack = match known {
                Some(pack) => pack,
                None => {
                    let (pack, bytes) = checked(&engine.read()?, &version, &limits)?;
                    let pack = Arc::new(pack);
                    lock(remembered).keep(version, Arc::clone(&pack), bytes);
                    pack
                }
            };
            let arguments = pack.arguments(&params)?;
            Ok(pack.plan(&arguments, &limits, JobRunId::generate)?)
        })
        .await
    }

    /// As [`App::read`], for what reads the plan of a pack run.
    ///
    /// # Errors
    /// With what `look` finds wrong, or when the store can't be read.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        app: &App,
        look: impl FnOnce(&Reader) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.readers).acquire_owned().await;
        let looked = app.read(move |reader| Ok((look(reader)?, permit))).await;
        looked.map(|(found, _)| found)
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Mutex<Remembered>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.workers).acquire_owned().await;
        let remembered = Arc::clone(&self.remembered);
        // The work ends only by itself: a client that has gone still takes its place until then.
        let done = tokio::task::spawn_blocking(move || (work(&remembered), permit)).await;
        done.map_or_else(|_| Err(StoreError::Thread.into()), |(done, _)| done)
    }
}

fn lock(remembered: &Mutex<Remembered>) -> std::sync::MutexGuard<'_, Remembered> {
    // A list of packs is whole between any two of its steps.
    remembered.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A version's pack, and how large its file is.
fn checked(reader: &Reader, version: &Version, limits: &pack::Limits) -> Result<(Pack, usize), ApiError> {
    let Version { name, number } = version;
    let unknown = || ApiError::not_found(format!("pack `{name}` has no version {number}; register it first"));
    let info = reader.version(name, *number)?.ok_or_else(unknown)?;
    let source = reader.source(name, *number)?.ok_or_else(unknown)?;
    let pack = pack::check(info.format, &source, limits).map_err(|invalid| {
        let faults = invalid.to_string();
        let detail = format!(
            "version {number} of pack `{name}` was registered with an earlier release or under other limits, and is \
             no longer valid; register it anew: {faults}"
        );
        ApiError::new(ProblemKind::InvalidPack, detail)
    })?;
    Ok((pack, source.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_has_bounds_and_the_latest_stay() {
        let source = br#"{"name":"p","jobs":{"a":{"run":"true"}}}"#;
        let pack = Arc::new(pack::check(Format::Json, source, &pack::Limits::default()).unwrap());
        let version = |number| Version { name: "p".parse().unwrap(), number };
        let mut remembered = Remembered::default();
        for number in 0..100 {
            remembered.keep(version(number), Arc::clone(&pack), 1);
            assert!(remembered.find(&version(0)).is_some(), "it was just asked for");
        }
        assert_eq!(remembered.0.len(), REMEMBERED_MAX);
        assert!(remembered.find(&version(99)).is_some() && remembered.find(&version(1)).is_none());
        remembered.keep(version(200), Arc::clone(&pack), REMEMBERED_BYTES_MAX);
        assert_eq!(remembered.0.len(), 1, "bytes count as well");
        remembered.keep(version(201), pack, REMEMBERED_BYTES_MAX + 1);
        assert!(remembered.0.is_empty());
    }
}
