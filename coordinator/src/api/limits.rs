//! What one client can cost the others: requests under way, and the time that an answer takes. Beyond that, and for
//! what isn't there, problems.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;

use super::Api;
use super::problem::{ApiError, ProblemKind};

/// Limits on requests whose answer doesn't stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Requests under way at a time.
    pub(super) requests: usize,
    /// How long one may take, its body included.
    pub(super) time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 512, time: Duration::from_secs(120) }
    }
}

impl Limits {
    /// These limits on all routes of `router` together.
    pub(super) fn apply(self, router: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
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
        let answered = tokio::time::timeout(self.time, answer).await;
        answered.unwrap_or_else(|_| {
            let detail = format!(
                "the request took longer than {} s; whether it was followed is known once it is asked again",
                self.time.as_secs()
            );
            ApiError::new(ProblemKind::Unavailable, detail).into_response()
        })
    }
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at `{}`; /openapi.json lists what there is", uri.path()))
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let detail = format!("`{}` takes no {method}; `Allow` lists what it takes", uri.path());
    ApiError::new(ProblemKind::MethodNotAllowed, detail)
}
