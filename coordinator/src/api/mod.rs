//! The HTTP side of the coordinator. It never touches the store: it asks the engine, or reads a snapshot.
//!
//! | file | what it is for |
//! | --- | --- |
//! | [`types`] | the bodies, for the server, the OpenAPI document and the CLI |
//! | [`problem`] | what a request is refused with |
//! | [`token`], [`auth`] | API tokens; who asks, and what he may do |
//! | [`extract`], `paging` | path, query, body; cursors of lists |
//! | `packs`, `planner` | the registry; from a pack version to a plan |
//! | `runs` | pack runs and job runs: started, shown, canceled, retried |
//! | `streams` | logs, events, the content of artifacts |
//! | `admin` | agents and tokens |
//! | `observe` | health and status |
//! | `openapi` | what the OpenAPI document says beside the routes |
//! | `limits`, `accept`, `answer`, `stall`, [`serve`](fn@serve) | what one client can cost the others; listening |
//!
//! Everything from a client is hostile: bodies, pages, the requests under way and their time are bounded, and what
//! can't be read is answered with a problem.

mod accept;
mod admin;
mod answer;
pub mod auth;
pub mod extract;
mod limits;
mod observe;
mod openapi;
mod packs;
mod paging;
mod planner;
pub mod problem;
mod runs;
mod serve;
mod stall;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
pub mod token;
pub mod types;

use axum::extract::FromRef;
use axum::middleware::map_response;
use bytes::Bytes;
use packrun_protocol::id::Digest;
use packrun_protocol::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;
use tower_http::trace::TraceLayer;
use utoipa_axum::router::OpenApiRouter;

pub use self::limits::Limits;
use self::planner::Planner;
use self::problem::ApiError;
pub use self::serve::serve;
use crate::artifacts::ArtifactStore;
use crate::engine::Handle;
use crate::engine::{Reader, StoreError};
use crate::logs::LogStore;

/// What every request may use. Clones share it.
#[derive(Debug, Clone)]
pub struct App {
    /// The engine.
    pub engine: Handle,
    /// The logs.
    pub logs: LogStore,
    /// The artifacts' content.
    pub artifacts: ArtifactStore,
    /// The time.
    pub clock: Clock,
    /// When the coordinator was started.
    pub started_at: Timestamp,
    /// How much is allowed.
    pub limits: Limits,
    /// The sha256 of the CA's certificate, which join tokens carry.
    pub ca_fingerprint: Digest,
    /// Canceled when the coordinator stops: answers that never end are to end then.
    pub stop: CancellationToken,
}

impl App {
    /// What `look` finds in a snapshot of the store. It may block on the disk.
    ///
    /// # Errors
    /// With what `look` finds wrong, or when the store can't be read.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Reader) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let engine = self.engine.clone();
        let looked = tokio::task::spawn_blocking(move || look(&engine.read()?)).await;
        looked.unwrap_or_else(|_| Err(StoreError::Thread.into()))
    }
}

/// The state of the router: what every request may use, and what only this room knows.
#[derive(Debug, Clone)]
pub(super) struct Api {
    app: App,
    planner: Planner,
    streams: streams::Streams,
    document: Bytes,
}

impl FromRef<Api> for App {
    fn from_ref(api: &Api) -> Self {
        api.app.clone()
    }
}

/// All routes with their limits.
pub fn router(app: App) -> axum::Router {
    let (routes, document) = routes(&app.limits);
    let api = Api {
        planner: Planner::new(app.limits.packs),
        streams: streams::Streams::at_most(app.limits.streams),
        app,
        document: openapi::text_of(&document).unwrap_or_default(),
    };
    routes
        .fallback(limits::not_found)
        .method_not_allowed_fallback(limits::method_not_allowed)
        .layer(map_response(limits::not_sniffed))
        .layer(TraceLayer::new_for_http())
        .with_state(api)
}

fn routes(limits: &Limits) -> (axum::Router<Api>, utoipa::openapi::OpenApi) {
    // Those whose answer takes a bounded time. What streams its answer is merged beside them.
    let answered = limits.apply(
        OpenApiRouter::new()
            .merge(observe::routes())
            .merge(packs::routes())
            .merge(runs::routes())
            .merge(admin::routes())
            .merge(streams::pages()),
    );
    let (routes, mut document) = OpenApiRouter::with_openapi(openapi::document())
        .merge(observe::open_routes())
        .merge(answered)
        .merge(streams::routes())
        .split_for_parts();
    openapi::complete(&mut document);
    (routes, document)
}
