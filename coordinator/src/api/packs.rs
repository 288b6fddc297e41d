//! The registry: packs are registered as files and given back byte for byte, and archived in `archive`.

mod archive;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use packrun_protocol::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Operator, Viewer};
use super::extract::{PathOf, QueryOf, media_type, whole};
use super::paging::{self, List, Paged};
use super::problem::{ApiError, ProblemKind};
use super::types::schema::{Pack, PackForm};
use super::types::{PackContent, PackVersion, Page, schema};
use super::{Api, App};
use crate::core::event::Command;
use crate::core::outcome::Reply;
use crate::engine::EngineError;
use crate::engine::{Reader, VersionInfo};
use crate::pack::Format;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(register, list))
        .routes(routes!(newest))
        .routes(routes!(versions))
        .routes(routes!(version))
        .routes(routes!(archive::pack))
        .routes(routes!(archive::restored_pack))
        .routes(routes!(archive::version))
        .routes(routes!(archive::restored_version))
}

/// What of a pack version is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Form {
    /// All of it, as JSON.
    #[default]
    Json,
    /// The file.
    Source,
}

#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ArchiveQuery {
    /// Whether what is archived is listed too.
    #[serde(default)]
    archived: bool,
    /// Most items: 1 to 500; 50 without.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct FormQuery {
    /// `source` for the file as it was registered; without, what `Accept` asks for.
    #[param(inline)]
    format: Option<Form>,
}

/// Registers a pack file. Its text is the body; the newest version's content again makes no new version, unless that
/// one is archived.
#[utoipa::path(
    post, path = "/v1/packs", tag = "packs", operation_id = "register_pack",
    request_body(
        description = "The file, at most 8 MiB unless the coordinator is set to take more or less",
        content((Pack = "application/yaml"), (Pack = "application/toml"), (Pack = "application/json")),
    ),
    responses(
        (status = 201, description = "A new version", body = PackVersion, headers(("Location" = String, description = "Where the version is"))),
        (status = 200, description = "The newest version says the same", body = PackVersion, headers(("Location" = String, description = "Where the version is"))),
        (status = 422, description = "Not a valid pack"),
    ),
)]
async fn register(_: Operator, State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let (parts, body): (_, Body) = request.into_parts();
    let media_type = media_type(&parts)?;
    let source = whole(body, api.app.limits.packs.file_bytes).await?;
    let format = media_type.as_deref().and_then(Format::of_media_type).ok_or_else(|| {
        let detail = "a pack file is application/yaml, application/toml or application/json; say which in \
                      `Content-Type`";
        ApiError::new(ProblemKind::UnsupportedMediaType, detail)
    })?;
    let checked = api.planner.check(format, source.clone()).await?;
    let name = checked.name.clone();
    let command = Command::RegisterPack {
        name: checked.name,
        digest: checked.digest,
        source: source.as_ref().into(),
        format,
        canonical: checked.canonical.into_bytes().into(),
    };
    let Reply::Registered { version, created } = api.app.engine.command(command).await? else {
        return Err(EngineError::Unavailable.into());
    };
    let location = format!("/v1/packs/{name}/versions/{version}");
    let registered = api.app.read(move |reader| pack_version(reader, &name, version)).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(LOCATION, location)], Json(registered)).into_response())
}

/// All packs that are not archived, each by its newest version that is not, sorted by name.
#[utoipa::path(
    get, path = "/v1/packs", tag = "packs", operation_id = "list_packs", params(ArchiveQuery),
    responses((status = 200, description = "A page of them", body = Page<PackVersion>)),
)]
async fn list(
    _: Viewer,
    State(app): State<App>,
    uri: Uri,
    QueryOf(query): QueryOf<ArchiveQuery>,
) -> Result<Paged<PackVersion>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let name_of = |key: &[u8]| std::str::from_utf8(key).ok()?.parse::<Name>().ok();
    let after = paging::key(List::Packs, query.cursor.as_deref(), name_of)?;
    let page = app.read(move |reader| {
        let mut heads = Vec::new();
        for (name, head) in reader.pack_heads()? {
            let live = reader.archived(&name)?.newest_other(head);
            heads.extend(
                live.or(query.archived.then_some(head)).map(|version| (name.clone(), (name, version))),
            );
        }
        let behind = |name: &Name| after.as_ref().is_none_or(|after| name > after);
        let heads = paging::page(List::Packs, heads, behind, limit, |name| name.as_str().as_bytes().to_vec());
        let items = heads.items.iter().map(|(name, version)| pack_version(reader, name, *version));
        Ok(Page { items: items.collect::<Result<_, _>>()?, next_cursor: heads.next_cursor })
    });
    Ok(Paged::new(page.await?, uri))
}

