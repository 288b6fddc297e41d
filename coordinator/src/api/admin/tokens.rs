//! Tokens. A secret is made here from the system's randomness, shown once in the answer, and kept as its sha256 only.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use packrun_protocol::id::{Digest, TokenId};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::name::{Labels, Name};
use packrun_protocol::stream::JoinSecret;
use packrun_protocol::time::Timestamp;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::Admin;
use crate::api::extract::{Input, OptionalInput, PathOf, QueryOf};
use crate::api::paging::{self, List, PageQuery, Paged};
use crate::api::problem::{ApiError, ProblemKind};
use crate::api::token::{ApiToken, secret};
use crate::api::types::{JoinTokenMade, NewJoinToken, NewToken, Page, Token, TokenMade, schema};
use crate::api::{Api, App};
use crate::core::change::{Grant, TokenEnd, TokenRow};
use crate::core::event::Command;
use crate::core::outcome::Refusal;
use crate::engine::EngineError;

/// How long a join token holds when none says how long, in seconds.
const JOIN_TTL_SECONDS: u64 = 3600;

/// Longest that a join token holds: 30 days.
const JOIN_TTL_SECONDS_MAX: u64 = 30 * 24 * 3600;

/// Longest that an API token with a time holds: ten years.
const TTL_SECONDS_MAX: u64 = 3650 * 24 * 3600;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(invite)).routes(routes!(create, list)).routes(routes!(revoke))
}

/// Makes a token that lets one agent join.
#[utoipa::path(
    post, path = "/v1/join-tokens", tag = "agents", operation_id = "create_join_token", request_body = Option<NewJoinToken>,
    responses(
        (status = 201, description = "The token, which is not shown again", body = JoinTokenMade),
        (status = 409, description = "There are too many"),
    ),
)]
async fn invite(
    _: Admin,
    State(app): State<App>,
    OptionalInput(wanted): OptionalInput<NewJoinToken>,
) -> Result<Response, ApiError> {
    let ttl = ttl(wanted.ttl_seconds.unwrap_or(JOIN_TTL_SECONDS), JOIN_TTL_SECONDS_MAX)?;
    let labels =
        Labels::new(wanted.labels).map_err(|error| ApiError::invalid(format!("`labels`: {error}")))?;
    let name = wanted.name.map(|name| name.parse::<Name>()).transpose();
    let name = name.map_err(|error| ApiError::invalid(format!("`name`: {error}")))?;
    let secret = secret().map_err(|error| ApiError::internal(&error))?;
    let token = JoinToken { ca: app.ca_fingerprint, id: TokenId::generate(), secret: JoinSecret(secret) };
    let grant = Grant::Join { labels, name };
    let row = make(&app, token.id, Digest::of(&secret), grant, Some(ttl)).await?;
    let expires_at = row.expires_at.unwrap_or(Timestamp::MAX);
    Ok(shown_once(&JoinTokenMade { id: token.id, token: token.to_string(), expires_at }))
}

/// Makes a token for this API.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token", request_body = NewToken,
    responses(
        (status = 201, description = "The token, which is not shown again", body = TokenMade),
        (status = 409, description = "There are too many"),
    ),
)]
async fn create(
    _: Admin,
    State(app): State<App>,
    Input(NewToken { role, ttl_seconds }): Input<NewToken>,
) -> Result<Response, ApiError> {
    let ttl = ttl_seconds.map(|seconds| ttl(seconds, TTL_SECONDS_MAX)).transpose()?;
    let token = ApiToken::generate().map_err(|error| ApiError::internal(&error))?;
    let row = make(&app, token.id(), token.digest(), Grant::Api(role), ttl).await?;
    Ok(shown_once(&TokenMade { info: body(&row, app.clock.now()), token: token.to_string() }))
}

/// All tokens, newest first: those for this API and those that let agents join, also what has ended.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens", operation_id = "list_tokens", params(PageQuery),
    responses((status = 200, description = "A page of them", body = Page<Token>)),
)]
async fn list(
    _: Admin,
    State(app): State<App>,
    uri: Uri,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Paged<Token>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let id_of = |key: &[u8]| key.try_into().ok().map(TokenId::from_bytes);
    let before = paging::key(List::Tokens, query.cursor.as_deref(), id_of)?;
    let now = app.clock.now();
    let page = app.read(move |reader| {
        let tokens = reader.tokens()?.into_iter().rev().map(|row| (row.id, row));
        let behind = |id: &TokenId| before.is_none_or(|before| *id < before);
        let page = paging::page(List::Tokens, tokens, behind, limit, |id| id.to_bytes().to_vec());
        let items = page.items.iter().map(|row| body(row, now)).collect();
        Ok(Page { items, next_cursor: page.next_cursor })
    });
    Ok(Paged::new(page.await?, uri))
}

/// Lets nobody do anything with a token any more.
#[utoipa::path(
    post, path = "/v1/tokens/{id}/revoke", tag = "tokens", operation_id = "revoke_token",
    params(("id" = schema::Id, Path, description = "The token's id")),
    responses(
        (status = 200, description = "It is revoked", body = Token),
        (status = 404, description = "No such token"),
        (status = 409, description = "It was used or has expired"),
    ),
)]
async fn revoke(
    _: Admin,
    State(app): State<App>,
    PathOf(id): PathOf<TokenId>,
) -> Result<Json<Token>, ApiError> {
    let followed = match app.engine.command(Command::RevokeToken(id)).await {
        Ok(_) => true,
        Err(EngineError::Refused(Refusal::NoToken(_))) => false,
        Err(error) => return Err(error.into()),
    };
    let row = find(&app, id).await?;
    if !followed && !matches!(row.end, Some(TokenEnd::Revoked(_))) {
        let what = if row.end.is_some() { "was used" } else { "has expired" };
        return Err(ApiError::new(ProblemKind::AlreadyEnded, format!("token {id} {what}")));
    }
    Ok(Json(body(&row, app.clock.now())))
}

fn ttl(seconds: u64, seconds_max: u64) -> Result<Duration, ApiError> {
    if (1..=seconds_max).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(ApiError::invalid(format!("`ttl_seconds` takes 1 to {seconds_max}, not {seconds}")))
}

async fn make(
    app: &App,
    id: TokenId,
    secret: Digest,
    grant: Grant,
    ttl: Option<Duration>,
) -> Result<TokenRow, ApiError> {
    app.engine.command(Command::CreateToken { id, secret, grant, ttl }).await?;
    find(app, id).await
}

async fn find(app: &App, id: TokenId) -> Result<TokenRow, ApiError> {
    let unknown =
        move || ApiError::not_found(format!("there is no token {id}; `packrun tokens list` names them"));
    app.read(move |reader| reader.token(id)?.ok_or_else(unknown)).await
}

/// What no cache is to keep.
fn shown_once(body: &impl Serialize) -> Response {
    (StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

fn body(row: &TokenRow, now: Timestamp) -> Token {
    let role = match &row.grant {
        Grant::Join { .. } => "join",
        Grant::Api(role) => role.as_str(),
    };
    let state = match row.end {
        Some(TokenEnd::Revoked(_)) => "revoked",
        Some(TokenEnd::Used { .. }) => "used",
        None if row.is_expired(now) => "expired",
        None => "active",
    };
    Token {
        id: row.id,
        role: role.to_owned(),
        state: state.to_owned(),
        created_at: row.created_at,
        expires_at: row.expires_at,
    }
}
