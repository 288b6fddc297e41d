//! What administrators do: `agents` are listed, drained, resumed and revoked; `tokens` are made, for agents that are
//! to join and for this API, listed and revoked.

mod agents;
mod tokens;

use utoipa_axum::router::OpenApiRouter;

use super::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    agents::routes().merge(tokens::routes())
}
