//! What handlers take from a request: its path, query and body, each refused with a problem when it can't be read.
//! A handler names its role before these, so that nobody's body is read who may not send one.
//!
//! A body over its limit is read to its end all the same, within bounds, and dropped: a connection that is closed on
//! a sender resets, and he would never see the answer.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;

use super::App;
use super::problem::{ApiError, ProblemKind};

/// Bytes of a body over its limit that are read for the sake of its sender.
const DROPPED_BYTES_MAX: usize = 64 << 20;

/// How long a body may pause.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(20);

/// The parts of the path that its template names.
#[derive(Debug, Clone, Copy)]
pub struct PathOf<T>(pub T);

/// The query; what it doesn't know, `T` refuses.
#[derive(Debug, Clone, Copy)]
pub struct QueryOf<T>(pub T);

/// A JSON body of at most [`Limits::json_bytes`](super::Limits::json_bytes).
#[derive(Debug, Clone, Copy)]
pub struct Input<T>(pub T);

/// A JSON body as [`Input`], or `null`, or none at all, which is `T`'s default.
#[derive(Debug, Clone, Copy)]
pub struct OptionalInput<T>(pub T);

impl<S, T> FromRequestParts<S> for PathOf<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(format!("the path: {}", rejection.body_text()))),
        }
    }
}

impl<S, T> FromRequestParts<S> for QueryOf<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(format!("the query: {}", rejection.body_text()))),
        }
    }
}

impl<S, T> FromRequest<S> for Input<T>
where
    App: FromRef<S>,
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let media_type = media_type(&parts)?;
        let bytes = whole(body, App::from_ref(state).limits.json_bytes).await?;
        json(media_type.as_deref(), &bytes).map(Self)
    }
}

impl<S, T> FromRequest<S> for OptionalInput<T>
where
    App: FromRef<S>,
    S: Send + Sync,
    T: DeserializeOwned + Default,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let media_type = media_type(&parts)?;
        let bytes = whole(body, App::from_ref(state).limits.json_bytes).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        json::<Option<T>>(media_type.as_deref(), &bytes).map(|value| Self(value.unwrap_or_default()))
    }
}

/// The media type of a request's body as it is written, if there is one.
///
/// # Errors
/// When it is not even text.
pub(super) fn media_type(parts: &Parts) -> Result<Option<String>, ApiError> {
    let value = parts.headers.get(CONTENT_TYPE).map(|value| value.to_str().map(str::to_owned));
    value.transpose().map_err(|_| ApiError::invalid("`Content-Type` is not text"))
}

fn json<T: DeserializeOwned>(media_type: Option<&str>, bytes: &[u8]) -> Result<T, ApiError> {
    let essence = media_type.map(|value| value.split_once(';').map_or(value, |(essence, _)| essence).trim());
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        let detail = "the body has to be JSON, with `Content-Type: application/json`";
        return Err(ApiError::new(ProblemKind::UnsupportedMediaType, detail));
    }
    // A list of a structure's values in their order would be understood as well; no client is to rely on that.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::invalid("the body is a list; it has to be an object"));
    }
    serde_json::from_slice(bytes).map_err(|error| ApiError::invalid(format!("the body: {error}")))
}

/// A whole body of at most `bytes_max`.
///
/// # Errors
/// When it is larger, pauses for too long, or breaks off.
pub(super) async fn whole(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    whole_without_pause(body, bytes_max, BODY_PAUSE_MAX).await
}

async fn whole_without_pause(body: Body, bytes_max: usize, pause_max: Duration) -> Result<Bytes, ApiError> {
    let mut pieces = body.into_data_stream();
    let (mut kept, mut dropped) = (BytesMut::new(), 0);
    loop {
        let piece = match tokio::time::timeout(pause_max, pieces.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(_))) => return Err(ApiError::invalid("the body broke off")),
            Ok(None) => break,
            Err(_) => {
                let detail = format!("nothing came of the body for {} s", pause_max.as_secs());
                return Err(ApiError::new(ProblemKind::RequestTimeout, detail));
            }
        };
        if dropped == 0 && kept.len() + piece.len() <= bytes_max {
            kept.extend_from_slice(&piece);
            continue;
        }
        dropped += kept.len() + piece.len();
        kept = BytesMut::new();
        if dropped > DROPPED_BYTES_MAX {
            break;
        }
    }
    if dropped > 0 {
        let detail = format!("the body has more than the {bytes_max} bytes that are taken here");
        return Err(ApiError::new(ProblemKind::TooLarge, detail));
    }
    Ok(kept.freeze())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    fn pieces(count: usize, bytes: usize) -> impl stream::Stream<Item = Result<Bytes, Infallible>> + Send {
        stream::iter(std::iter::repeat_n(Ok(Bytes::from(vec![b'x'; bytes])), count))
    }

    #[tokio::test]
    async fn a_body_is_taken_up_to_its_limit() {
        for (count, bytes, taken) in
            [(0, 0, true), (10, 10, true), (10, 11, false), (1, 101, false), (101, 1, false)]
        {
            let whole = whole(Body::from_stream(pieces(count, bytes)), 100).await;
            match whole {
                Ok(whole) => assert!(taken && whole.len() == count * bytes, "{count} × {bytes}"),
                Err(error) => assert!(!taken && error.kind() == ProblemKind::TooLarge, "{count} × {bytes}"),
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_pauses_or_breaks_off_is_given_up() {
        let paused = Body::from_stream(pieces(2, 10).chain(stream::pending()));
        let refused = whole_without_pause(paused, 100, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(refused.kind(), ProblemKind::RequestTimeout);
        let broken = stream::iter([Ok(Bytes::new()), Err(std::io::Error::other("reset"))]);
        let refused = whole(Body::from_stream(broken), 100).await.unwrap_err();
        assert_eq!(refused.kind(), ProblemKind::InvalidRequest);
    }
}
