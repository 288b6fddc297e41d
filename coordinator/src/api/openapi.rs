//! The OpenAPI document beside its routes: what it is about, how to authenticate, and what any request may be
//! answered with, so that a route says only what is its own.

use bytes::Bytes;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema as _};

use super::problem::{PROBLEM_JSON, ProblemKind};
use super::types::{ArtifactEvent, EndEvent, Fault, LogEntry, Problem, StateEvent};

/// The name of the security scheme.
const SCHEME: &str = "token";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "packrun",
        description = "Packs of jobs, their runs, logs and artifacts.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    // The data of events is named by no route.
    components(schemas(Problem, Fault, ArtifactEvent, EndEvent, LogEntry, StateEvent)),
    tags(
        (name = "packs", description = "The registry of packs"),
        (name = "runs", description = "Pack runs, their job runs and attempts"),
        (name = "agents", description = "Agents, and tokens for those that are to join"),
        (name = "tokens", description = "Tokens for this API"),
        (name = "coordinator", description = "How the coordinator is"),
    ),
)]
struct Document;

/// The document without its routes.
pub(super) fn document() -> OpenApi {
    let mut document = Document::openapi();
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("packrun")
        .description(Some("A token from `packrun tokens create`; its role is viewer, operator or admin."));
    document
        .components
        .get_or_insert_with(Components::new)
        .add_security_scheme(SCHEME, SecurityScheme::Http(scheme.build()));
    document
}

/// Adds to all operations what any may be answered with.
pub(super) fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            complete_operation(path.starts_with("/v1/"), operation);
        }
    }
}

fn complete_operation(takes_token: bool, operation: &mut Operation) {
    use ProblemKind::{Forbidden, Internal, InvalidRequest, Overloaded, TooLarge, Unauthenticated};
    let mut kinds = Vec::new();
    if takes_token {
        operation.security = Some(vec![SecurityRequirement::new(SCHEME, Vec::<String>::new())]);
        kinds.extend([Unauthenticated, Forbidden, Internal, Overloaded]);
    }
    if operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty()) {
        kinds.push(InvalidRequest);
    }
    if operation.request_body.is_some() {
        kinds.extend([
            InvalidRequest,
            TooLarge,
            ProblemKind::RequestTimeout,
            ProblemKind::UnsupportedMediaType,
        ]);
    }
    for kind in kinds {
        let status = kind.status().as_str().to_owned();
        operation.responses.responses.entry(status).or_insert_with(|| RefOr::T(response(kind)));
    }
}

fn response(kind: ProblemKind) -> Response {
    let schema = Ref::from_schema_name(Problem::name());
    ResponseBuilder::new()
        .description(kind.title())
        .content(PROBLEM_JSON, ContentBuilder::new().schema(Some(schema)).build())
        .build()
}

/// The document as JSON.
pub(super) fn text_of(document: &OpenApi) -> Bytes {
    serde_json::to_vec(document).unwrap_or_default().into()
}
