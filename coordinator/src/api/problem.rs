//! What a request is refused with: a body of RFC 9457 whose `type` is one of [`ProblemKind`], the same for ever.
//! Nothing that the coordinator keeps to itself (a path on its disk, what its store said) gets out: that goes to
//! its own log.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use packrun_protocol::state::Reason;

use super::types::{Fault, Problem};
use crate::core::outcome::Refusal;
use crate::engine::EngineError;
use crate::engine::StoreError;
use crate::pack::{InvalidArguments, InvalidPack, PlanError};

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

const URN: &str = "urn:packrun:problem:";

macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident = $text:literal, $status:ident, $title:literal;)+) => {
        /// The kinds of problems. Their texts are stable: clients may tell them apart by these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemKind { $($(#[$doc])+ $kind,)+ }

        impl ProblemKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// The last part of its `type`, after `urn:packrun:problem:`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $text,)+ }
            }

            /// Its `type`.
            #[must_use]
            pub fn urn(self) -> String {
                format!("{URN}{}", self.as_str())
            }

            /// The status that it is answered with.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status,)+ }
            }

            /// The kind in words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)+ }
            }
        }
    };
}

kinds! {
    /// What was to be canceled has ended otherwise.
    AlreadyEnded = "already-ended", CONFLICT, "It has ended already";
    /// What was to be done to an agent can't be: it was revoked.
    AgentRevoked = "agent-revoked", CONFLICT, "The agent was revoked";
    /// The bearer's role doesn't allow it.
    Forbidden = "forbidden", FORBIDDEN, "The token's role does not allow this";
    /// The idempotency key was used for another request.
    IdempotencyKeyReused = "idempotency-key-reused", CONFLICT, "The idempotency key is used";
    /// Kept for a disk without room.
    InsufficientStorage = "insufficient-storage", INSUFFICIENT_STORAGE, "The coordinator's disk is full";
    /// The coordinator's own fault.
    Internal = "internal", INTERNAL_SERVER_ERROR, "The coordinator failed";
    /// A cursor that no list gave.
    InvalidCursor = "invalid-cursor", BAD_REQUEST, "The cursor is invalid";
    /// A pack file that is no pack.
    InvalidPack = "invalid-pack", UNPROCESSABLE_ENTITY, "The pack is invalid";
    /// Values that the pack's parameters don't take.
    InvalidParameters = "invalid-parameters", UNPROCESSABLE_ENTITY, "The parameters are invalid";
    /// A request that can't be read, or breaks a rule of its form.
    InvalidRequest = "invalid-request", BAD_REQUEST, "The request is invalid";
    /// There are as many of them as there may be.
    LimitReached = "limit-reached", CONFLICT, "There are too many";
    /// The path has no such method.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "The method is not allowed";
    /// There is nothing in a media type that the client accepts.
    NotAcceptable = "not-acceptable", NOT_ACCEPTABLE, "There is nothing in an accepted media type";
    /// It can only be done to what has ended.
    NotEnded = "not-ended", CONFLICT, "It has not ended yet";
    /// There is no such thing.
    NotFound = "not-found", NOT_FOUND, "There is no such thing";
    /// More requests are under way than may be.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "The coordinator is busy";
    /// What is to be run is archived.
    PackArchived = "pack-archived", CONFLICT, "The pack version is archived";
    /// The content has nothing of the range that is asked for.
    RangeNotSatisfiable = "range-not-satisfiable", RANGE_NOT_SATISFIABLE, "There is no such part";
    /// The body did not come in time.
    RequestTimeout = "request-timeout", REQUEST_TIMEOUT, "The request took too long";
    /// The body is over its limit.
    TooLarge = "too-large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// No token, or one that doesn't hold.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "A valid token is needed";
    /// The coordinator takes no requests now.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "The coordinator is not ready";
    /// The body's media type is none that is understood here.
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The media type is not supported";
}

/// Why a request was not followed, on its way to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    kind: ProblemKind,
    detail: Reason,
    errors: Vec<Fault>,
}

impl ApiError {
    /// A problem of this kind; `detail` says what failed, on what, and what to do. It is held to the length of a
    /// [`Reason`]: what was sent is not sent back.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: impl AsRef<str>) -> Self {
        Self { kind, detail: Reason::new(detail.as_ref()), errors: Vec::new() }
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(detail: impl AsRef<str>) -> Self {
        Self::new(ProblemKind::NotFound, detail)
    }

