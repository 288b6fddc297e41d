//! Who asks: a request's bearer token, looked up in the store at every request, so that a token that was revoked or
//! has expired does nothing from that moment on; while an answer goes on, it is looked up again and again. A handler takes a [`Viewer`], an [`Operator`] or an [`Admin`] before
//! the request's body; one that takes none is open to everybody.

use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use packrun_protocol::id::TokenId;

use super::App;
use super::problem::{ApiError, ProblemKind};
use super::token::ApiToken;
use crate::core::change::{Grant, Role};

/// The bearer of a token that holds, and may read.
#[derive(Debug, Clone, Copy)]
pub struct Viewer {
    /// The token.
    pub token: TokenId,
    /// What it lets its bearer do.
    pub role: Role,
}

/// One who may register packs, and start, cancel and retry runs as well.
#[derive(Debug, Clone, Copy)]
pub struct Operator(pub Viewer);

/// One who may do everything.
#[derive(Debug, Clone, Copy)]
pub struct Admin(pub Viewer);

impl Viewer {
    /// Returns once his token holds no longer, which is looked up this often: an answer that goes on ends then.
    pub(super) async fn lapses(self, app: App, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let (id, now) = (self.token, app.clock.now());
            let row = app.read(move |reader| Ok(reader.token(id)?)).await;
            if !row.ok().flatten().is_some_and(|row| row.end.is_none() && !row.is_expired(now)) {
                return;
            }
        }
    }
}

impl<S> FromRequestParts<S> for Viewer
where
    App: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        bearer(parts, &App::from_ref(state), Role::Viewer).await
    }
}

impl<S> FromRequestParts<S> for Operator
where
    App: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        bearer(parts, &App::from_ref(state), Role::Operator).await.map(Self)
    }
}

impl<S> FromRequestParts<S> for Admin
where
    App: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        bearer(parts, &App::from_ref(state), Role::Admin).await.map(Self)
    }
}

fn unauthenticated(detail: impl AsRef<str>) -> ApiError {
    ApiError::new(ProblemKind::Unauthenticated, detail)
}

async fn bearer(parts: &Parts, app: &App, needed: Role) -> Result<Viewer, ApiError> {
    let token = shown(parts)?;
    let (id, secret, now) = (token.id(), token.digest(), app.clock.now());
    let row = app.read(move |reader| Ok(reader.token(id)?)).await?;
    // Which of these it is, is nobody's business who has no token that holds.
    let holds = row.filter(|row| row.holds(secret, now));
    let Some(Grant::Api(role)) = holds.map(|row| row.grant) else {
        return Err(unauthenticated("the token is unknown, expired or revoked; ask for a new one"));
    };
    if role < needed {
        let (has, needs) = (role.as_str(), needed.as_str());
        let detail = format!("this takes the role `{needs}`, the token has `{has}`");
        return Err(ApiError::new(ProblemKind::Forbidden, detail));
    }
    Ok(Viewer { token: id, role })
}

fn shown(parts: &Parts) -> Result<ApiToken, ApiError> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next(), values.next()) else {
        return Err(unauthenticated("the request has more than one `Authorization`"));
    };
    let value = value.ok_or_else(|| unauthenticated("the request has no `Authorization: Bearer …`"))?;
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.trim().split_once(' '))
        .ok_or_else(|| unauthenticated("`Authorization` takes `Bearer` and a token"))?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unauthenticated("`Authorization` takes `Bearer` and a token"));
    }
    token.parse().map_err(|error: super::token::ApiTokenError| unauthenticated(error.to_string()))
}