/// A pack's newest version that is not archived, or the newest if all are.
#[utoipa::path(
    get, path = "/v1/packs/{name}", tag = "packs", operation_id = "show_pack",
    params(("name" = schema::Name, Path, description = "The pack"), FormQuery,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag`s of what the client has")),
    responses(
        (status = 200, description = "All of it as JSON, or the file", content(
            (PackForm = "application/json"), (Pack = "application/yaml"), (Pack = "application/toml"),
        ), headers(("ETag" = String, description = "The version's digest and the form, quoted"))),
        (status = 304, description = "It is what `If-None-Match` says", headers(("ETag" = String))),
        (status = 404, description = "No such pack"),
        (status = 406, description = "The file is in none of the accepted media types"),
    ),
)]
async fn newest(
    _: Viewer,
    State(app): State<App>,
    PathOf(name): PathOf<Name>,
    QueryOf(query): QueryOf<FormQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.read(move |reader| {
        let version = head(reader, &name)?;
        content(reader, &name, version, query.format, &headers)
    })
    .await
}

/// All versions of a pack that are not archived, newest first.
#[utoipa::path(
    get, path = "/v1/packs/{name}/versions", tag = "packs", operation_id = "list_pack_versions",
    params(("name" = schema::Name, Path, description = "The pack"), ArchiveQuery),
    responses(
        (status = 200, description = "A page of them", body = Page<PackVersion>),
        (status = 404, description = "No such pack"),
    ),
)]
async fn versions(
    _: Viewer,
    State(app): State<App>,
    uri: Uri,
    PathOf(name): PathOf<Name>,
    QueryOf(query): QueryOf<ArchiveQuery>,
) -> Result<Paged<PackVersion>, ApiError> {
    let limit = paging::limit(query.limit)?;
    let number_of = |key: &[u8]| key.try_into().ok().map(u32::from_be_bytes);
    let before = paging::key(List::Versions, query.cursor.as_deref(), number_of)?;
    let page = app.read(move |reader| {
        let newest = reader.pack_head(&name)?.ok_or_else(|| unknown(&name))?;
        let archived = reader.archived(&name)?;
        let newest = before.map_or(newest, |before| before.saturating_sub(1).min(newest));
        let listed = |number: &u32| query.archived || !archived.contains(*number);
        let numbers = (1..=newest).rev().filter(listed).map(|number| (number, number));
        let bytes_of = |number: &u32| number.to_be_bytes().to_vec();
        let page = paging::page(List::Versions, numbers, |_| true, limit, bytes_of);
        let items = page.items.iter().map(|number| pack_version(reader, &name, *number));
        Ok(Page { items: items.collect::<Result<_, _>>()?, next_cursor: page.next_cursor })
    });
    Ok(Paged::new(page.await?, uri))
}

/// One version of a pack.
#[utoipa::path(
    get, path = "/v1/packs/{name}/versions/{version}", tag = "packs", operation_id = "show_pack_version",
    params(
        ("name" = schema::Name, Path, description = "The pack"),
        ("version" = u32, Path, description = "The version", minimum = 1, maximum = 4_294_967_295_u32, example = 1),
        FormQuery,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag`s of what the client has"),
    ),
    responses(
        (status = 200, description = "All of it as JSON, or the file", content(
            (PackForm = "application/json"), (Pack = "application/yaml"), (Pack = "application/toml"),
        ), headers(("ETag" = String, description = "The version's digest and the form, quoted"))),
        (status = 304, description = "It is what `If-None-Match` says", headers(("ETag" = String))),
        (status = 404, description = "No such version"),
        (status = 406, description = "The file is in none of the accepted media types"),
    ),
)]
async fn version(
    _: Viewer,
    State(app): State<App>,
    PathOf((name, version)): PathOf<(Name, u32)>,
    QueryOf(query): QueryOf<FormQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.read(move |reader| content(reader, &name, version, query.format, &headers)).await
}

