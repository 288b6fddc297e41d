//! Cancellation. It can be asked for again and again: what is canceled, or about to be, is no error; what has ended
//! otherwise is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use packrun_protocol::id::{JobRunId, PackRunId};
use packrun_protocol::state::{JobRunState, PackRunState};

use super::body;
use crate::api::auth::Operator;
use crate::api::extract::PathOf;
use crate::api::problem::{ApiError, ProblemKind};
use crate::api::types::{JobRun, PackRun, schema};
use crate::api::{Api, App};
use crate::core::event::Command;
use crate::core::outcome::Refusal;
use crate::engine::EngineError;

/// Cancels a pack run with all its job runs.
#[utoipa::path(
    post, path = "/v1/pack-runs/{id}/cancel", tag = "runs", operation_id = "cancel_pack_run",
    params(("id" = schema::Id, Path, description = "The pack run")),
    responses(
        (status = 200, description = "It is canceled", body = PackRun),
        (status = 202, description = "It will be, once its agents have stopped what runs", body = PackRun),
        (status = 404, description = "No such pack run"),
        (status = 409, description = "It has ended otherwise"),
    ),
)]
pub(super) async fn pack_run(
    _: Operator,
    State(app): State<App>,
    PathOf(id): PathOf<PackRunId>,
) -> Result<(StatusCode, Json<PackRun>), ApiError> {
    let followed = is_followed(&app, Command::CancelRun(id)).await?;
    let run = app.read(move |reader| body::pack_run(reader, id)).await?;
    if !followed && run.state != PackRunState::Canceled {
        let detail = format!("pack run {id} has ended as {}", run.state);
        return Err(ApiError::new(ProblemKind::AlreadyEnded, detail));
    }
    Ok((status(run.state.is_terminal()), Json(run)))
}

/// Cancels one job run.
#[utoipa::path(
    post, path = "/v1/runs/{id}/cancel", tag = "runs", operation_id = "cancel_run",
    params(("id" = schema::Id, Path, description = "The job run")),
    responses(
        (status = 200, description = "It is canceled", body = JobRun),
        (status = 202, description = "It will be, once its agent has stopped it", body = JobRun),
        (status = 404, description = "No such job run"),
        (status = 409, description = "It has ended otherwise"),
    ),
)]
pub(super) async fn job_run(
    _: Operator,
    State(api): State<Api>,
    PathOf(id): PathOf<JobRunId>,
) -> Result<(StatusCode, Json<JobRun>), ApiError> {
    let followed = is_followed(&api.app, Command::CancelJobRun(id)).await?;
    let job_run = super::job_run(&api, id).await?;
    if !followed && job_run.state != JobRunState::Canceled {
        let detail = format!("job run {id} has ended as {}", job_run.state);
        return Err(ApiError::new(ProblemKind::AlreadyEnded, detail));
    }
    Ok((status(job_run.state.is_terminal()), Json(job_run)))
}

/// Whether the core has something to cancel.
async fn is_followed(app: &App, command: Command) -> Result<bool, ApiError> {
    match app.engine.command(command).await {
        Ok(_) => Ok(true),
        Err(EngineError::Refused(Refusal::NotLive(_) | Refusal::NotLiveJob(_))) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

const fn status(ended: bool) -> StatusCode {
    if ended { StatusCode::OK } else { StatusCode::ACCEPTED }
}
