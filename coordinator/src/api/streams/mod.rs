//! Logs, events and the content of artifacts.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `feed` | the order of a pack run's stream: pure |
//! | `source`, `follow` | what goes into it, and the events that come out |
//! | `stream` | a pack run's events |
//! | `changes` | those of all pack runs |
//! | `logs`, `tail`, `attempt`, `page` | entries by time, the last of them, by number, and in which form |
//! | `artifacts`, `content` | files that attempts have left |
//! | `open` | how many streams there may be, and until when |
//! | `event`, `cursor`, `names` | events as bytes, cursors as text, what ids are called |
//!
//! Nothing is kept for a client between what it reads: a stream reads on when its client does.

mod artifacts;
mod attempt;
mod changes;
mod content;
mod cursor;
mod event;
mod feed;
mod follow;
mod logs;
mod names;
mod open;
mod page;
mod source;
mod stream;
mod tail;

pub(super) use self::open::Streams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;

/// What is answered at once.
pub(super) fn pages() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(logs::pack_run_logs))
        .routes(routes!(attempt::attempt_logs))
        .routes(routes!(artifacts::artifacts))
}

/// What streams its answer, and takes as long as its client.
pub(super) fn routes() -> OpenApiRouter<Api> {
    let mut routes = OpenApiRouter::new()
        .routes(routes!(stream::stream))
        .routes(routes!(changes::events))
        .routes(routes!(content::content));
    // The router's way to say that a parameter has slashes is none of OpenAPI's.
    let paths = &mut routes.get_openapi_mut().paths.paths;
    if let Some(item) = paths.remove(content::PATH) {
        paths.insert(content::PATH.replace("{*", "{"), item);
    }
    routes
}

#[cfg(test)]
mod tests;
