//! Pack runs are started: from a pack version and parameters, or as the repetition of one that has ended. Under an
//! idempotency key a request starts one pack run, however often it comes: the key is looked up in the store, and what
//! is not there yet meets in the core.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use packrun_protocol::id::{Digest, JobRunId, PackRunId};
use packrun_protocol::name::Name;
use packrun_protocol::state::JobRunState;
use serde::Serialize;
use serde_json::Value;

use super::body;
use crate::api::auth::Operator;
use crate::api::extract::{Input, OptionalInput, PathOf};
use crate::api::packs;
use crate::api::planner::Version;
use crate::api::problem::{ApiError, ProblemKind};
use crate::api::types::{Fault, NewPackRun, PackRun, Retry, schema};
use crate::api::{Api, App};
use crate::core::event::{Command, Idempotency, NewRun};
use crate::core::outcome::{Refusal, Reply};
use crate::engine::EngineError;
use crate::engine::{Reader, StoreError};

const KEY_HEADER: &str = "idempotency-key";

/// Longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// Starts a pack run.
#[utoipa::path(
    post, path = "/v1/pack-runs", tag = "runs", operation_id = "start_pack_run", request_body = NewPackRun,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters: the same request under the same key starts one pack run", min_length = 1, max_length = 255, pattern = "^[!-~]+$", example = "nightly-2026-11-24")),
    responses(
        (status = 201, description = "It is started", body = PackRun, headers(("Location" = String, description = "Where the pack run is"))),
        (status = 200, description = "It was started before under this key", body = PackRun, headers(("Location" = String, description = "Where the pack run is"))),
        (status = 404, description = "No such pack version"),
        (status = 409, description = "The pack version is archived, or the key was used for another request"),
        (status = 422, description = "The pack doesn't take these parameters"),
    ),
)]
pub(super) async fn create(
    _: Operator,
    State(api): State<Api>,
    headers: HeaderMap,
    Input(wanted): Input<NewPackRun>,
) -> Result<Response, ApiError> {
    let name: Name = wanted.pack.parse().map_err(|error| ApiError::invalid(format!("`pack`: {error}")))?;
    let params = Arc::new(texts(wanted.params)?);
    let (bytes, most) = (bytes(&params), api.app.limits.params_bytes);
    if bytes > most {
        let detail =
            format!("the parameters have {bytes} bytes, of which {most} are taken; pass a file's name");
        return Err(ApiError::new(ProblemKind::InvalidParameters, detail));
    }
    let idempotency = idempotency(&headers, &("run", &name, wanted.version, &params))?;
    if let Some(id) = made_before(&api.app, idempotency.as_ref()).await? {
        return answer(&api.app, id, false).await;
    }
    let number = match wanted.version {
        Some(number) => number,
        None => {
            let name = name.clone();
            api.app.read(move |reader| packs::head(reader, &name)).await?
        }
    };
    let version = Version { name: name.clone(), number };
    let plan = api.planner.plan(&api.app, version, Arc::clone(&params)).await?;
    start(
        &api.app,
        NewRun {
            id: PackRunId::generate(),
            pack: name,
            version: number,
            params,
            plan: Arc::new(plan),
            idempotency,
            retry_of: None,
            reused: BTreeMap::new(),
        },
    )
    .await
}

/// Starts a pack run that repeats one which has ended: its plan again, all of it or only what did not succeed. What is
/// archived is not repeated either.
#[utoipa::path(
    post, path = "/v1/pack-runs/{id}/retry", tag = "runs", operation_id = "retry_pack_run", request_body = Option<Retry>,
    params(
        ("id" = schema::Id, Path, description = "The pack run to repeat"),
        ("Idempotency-Key" = Option<String>, Header, description = "As for a new pack run", min_length = 1, max_length = 255, pattern = "^[!-~]+$", example = "nightly-2026-11-24"),
    ),
    responses(
        (status = 201, description = "The new pack run", body = PackRun, headers(("Location" = String, description = "Where the pack run is"))),
        (status = 200, description = "It was started before under this key", body = PackRun, headers(("Location" = String, description = "Where the pack run is"))),
        (status = 404, description = "No such pack run"),
        (status = 409, description = "It has not ended, its pack version is archived, or the key was used for another request"),
    ),
)]
pub(super) async fn retry(
    _: Operator,
    State(api): State<Api>,
    PathOf(id): PathOf<PackRunId>,
    headers: HeaderMap,
    OptionalInput(Retry { failed }): OptionalInput<Retry>,
) -> Result<Response, ApiError> {
    let idempotency = idempotency(&headers, &("retry", id, failed))?;
    if let Some(id) = made_before(&api.app, idempotency.as_ref()).await? {
        return answer(&api.app, id, false).await;
    }
    let new = api.planner.read(&api.app, move |reader| repetition(reader, id, failed)).await?;
    start(&api.app, NewRun { idempotency, ..new }).await
}

