//! The OpenAPI document beside its routes: what it is about, how to authenticate, and what any request may be
//! answered with, so that a route says only what is its own.

mod links;

use bytes::Bytes;
use serde_json::Value;
use utoipa::OpenApi as _;
use utoipa::ToSchema as _;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, ContentBuilder, OpenApi, Ref, RefOr, Required, Response, ResponseBuilder};

use super::problem::{PROBLEM_JSON, ProblemKind};
use super::types::schema::{self, Pack};
use super::types::{ArtifactEvent, EndEvent, Fault, LogEntry, PackContent, Problem, StateEvent};
use crate::pack::JSON_SCHEMA;

/// The name of the security scheme.
const SCHEME: &str = "token";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "packrun",
        description = "Packs of jobs, their runs, logs and artifacts.\n\n\
            Lists are read page by page: `next_cursor`, and the address in `Link: rel=\"next\"`, lead to the next \
            page; a cursor is opaque and good for its own list only. What can't be followed is answered with a \
            problem (RFC 9457) whose `type` is stable. HEAD is answered wherever GET is; what a path doesn't take, \
            with 405 and `Allow`. A request whose head is no HTTP, or too large, is answered with 400, 414 or 431 \
            without a body, and its connection closed.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    // The data of events is named by no route, nor is what has several forms.
    components(schemas(Problem, Fault, ArtifactEvent, EndEvent, LogEntry, PackContent, StateEvent)),
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
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme.build()));
    components.schemas.extend(schema::all());
    document
}

/// Adds to all operations what any may be answered with.
pub(super) fn complete(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            complete_operation(operation);
        }
    }
    links::add(document);
}

fn complete_operation(operation: &mut Operation) {
    use ProblemKind::{Forbidden, Internal, InvalidRequest, NotFound, Overloaded, TooLarge, Unauthenticated};
    let mut kinds = Vec::new();
    // A route that is open to everybody says so.
    if operation.security.is_none() {
        operation.security = Some(vec![SecurityRequirement::new(SCHEME, Vec::<String>::new())]);
        kinds.extend([Unauthenticated, Forbidden, Internal, Overloaded]);
    }
    let mut pages = false;
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else { continue };
        absent_not_null(parameter);
        kinds.push(InvalidRequest);
        if parameter.parameter_in == ParameterIn::Path {
            kinds.push(NotFound);
        }
        pages |= parameter.name == "limit";
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
        operation.responses.responses.entry(status).or_insert_with(|| RefOr::T(described(kind.title())));
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        complete_response(status, response, pages);
    }
}

fn described(text: &str) -> Response {
    ResponseBuilder::new().description(text).build()
}

fn complete_response(status: &str, response: &mut Response, pages: bool) {
    let mut header = |name: &str, text: &str| {
        let mut header = Header::default();
        header.description = Some(text.to_owned());
        response.headers.insert(name.to_owned(), RefOr::T(header));
    };
    match status {
        "200" if pages => {
            header("Link", "The address of the next page: `<…>; rel=\"next\"`, if there is one")
        }
        "401" => header("WWW-Authenticate", "`Bearer`"),
        "503" => header("Retry-After", "After how many seconds to try again"),
        _ => {}
    }
    if status.starts_with(['4', '5']) {
        let schema = Ref::from_schema_name(Problem::name());
        let content = ContentBuilder::new().schema(Some(schema)).build();
        response.content.insert(PROBLEM_JSON.to_owned(), content.into());
    }
}

/// A parameter that need not be there is absent then, and never `null`.
fn absent_not_null(parameter: &mut Parameter) {
    let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema else { return };
    if let SchemaType::Array(types) = &object.schema_type
        && parameter.required == Required::False
        && let [only] = types.iter().filter(|of| **of != Type::Null).collect::<Vec<_>>()[..]
    {
        object.schema_type = SchemaType::Type(only.clone());
    }
}

/// The document as JSON.
///
/// # Errors
/// When it is none.
pub(super) fn text_of(document: &OpenApi) -> serde_json::Result<Bytes> {
    let mut document = serde_json::to_value(document)?;
    // A pack's own schema is kept as it is, but for where its parts lie.
    let place = format!("#/components/schemas/{}", Pack::name());
    let pack: Value = serde_json::from_str(&JSON_SCHEMA.replace("\"#/$defs/", &format!("\"{place}/$defs/")))?;
    if let Some(schema) = document.pointer_mut(&place[1..]) {
        *schema = pack;
    }
    serde_json::to_vec(&document).map(Bytes::from)
}
