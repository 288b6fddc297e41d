//! What pages of log entries have in common: their limits, and the forms they are answered in.

use axum::http::header::{ACCEPT, CONTENT_TYPE, LINK};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use packrun_protocol::block::{Entry, LogStream};
use packrun_protocol::id::AttemptId;
use serde::Deserialize;

use super::names::Names;
use crate::api::problem::ApiError;
use crate::api::types::{LogEntry, Page};
use crate::logs::ReadError;

/// Entries on a page, unless it is asked for more or less.
pub(super) const ENTRIES: u32 = 1000;

/// Most entries on a page.
const ENTRIES_MAX: u32 = 10_000;

/// A page of which the texts have this many bytes takes no more.
pub(super) const TEXT_BYTES: usize = 4 << 20;

/// How many entries a page may have.
///
/// # Errors
/// When that is none, or over the limit.
pub(super) fn limit(asked: Option<u32>) -> Result<usize, ApiError> {
    match asked.unwrap_or(ENTRIES) {
        limit @ 1..=ENTRIES_MAX => Ok(limit as usize),
        limit => Err(ApiError::invalid(format!("`limit` is 1 to {ENTRIES_MAX}, not {limit}"))),
    }
}

/// Why a log could not be read, to who asked for it.
pub(super) fn unreadable(error: &ReadError) -> ApiError {
    match error {
        ReadError::Gone(_) => ApiError::not_found("the log is no longer kept"),
        error => ApiError::internal(error),
    }
}

/// The form of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// One object with `items` and `next_cursor`.
    Json,
    /// One entry a line.
    Ndjson,
    /// The texts alone.
    Text,
}

impl Format {
    /// The one that is accepted most gladly; JSON when that is none of these.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut best = (0.0, Self::Json);
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/x-ndjson" | "application/ndjson" => Self::Ndjson,
                "text/plain" => Self::Text,
                "application/json" | "application/*" | "*/*" => Self::Json,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
            let quality = quality.unwrap_or(0.0);
            if quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Text => "text",
        }
    }

    const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

/// Entries of a page, and the one behind it, if there is one already.
pub(super) struct Entries {
    pub(super) items: Vec<(AttemptId, Entry)>,
    pub(super) then: Option<(AttemptId, Entry)>,
}

/// A page in a form, with the cursor and the address of the next.
pub(super) fn answer(
    entries: &Entries,
    names: &Names,
    format: Format,
    next: Option<(String, String)>,
) -> Result<Response, ApiError> {
    let (next_cursor, address) = next.unzip();
    let shown = || entries.items.iter().filter_map(|(attempt, entry)| names.entry(*attempt, entry));
    let failed = |error: serde_json::Error| ApiError::internal(&error);
    let body = match format {
        Format::Json => {
            serde_json::to_vec(&Page::<LogEntry> { items: shown().collect(), next_cursor }).map_err(failed)?
        }
        Format::Ndjson => {
            let mut body = Vec::new();
            for entry in shown() {
                serde_json::to_writer(&mut body, &entry).map_err(failed)?;
                body.push(b'\n');
            }
            body
        }
        Format::Text => text(entries),
    };
    let mut response = ([(CONTENT_TYPE, format.media_type())], body).into_response();
    if let Some(address) = address {
        let link = HeaderValue::from_str(&format!("<{address}>; rel=\"next\""));
        response.headers_mut().insert(LINK, link.map_err(|error| ApiError::internal(&error))?);
    }
    Ok(response)
}

/// The lines, as they were written. Pieces of one line are joined where nothing came between them.
fn text(entries: &Entries) -> Vec<u8> {
    let place =
        |(attempt, entry): &(AttemptId, Entry)| -> (AttemptId, LogStream) { (*attempt, entry.stream) };
    let mut body = Vec::new();
    for (index, item) in entries.items.iter().enumerate() {
        body.extend_from_slice(&item.1.text);
        let next = entries.items.get(index + 1).or(entries.then.as_ref());
        let goes_on = item.1.continued && next.is_none_or(|next| place(next) == place(item));
        if !goes_on {
            body.push(b'\n');
        }
    }
    body
}