/// The number of a pack's newest version that is not archived, or of the newest if all are.
pub(super) fn head(reader: &Reader, name: &Name) -> Result<u32, ApiError> {
    let newest = reader.pack_head(name)?.ok_or_else(|| unknown(name))?;
    Ok(reader.archived(name)?.newest_other(newest).unwrap_or(newest))
}

fn unknown(name: &Name) -> ApiError {
    ApiError::not_found(format!("there is no pack `{name}`; register it first"))
}

fn version_info(reader: &Reader, name: &Name, version: u32) -> Result<VersionInfo, ApiError> {
    let unknown = || ApiError::not_found(format!("pack `{name}` has no version {version}"));
    reader.version(name, version)?.ok_or_else(unknown)
}

fn pack_version(reader: &Reader, name: &Name, version: u32) -> Result<PackVersion, ApiError> {
    let info = version_info(reader, name, version)?;
    Ok(PackVersion {
        name: name.clone(),
        version,
        digest: info.digest,
        media_type: info.format.media_type().to_owned(),
        registered_at: info.registered_at,
        archived: reader.archived(name)?.contains(version),
    })
}

fn content(
    reader: &Reader,
    name: &Name,
    version: u32,
    form: Option<Form>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let info = version_info(reader, name, version)?;
    let form = form.map_or_else(|| accepted(headers, info.format), Ok)?;
    // The two forms of one version are different bodies, and have different tags.
    let tag = match form {
        Form::Json => format!("\"{}+json\"", info.digest),
        Form::Source => format!("\"{}\"", info.digest),
    };
    if is_known(headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let unknown = || ApiError::not_found(format!("pack `{name}` has no version {version}"));
    let source = reader.source(name, version)?.ok_or_else(unknown)?;
    if form == Form::Source {
        let media_type = HeaderValue::from_static(info.format.media_type());
        return Ok(([(CONTENT_TYPE, media_type)], [(ETAG, tag)], source).into_response());
    }
    let canonical = reader.canonical(name, version)?.ok_or_else(unknown)?;
    let definition = serde_json::from_slice(&canonical).map_err(|error| ApiError::internal(&error))?;
    let source = String::from_utf8(source).map_err(|error| ApiError::internal(&error))?;
    let body = PackContent { version: pack_version(reader, name, version)?, source, definition };
    Ok(([(ETAG, tag)], Json(body)).into_response())
}

/// The form that `Accept` asks for: the file when it names that file's media type, JSON when it takes that.
fn accepted(headers: &HeaderMap, format: Format) -> Result<Form, ApiError> {
    let mut values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if values.peek().is_none() {
        return Ok(Form::Json);
    }
    let ranges: Vec<&str> = values
        .flat_map(|value| value.split(','))
        .map(|range| range.split(';').next().unwrap_or_default().trim())
        .collect();
    if format != Format::Json && ranges.iter().any(|range| Format::of_media_type(range) == Some(format)) {
        return Ok(Form::Source);
    }
    let is_json = |range: &&str| {
        matches!(*range, "*/*" | "application/*") || Format::of_media_type(range) == Some(Format::Json)
    };
    if ranges.iter().any(is_json) {
        return Ok(Form::Json);
    }
    let detail = format!("there is {} and application/json", format.media_type());
    Err(ApiError::new(ProblemKind::NotAcceptable, detail))
}

/// Whether the client has the body with this tag.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}
