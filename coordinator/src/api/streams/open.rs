//! Open streams: how many there may be, what they share, and when one ends whoever reads it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use packrun_protocol::id::PackRunId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::event::response;
use super::names::Names;
use crate::api::App;
use crate::api::auth::Viewer;
use crate::api::problem::{ApiError, ProblemKind};

/// How often it is looked up whether the token of an open stream still holds.
pub(super) const TOKEN_CHECK: Duration = Duration::from_secs(15);

/// What open streams share. Clones share it.
#[derive(Debug, Clone)]
pub(in crate::api) struct Streams {
    places: Arc<Semaphore>,
    names: Arc<Mutex<HashMap<PackRunId, Weak<Names>>>>,
}

/// A place of an open stream.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Streams {
    pub(in crate::api) fn at_most(streams: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(streams)), names: Arc::default() }
    }

    /// A place for one more.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub(super) fn place(&self) -> Result<Place, ApiError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map(|_permit| Place { _permit }).map_err(|_| {
            let detail = "as many streams are open as there may be; try again later, or end others";
            ApiError::new(ProblemKind::Overloaded, detail)
        })
    }

    /// The names of a pack run that somebody holds.
    pub(super) fn known(&self, run: PackRunId) -> Option<Arc<Names>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&run)?.upgrade()
    }

    /// The names of a pack run as everybody has them from now on: those, unless another was first.
    pub(super) fn share(&self, run: PackRunId, names: Names) -> Arc<Names> {
        let mut known = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = known.get(&run).and_then(Weak::upgrade) {
            return first;
        }
        known.retain(|_, names| names.strong_count() > 0);
        let names = Arc::new(names);
        known.insert(run, Arc::downgrade(&names));
        names
    }
}

/// The response that these events are, for as long as the reader's token holds.
pub(super) fn guarded(
    events: impl Stream<Item = Bytes> + Send + 'static,
    (viewer, app, every): (Viewer, App, Duration),
    place: Place,
) -> Response {
    let events = events.take_until(Box::pin(viewer.lapses(app, every)));
    response(events.map(move |bytes| {
        // It is the stream's for as long as there is one.
        let _ = &place;
        bytes
    }))
}
