//! `GET /v1/pack-runs/{id}/artifacts/{key}/{path}`: the content of a file, or a part of it.
//!
//! The content is known by its digest, which is the `ETag`: who has it need not load it again, and who has a part
//! goes on there (RFC 9110: `If-None-Match`, `Range`, `If-Range`).

use std::io::SeekFrom;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, IF_RANGE, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use packrun_protocol::id::PackRunId;
use packrun_protocol::path::RelativePath;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::artifacts::find;
use crate::api::Api;
use crate::api::auth::Viewer;
use crate::api::extract::PathOf;
use crate::api::problem::{ApiError, ProblemKind};
use crate::api::types::schema;
use crate::core::event::Artifact;

/// Where it is.
pub(super) const PATH: &str = "/v1/pack-runs/{id}/artifacts/{key}/{*path}";

/// Bytes that are read from the disk at a time.
const READ_BYTES: usize = 128 << 10;

/// What of a name stands for itself in an extended parameter (RFC 8187).
const ATTRIBUTE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The content of an artifact: whole, or the part that `Range` names. `ETag` is its digest, `Packrun-Mode` its
/// permissions. Of a `Range` with several parts, or one that is none, all of it is given; a weak tag or a date in
/// `If-Range` is none that matches.
#[utoipa::path(
    get,
    path = PATH,
    tag = "runs",
    operation_id = "load_artifact",
    params(
        ("id" = schema::Id, Path, description = "The pack run"),
        ("key" = schema::JobKey, Path, description = "The job run's key, percent-encoded"),
        ("path" = schema::Path, Path, description = "The file's path, its `/` as they are"),
        ("Range" = Option<String>, Header, description = "The part: `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-COUNT`", example = "bytes=0-1023"),
        ("If-Range" = Option<String>, Header, description = "The part only if this is still the `ETag`, else all of it"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag`s of what the client has"),
    ),
    responses(
        (status = 200, description = "All of it", content_type = "application/octet-stream", headers(
            ("ETag" = String, description = "The digest of the content, quoted"),
            ("Accept-Ranges" = String, description = "`bytes`"),
            ("Content-Disposition" = String, description = "The file's name, to be saved under"),
            ("Packrun-Mode" = String, description = "Its permissions in octal, as `0755`"),
        )),
        (status = 206, description = "The part", content_type = "application/octet-stream", headers(
            ("ETag" = String, description = "The digest of the whole content, quoted"),
            ("Content-Range" = String, description = "Which part of how much: `bytes FIRST-LAST/SIZE`"),
        )),
        (status = 304, description = "The client has it", headers(("ETag" = String, description = "Its digest, quoted"))),
        (status = 404, description = "There is no such pack run, job run or file"),
        (status = 416, description = "It has no such part", headers(
            ("Content-Range" = String, description = "How much there is: `bytes */SIZE`"),
        )),
    ),
)]
pub(super) async fn content(
    _: Viewer,
    State(api): State<Api>,
    PathOf((id, key, path)): PathOf<(PackRunId, String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let none = |reason: &str| ApiError::not_found(format!("the pack run has no such artifact: {reason}"));
    let key = key.parse().map_err(|_| none("that is no key of a job run"))?;
    let path: RelativePath = path.parse().map_err(|_| none("that is no path in a workspace"))?;
    let artifact = api.planner.read(&api.app, move |reader| find(reader, id, &key, &path)).await?;
    let etag = format!("\"{}\"", artifact.content.digest);
    let described = describe(&artifact, &etag)?;
    if headers.get_all(IF_NONE_MATCH).iter().any(|value| names_etag(value, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, described).into_response());
    }
    let blob = api.app.artifacts.read(artifact.content.digest).await;
    let blob = blob.map_err(|error| ApiError::internal(&error))?;
    let mut blob = blob.ok_or_else(|| none("its content is no longer kept"))?;
    let goes_on = headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes());
    let range = headers.get(RANGE).filter(|_| goes_on).and_then(|value| value.to_str().ok());
    let (status, first, length) = match range.map_or(Part::Whole, |range| part(range, blob.bytes)) {
        Part::Whole => (StatusCode::OK, 0, blob.bytes),
        Part::Of { first, length } => (StatusCode::PARTIAL_CONTENT, first, length),
        Part::None => {
            let size = number(format!("bytes */{}", blob.bytes))?;
            let detail = format!("the artifact has {} bytes, and none of those asked for", blob.bytes);
            let none = ApiError::new(ProblemKind::RangeNotSatisfiable, detail);
            return Ok(([(CONTENT_RANGE, size)], none).into_response());
        }
    };
    blob.file.seek(SeekFrom::Start(first)).await.map_err(|error| ApiError::internal(&error))?;
    let body = Body::from_stream(ReaderStream::with_capacity(blob.file.take(length), READ_BYTES));
    let mut response = (status, described, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if status == StatusCode::PARTIAL_CONTENT {
        let last = first.saturating_add(length).saturating_sub(1);
        headers.insert(CONTENT_RANGE, number(format!("bytes {first}-{last}/{}", blob.bytes))?);
    }
    Ok(response)
}

/// What is said of the content, whoever has it. A browser saves it, and never runs it.
fn describe(artifact: &Artifact, etag: &str) -> Result<[(HeaderName, HeaderValue); 6], ApiError> {
    Ok([
        (ETAG, number(etag.to_owned())?),
        (ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        // What a newer attempt leaves takes its place.
        (CACHE_CONTROL, HeaderValue::from_static("private, no-cache")),
        (CONTENT_DISPOSITION, number(disposition(&artifact.path))?),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("packrun-mode"), number(format!("{:04o}", artifact.content.mode.bits()))?),
    ])
}

fn number(value: String) -> Result<HeaderValue, ApiError> {
    HeaderValue::try_from(value).map_err(|error| ApiError::internal(&error))
}

fn disposition(path: &RelativePath) -> String {
    let name = path.as_str().rsplit('/').next().unwrap_or("artifact");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let ascii: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", utf8_percent_encode(name, ATTRIBUTE))
}

/// Whether an `If-None-Match` names this tag; a weak one counts as well.
fn names_etag(value: &HeaderValue, etag: &str) -> bool {
    let Ok(value) = value.to_str() else { return false };
    let mut tags = value.split(',').map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The part of some content that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It has none of it.
    None,
    Of {
        first: u64,
        length: u64,
    },
    Whole,
}

/// The part that a `Range` names. What is no range, or more than one, is as if it wasn't there.
fn part(range: &str, size: u64) -> Part {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok());
    let (Some(first), Some(last)) = (number(first), number(last)) else { return Part::Whole };
    let (first, behind) = match (first, last) {
        (None, None) => return Part::Whole,
        (None, Some(count)) => (size.saturating_sub(count), size),
        (Some(first), None) => (first, size),
        (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Some(_), Some(_)) => return Part::Whole,
    };
    if first < behind { Part::Of { first, length: behind - first } } else { Part::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_part_or_nothing_of_ours() {
        let of = |first, length| Part::Of { first, length };
        for (range, expected) in [
            ("bytes=0-0", of(0, 1)),
            ("bytes=0-9", of(0, 10)),
            ("bytes=2-", of(2, 8)),
            ("bytes=5-99", of(5, 5)),
            ("bytes=-3", of(7, 3)),
            ("bytes=-99", of(0, 10)),
            ("bytes=10-", Part::None),
            ("bytes=10-11", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=5-4", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=--2", Part::Whole),
            ("lines=1-2", Part::Whole),
            ("bytes=0-18446744073709551615", of(0, 10)),
        ] {
            assert_eq!(part(range, 10), expected, "{range}");
        }
        assert_eq!(part("bytes=0-", 0), Part::None);
    }

    #[test]
    fn a_name_is_quoted_whatever_it_is() {
        let of = |path: &str| disposition(&path.parse().unwrap());
        assert_eq!(of("a/b/app-1.0"), "attachment; filename=\"app-1.0\"; filename*=UTF-8''app-1.0");
        assert_eq!(of("a\"b;ä"), "attachment; filename=\"a_b__\"; filename*=UTF-8''a%22b%3B%C3%A4");
    }
}
