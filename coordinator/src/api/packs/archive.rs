//! Packs and versions that are no longer to be run: they are kept, with all that was run of them, and can be brought
//! back.

use axum::Json;
use axum::extract::State;
use packrun_protocol::name::Name;

use super::{pack_version, unknown, version_info};
use crate::api::App;
use crate::api::auth::Admin;
use crate::api::extract::PathOf;
use crate::api::problem::ApiError;
use crate::api::types::{PackVersion, schema};
use crate::core::event::Command;

/// The version that was archived or brought back; of a whole pack, the newest.
type Archiving = Result<Json<PackVersion>, ApiError>;

/// Archives all versions of a pack that there are: they are kept, and can't be run. What runs goes on. The next file
/// registered is a new version, and not archived.
#[utoipa::path(
    post, path = "/v1/packs/{name}/archive", tag = "packs", operation_id = "archive_pack",
    params(("name" = schema::Name, Path, description = "The pack")),
    responses(
        (status = 200, description = "They are archived; the newest", body = PackVersion),
        (status = 404, description = "No such pack"),
    ),
)]
pub(super) async fn pack(_: Admin, State(app): State<App>, PathOf(name): PathOf<Name>) -> Archiving {
    set_archived(&app, name, None, true).await
}

/// Lets all versions of a pack be run again.
#[utoipa::path(
    post, path = "/v1/packs/{name}/unarchive", tag = "packs", operation_id = "unarchive_pack",
    params(("name" = schema::Name, Path, description = "The pack")),
    responses(
        (status = 200, description = "None of them is archived; the newest", body = PackVersion),
        (status = 404, description = "No such pack"),
    ),
)]
pub(super) async fn restored_pack(_: Admin, State(app): State<App>, PathOf(name): PathOf<Name>) -> Archiving {
    set_archived(&app, name, None, false).await
}

/// Archives one version of a pack.
#[utoipa::path(
    post, path = "/v1/packs/{name}/versions/{version}/archive", tag = "packs",
    operation_id = "archive_pack_version",
    params(
        ("name" = schema::Name, Path, description = "The pack"),
        ("version" = u32, Path, description = "The version", minimum = 1, example = 1),
    ),
    responses(
        (status = 200, description = "It is archived", body = PackVersion),
        (status = 404, description = "No such version"),
    ),
)]
pub(super) async fn version(
    _: Admin,
    State(app): State<App>,
    PathOf((name, version)): PathOf<(Name, u32)>,
) -> Archiving {
    set_archived(&app, name, Some(version), true).await
}

/// Lets one version of a pack be run again.
#[utoipa::path(
    post, path = "/v1/packs/{name}/versions/{version}/unarchive", tag = "packs",
    operation_id = "unarchive_pack_version",
    params(
        ("name" = schema::Name, Path, description = "The pack"),
        ("version" = u32, Path, description = "The version", minimum = 1, example = 1),
    ),
    responses(
        (status = 200, description = "It is not archived", body = PackVersion),
        (status = 404, description = "No such version"),
    ),
)]
pub(super) async fn restored_version(
    _: Admin,
    State(app): State<App>,
    PathOf((name, version)): PathOf<(Name, u32)>,
) -> Archiving {
    set_archived(&app, name, Some(version), false).await
}

/// Archives a version, or all, or lets them be run again; answers with the version, or the newest.
async fn set_archived(app: &App, name: Name, version: Option<u32>, archived: bool) -> Archiving {
    let pack = name.clone();
    let shown = app.read(move |reader| {
        let newest = reader.pack_head(&pack)?.ok_or_else(|| unknown(&pack))?;
        let version = version.unwrap_or(newest);
        version_info(reader, &pack, version).map(|_| version)
    });
    let shown = shown.await?;
    app.engine.command(Command::ArchivePack { name: name.clone(), version, archived }).await?;
    app.read(move |reader| pack_version(reader, &name, shown)).await.map(Json)
}