    /// The request breaks a rule of its form.
    #[must_use]
    pub fn invalid(detail: impl AsRef<str>) -> Self {
        Self::new(ProblemKind::InvalidRequest, detail)
    }

    /// The coordinator failed with `error`, which its log says and the answer doesn't.
    #[must_use]
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a request failed");
        Self::new(ProblemKind::Internal, "the coordinator failed; its log says why")
    }

    /// The same problem with the faults it consists of.
    #[must_use]
    pub fn with_errors(self, errors: Vec<Fault>) -> Self {
        Self { errors, ..self }
    }

    /// What kind of problem it is.
    #[must_use]
    pub const fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// The body of the answer.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem {
            kind: self.kind.urn(),
            title: self.kind.title().to_owned(),
            status: self.kind.status().as_u16(),
            detail: self.detail.as_str().to_owned(),
            errors: self.errors.clone(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.problem()).unwrap_or_default();
        let mut response = (self.kind.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match self.kind {
            ProblemKind::Unauthenticated => {
                headers
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"packrun\""));
            }
            ProblemKind::Overloaded | ProblemKind::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // What is left of the body is not read: the connection can't be used again.
            ProblemKind::RequestTimeout => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Refused(refusal) => refusal.into(),
            EngineError::Unavailable => Self::new(ProblemKind::Unavailable, error.to_string()),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let kind = match &refusal {
            Refusal::Fenced(_) | Refusal::NotLive(_) | Refusal::NotLiveJob(_) => ProblemKind::AlreadyEnded,
            Refusal::Archived(..) => ProblemKind::PackArchived,
            Refusal::Artifact(..) | Refusal::Invalid(_) | Refusal::TooManyArtifacts(..) => {
                ProblemKind::InvalidRequest
            }
            Refusal::KeyReused(_) => ProblemKind::IdempotencyKeyReused,
            Refusal::NoAgent(_) | Refusal::NoPack(..) | Refusal::NoToken(_) => ProblemKind::NotFound,
            Refusal::NotInvited => ProblemKind::Forbidden,
            Refusal::Revoked(_) => ProblemKind::AgentRevoked,
            Refusal::TooManyTokens(_) => ProblemKind::LimitReached,
        };
        Self::new(kind, refusal.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<InvalidPack> for ApiError {
    fn from(invalid: InvalidPack) -> Self {
        let count = invalid.problems.len() + invalid.omitted;
        let number = |at: usize| u32::try_from(at).ok();
        let errors = invalid.problems.into_iter().map(|problem| Fault {
            line: number(problem.line),
            column: number(problem.column),
            kind: problem.kind.as_str().to_owned(),
            message: problem.message,
            suggestion: problem.suggestion,
        });
        let detail = match count {
            1 => "the pack file has a fault; `errors` says where".to_owned(),
            _ => format!("the pack file has {count} faults; `errors` says where"),
        };
        Self::new(ProblemKind::InvalidPack, detail).with_errors(errors.collect())
    }
}

impl From<InvalidArguments> for ApiError {
    fn from(invalid: InvalidArguments) -> Self {
        let detail = invalid.to_string();
        let errors = invalid.0.iter().map(|fault| Fault {
            line: None,
            column: None,
            kind: "parameter".to_owned(),
            message: fault.to_string(),
            suggestion: None,
        });
        Self::new(ProblemKind::InvalidParameters, detail).with_errors(errors.collect())
    }
}

impl From<PlanError> for ApiError {
    fn from(error: PlanError) -> Self {
        Self::new(
            ProblemKind::InvalidParameters,
            format!("the pack can't be run with these parameters: {error}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kinds_are_told_apart_and_are_errors() {
        let texts: BTreeSet<_> = ProblemKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(texts.len(), ProblemKind::ALL.len());
        for kind in ProblemKind::ALL {
            assert!(kind.status().is_client_error() || kind.status().is_server_error(), "{kind:?}");
            assert!(kind.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{kind:?}");
        }
    }

    #[test]
    fn an_answer_says_what_it_is() {
        let response = ApiError::not_found("no such run").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let response = ApiError::new(ProblemKind::Unauthenticated, "no token").into_response();
        assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    }
}
