//! Agents, as the core has them: with what they hold and whether they are connected. A path names one by its id, or
//! by its name: of those that are not revoked no two have the same.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use packrun_protocol::id::AgentId;
use packrun_protocol::name::Name;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::{Admin, Viewer};
use crate::api::extract::{PathOf, QueryOf};
use crate::api::paging::{self, List, PageQuery, Paged};
use crate::api::problem::ApiError;
use crate::api::types::{Agent, Page};
use crate::api::{Api, App};
use crate::core::change::AgentState;
use crate::core::event::Command;
use crate::core::{AgentView, Core};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(drain))
        .routes(routes!(resume))
        .routes(routes!(revoke))
}

/// All agents, also revoked ones, in the order of their enrolment.
#[utoipa::path(
    get, path = "/v1/agents", tag = "agents", operation_id = "list_agents", params(PageQuery),
    responses((status = 200, description = "A page of them", body = Page<Agent>)),
)]
async fn list(
    _: Viewer,
    State(app): State<App>,
    uri: Uri,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Paged<Agent>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let id_of = |key: &[u8]| key.try_into().ok().map(AgentId::from_bytes);
    let after = paging::key(List::Agents, query.cursor.as_deref(), id_of)?;
    let page = app.engine.look(move |core| {
        let agents = core.agents().map(|agent| (agent.row.id, agent));
        let behind = |id: &AgentId| after.is_none_or(|after| *id > after);
        let page = paging::page(List::Agents, agents, behind, limit, |id| id.to_bytes().to_vec());
        Page { items: page.items.iter().map(body).collect(), next_cursor: page.next_cursor }
    });
    Ok(Paged::new(page.await?, uri))
}

/// One agent.
#[utoipa::path(
    get, path = "/v1/agents/{agent}", tag = "agents", operation_id = "show_agent",
    params(("agent" = String, Path, description = "Its id or its name", pattern = "^[a-z0-9][a-z0-9-]{0,62}$", example = "builder-1")),
    responses(
        (status = 200, description = "It", body = Agent),
        (status = 404, description = "No such agent"),
    ),
)]
async fn show(
    _: Viewer,
    State(app): State<App>,
    PathOf(agent): PathOf<String>,
) -> Result<Json<Agent>, ApiError> {
    app.engine.look(move |core| find(core, &agent).map(|agent| body(&agent))).await?.map(Json)
}

/// Assigns nothing more to an agent; what it runs goes on.
#[utoipa::path(
    post, path = "/v1/agents/{agent}/drain", tag = "agents", operation_id = "drain_agent",
    params(("agent" = String, Path, description = "Its id or its name", pattern = "^[a-z0-9][a-z0-9-]{0,62}$", example = "builder-1")),
    responses(
        (status = 200, description = "It is drained", body = Agent),
        (status = 404, description = "No such agent"),
        (status = 409, description = "It was revoked"),
    ),
)]
async fn drain(
    _: Admin,
    State(app): State<App>,
    PathOf(agent): PathOf<String>,
) -> Result<Json<Agent>, ApiError> {
    command(&app, agent, Command::DrainAgent).await
}

/// Assigns to a drained agent again.
#[utoipa::path(
    post, path = "/v1/agents/{agent}/resume", tag = "agents", operation_id = "resume_agent",
    params(("agent" = String, Path, description = "Its id or its name", pattern = "^[a-z0-9][a-z0-9-]{0,62}$", example = "builder-1")),
    responses(
        (status = 200, description = "It is active", body = Agent),
        (status = 404, description = "No such agent"),
        (status = 409, description = "It was revoked"),
    ),
)]
async fn resume(
    _: Admin,
    State(app): State<App>,
    PathOf(agent): PathOf<String>,
) -> Result<Json<Agent>, ApiError> {
    command(&app, agent, Command::ResumeAgent).await
}

/// Shuts an agent out for good. What it runs is tried elsewhere, or lost.
#[utoipa::path(
    post, path = "/v1/agents/{agent}/revoke", tag = "agents", operation_id = "revoke_agent",
    params(("agent" = String, Path, description = "Its id or its name", pattern = "^[a-z0-9][a-z0-9-]{0,62}$", example = "builder-1")),
    responses(
        (status = 200, description = "It is revoked", body = Agent),
        (status = 404, description = "No such agent"),
    ),
)]
async fn revoke(
    _: Admin,
    State(app): State<App>,
    PathOf(agent): PathOf<String>,
) -> Result<Json<Agent>, ApiError> {
    command(&app, agent, Command::RevokeAgent).await
}

async fn command(
    app: &App,
    agent: String,
    command: impl FnOnce(AgentId) -> Command,
) -> Result<Json<Agent>, ApiError> {
    let id = app.engine.look(move |core| find(core, &agent).map(|agent| agent.row.id)).await??;
    app.engine.command(command(id)).await?;
    app.engine.look(move |core| find(core, &id.to_string()).map(|agent| body(&agent))).await?.map(Json)
}

/// The agent with this id, or else this name.
fn find<'a>(core: &'a Core, wanted: &str) -> Result<AgentView<'a>, ApiError> {
    if let Ok(id) = wanted.parse::<AgentId>()
        && let Some(agent) = core.agents().find(|agent| agent.row.id == id)
    {
        return Ok(agent);
    }
    let name: Name = wanted.parse().map_err(|_| {
        ApiError::invalid("an agent is named by its id or its name; `packrun agents list` shows both")
    })?;
    let is_revoked = |agent: &AgentView<'_>| agent.row.state == AgentState::Revoked;
    let mut named: Vec<_> = core.agents().filter(|agent| agent.row.name == name).collect();
    named.sort_by_key(is_revoked);
    match *named.as_slice() {
        [agent] => Ok(agent),
        [agent, ..] if !is_revoked(&agent) => Ok(agent),
        [] => {
            Err(ApiError::not_found(format!("there is no agent `{name}`; `packrun agents list` names them")))
        }
        _ => Err(ApiError::not_found(format!("several agents were called `{name}`; say which by its id"))),
    }
}

fn body(agent: &AgentView<'_>) -> Agent {
    let row = agent.row;
    let capacity = row.capacity.as_ref();
    Agent {
        id: row.id,
        name: row.name.clone(),
        state: row.state,
        connected: agent.session.is_some(),
        draining: agent.declines,
        labels: capacity.map_or(&row.granted, |capacity| &capacity.labels).clone(),
        refused_labels: agent.refused(),
        slots: capacity.map(|capacity| capacity.slots),
        cpus: capacity.map(|capacity| f64::from(capacity.cpu_millis) / 1000.0),
        memory_bytes: capacity.map(|capacity| capacity.memory_bytes),
        isolation: capacity.map(|capacity| capacity.isolation),
        held: u32::try_from(agent.held).unwrap_or(u32::MAX),
        enrolled_at: row.enrolled_at,
    }
}
