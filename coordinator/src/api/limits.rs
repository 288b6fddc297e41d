//! What one client can cost the others: requests under way, and the time that an answer takes. Beyond that, and for
//! what isn't there, problems.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::X_CONTENT_TYPE_OPTIONS;
use axum::http::{HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;

use super::problem::{ApiError, ProblemKind};
use crate::pack;

/// How much is allowed, all told or to one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What a pack may be.
    pub packs: pack::Limits,
    /// Bytes of a JSON body. The values of a pack run's parameters take the most.
    pub json_bytes: usize,
    /// Bytes of a pack run's parameters, names and values.
    pub params_bytes: usize,
    /// Requests under way at a time whose answer doesn't stream.
    pub requests: usize,
    /// How long one of them may take, its body included.
    pub request_time: Duration,
    /// How long a connection may take for its first request, and a request for its head.
    pub head_time: Duration,
    /// Streams of events that may be open at a time.
    pub streams: usize,
    /// Connections at a time.
    pub connections: usize,
    /// Connections of one address (of IPv6: one /64) at a time. Where a proxy stands before the API, all are its.
    pub connections_per_address: usize,
    /// How long a client may take nothing of what it is sent.
    pub stall_time: Duration,
    /// Bytes that all large answers together may hold.
    pub answer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packs: pack::Limits::default(),
            json_bytes: 4 << 20,
            params_bytes: 256 << 10,
            requests: 512,
            request_time: Duration::from_secs(120),
            head_time: Duration::from_secs(20),
            streams: 1024,
            connections: 2048,
            connections_per_address: 1024,
            stall_time: Duration::from_secs(30),
            answer_bytes: 256 << 20,
        }
    }
}

impl Limits {
    /// These limits on all routes of `router` together.
    pub(super) fn apply<S: Clone + Send + Sync + 'static>(
        self,
        router: OpenApiRouter<S>,
    ) -> OpenApiRouter<S> {
        let under_way = Arc::new(Semaphore::new(self.requests));
        router.layer(from_fn(move |request: Request, next: Next| {
            let under_way = Arc::clone(&under_way);
            async move {
                let Ok(_permit) = under_way.try_acquire() else {
                    let detail = format!("{} requests are under way; try again", self.requests);
                    return ApiError::new(ProblemKind::Overloaded, detail).into_response();
                };
                self.in_time(next.run(request)).await
            }
        }))
    }

    async fn in_time(self, answer: impl Future<Output = Response>) -> Response {
        let answered = tokio::time::timeout(self.request_time, answer).await;
        answered.unwrap_or_else(|_| {
            let detail = format!(
                "the request took longer than {} s; whether it was followed is known once it is asked again",
                self.request_time.as_secs()
            );
            ApiError::new(ProblemKind::Unavailable, detail).into_response()
        })
    }
}

/// Has browsers take an answer for what it says it is: packs, logs and artifacts come from users.
pub(super) async fn not_sniffed(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at `{}`; /openapi.json lists what there is", uri.path()))
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let detail = format!("`{}` takes no {method}; `Allow` lists what it takes", uri.path());
    ApiError::new(ProblemKind::MethodNotAllowed, detail)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::get;
    use axum::{Extension, Router};
    use tokio::sync::mpsc;
    use tower::ServiceExt as _;

    use super::*;

    /// A route that says when it is asked, and never answers.
    fn stuck(limits: Limits) -> (Router, mpsc::UnboundedReceiver<()>) {
        let (asked, told) = mpsc::unbounded_channel();
        let handler = |Extension(asked): Extension<mpsc::UnboundedSender<()>>| async move {
            asked.send(()).unwrap();
            pending::<()>().await;
        };
        let routes = limits.apply(OpenApiRouter::<()>::new().route("/", get(handler)));
        (routes.layer(Extension(asked)).split_for_parts().0, told)
    }

    fn ask(router: &Router) -> impl Future<Output = StatusCode> + use<> {
        let answer = router.clone().oneshot(Request::new(Body::empty()));
        async move { answer.await.unwrap().status() }
    }

    #[tokio::test]
    async fn what_takes_too_long_is_given_up() {
        let (router, _told) =
            stuck(Limits { requests: 1, request_time: Duration::from_millis(1), ..Limits::default() });
        for _ in 0..3 {
            assert_eq!(ask(&router).await, StatusCode::SERVICE_UNAVAILABLE, "and makes room for the next");
        }
    }

    #[tokio::test]
    async fn more_requests_than_may_be_under_way_are_turned_away() {
        let (router, mut told) = stuck(Limits { requests: 2, ..Limits::default() });
        let under_way: Vec<_> = (0..2).map(|_| tokio::spawn(ask(&router))).collect();
        for _ in 0..2 {
            told.recv().await.unwrap();
        }
        assert_eq!(ask(&router).await, StatusCode::SERVICE_UNAVAILABLE);
        assert!(told.try_recv().is_err(), "it wasn't let in");
        for request in under_way {
            request.abort();
        }
    }
}