async fn start(app: &App, new: NewRun) -> Result<Response, ApiError> {
    match app.engine.command(Command::CreateRun(Box::new(new))).await? {
        Reply::Run { id, created } => answer(app, id, created).await,
        _ => Err(EngineError::Unavailable.into()),
    }
}

async fn answer(app: &App, id: PackRunId, created: bool) -> Result<Response, ApiError> {
    let run = app.read(move |reader| body::pack_run(reader, id)).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(LOCATION, format!("/v1/pack-runs/{id}"))], Json(run)).into_response())
}

/// The bytes of the names and values of parameters.
pub(super) fn bytes(params: &BTreeMap<String, String>) -> usize {
    params.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// The values of parameters as texts: what a JSON client writes as a number or a boolean is meant as it is written.
fn texts(params: BTreeMap<String, Value>) -> Result<BTreeMap<String, String>, ApiError> {
    let (mut texts, mut faults) = (BTreeMap::new(), Vec::new());
    for (name, value) in params {
        let text = match value {
            Value::String(text) => text,
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                let name: String = name.chars().take(KEY_BYTES_MAX).collect();
                faults.push(format!("parameter {name:?} has to be a text, a number or a boolean"));
                continue;
            }
        };
        texts.insert(name, text);
    }
    if faults.is_empty() {
        return Ok(texts);
    }
    let detail = format!("{} parameters have no value that a parameter takes", faults.len());
    faults.truncate(crate::pack::problem::PROBLEMS_MAX);
    let fault =
        |message| Fault { line: None, column: None, kind: "parameter".to_owned(), message, suggestion: None };
    let errors = faults.into_iter().map(fault).collect();
    Err(ApiError::new(ProblemKind::InvalidParameters, detail).with_errors(errors))
}

/// The request's idempotency key, with the digest of what it asks for.
fn idempotency(headers: &HeaderMap, request: &impl Serialize) -> Result<Option<Idempotency>, ApiError> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| {
        (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let (Some(key), None) = (key, values.next()) else {
        let detail = format!("`Idempotency-Key` takes 1 to {KEY_BYTES_MAX} visible ASCII characters, once");
        return Err(ApiError::invalid(detail));
    };
    let request = serde_json::to_vec(request).map_err(|error| ApiError::internal(&error))?;
    Ok(Some(Idempotency { key: key.into(), request: Digest::of(&request) }))
}

/// The pack run that an earlier request under the same key has started.
async fn made_before(app: &App, idempotency: Option<&Idempotency>) -> Result<Option<PackRunId>, ApiError> {
    let Some(Idempotency { key, request }) = idempotency.cloned() else { return Ok(None) };
    app.read(move |reader| match reader.keyed_run(&key)? {
        Some((id, known)) if known == request => Ok(Some(id)),
        Some(_) => Err(Refusal::KeyReused(key).into()),
        None => Ok(None),
    })
    .await
}

/// A new pack run that does what an ended one did. The plan is the old one's: what it was rendered from may be
/// refused by a later release.
fn repetition(reader: &Reader, id: PackRunId, failed: bool) -> Result<NewRun, ApiError> {
    let run = body::pack_run(reader, id)?;
    if !run.state.is_terminal() {
        let detail = format!("pack run {id} is {}; cancel it, or wait until it has ended", run.state);
        return Err(ApiError::new(ProblemKind::NotEnded, detail));
    }
    let mut plan = reader.plan(id)?.ok_or(StoreError::Damaged { table: "plans", source: None })?;
    let old = if failed { succeeded(reader, id)? } else { BTreeMap::new() };
    let mut reused = BTreeMap::new();
    for planned in plan.jobs.iter_mut().flat_map(|job| &mut job.runs) {
        let new = JobRunId::generate();
        if let Some(original) = old.get(&planned.id) {
            reused.insert(new, *original);
        }
        planned.id = new;
    }
    Ok(NewRun {
        id: PackRunId::generate(),
        pack: run.pack,
        version: run.version,
        params: Arc::new(run.params),
        plan: Arc::new(plan),
        idempotency: None,
        retry_of: Some(id),
        reused,
    })
}

/// The job runs of a pack run that succeeded, each with the one that did: itself, or where it took its success over.
/// That one took nothing over, so what it left is found in one step.
fn succeeded(reader: &Reader, id: PackRunId) -> Result<BTreeMap<JobRunId, JobRunId>, ApiError> {
    let rows = reader.job_runs(id)?.into_iter().filter(|row| row.state == JobRunState::Succeeded);
    Ok(rows.map(|row| (row.id, row.reused_from.unwrap_or(row.id))).collect())
}
