//! Pages of lists. A cursor is opaque to clients: which list it is of, and the key of the last item of its page.
//! What comes to be or goes in between moves no other item from page to page.

use axum::Json;
use axum::http::header::LINK;
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::problem::{ApiError, ProblemKind};
use super::types::Page;

/// Most items of a page.
pub(super) const LIMIT_MAX: usize = 500;

/// Items of a page when none says how many.
pub(super) const LIMIT: usize = 50;

/// Longest cursor: base64url of a byte and a name.
const CURSOR_BYTES_MAX: usize = 256;

/// The lists that have cursors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Agents = 1,
    PackRuns = 2,
    Packs = 3,
    Tokens = 4,
    Versions = 5,
}

/// Which page of a list is wanted.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// Most items: 1 to 500; 50 without.
    #[param(minimum = 1, maximum = 500)]
    pub(super) limit: Option<usize>,
    /// The `next_cursor` of the page before.
    pub(super) cursor: Option<String>,
}

/// How many items a page takes.
///
/// # Errors
/// When it is not 1 to [`LIMIT_MAX`].
pub(super) fn limit(wanted: Option<usize>) -> Result<usize, ApiError> {
    match wanted.unwrap_or(LIMIT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        limit => Err(ApiError::invalid(format!("`limit` takes 1 to {LIMIT_MAX}, not {limit}"))),
    }
}

/// The cursor behind the item of `list` with this key.
pub(super) fn cursor(list: List, key: &[u8]) -> String {
    let mut bytes = vec![list as u8];
    bytes.extend_from_slice(key);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The key in a cursor, if there is a cursor.
///
/// # Errors
/// When it is none of `list`.
pub(super) fn key<K>(
    list: List,
    cursor: Option<&str>,
    read: impl FnOnce(&[u8]) -> Option<K>,
) -> Result<Option<K>, ApiError> {
    let Some(text) = cursor else { return Ok(None) };
    let bytes = Some(text).filter(|text| text.len() <= CURSOR_BYTES_MAX);
    let bytes = bytes.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let key = bytes.as_deref().and_then(|bytes| match bytes.split_first() {
        Some((&of, key)) if of == list as u8 => read(key),
        _ => None,
    });
    let detail = "the cursor is none that this list gave; begin without one";
    key.map(Some).ok_or_else(|| ApiError::new(ProblemKind::InvalidCursor, detail))
}

/// A page out of `items`, which are sorted: those behind `after`, at most `limit`.
pub(super) fn page<T, K>(
    list: List,
    items: impl IntoIterator<Item = (K, T)>,
    is_behind: impl Fn(&K) -> bool,
    limit: usize,
    bytes_of: impl Fn(&K) -> Vec<u8>,
) -> Page<T> {
    let mut wanted = items.into_iter().filter(|(key, _)| is_behind(key)).peekable();
    let (mut page, mut last) = (Vec::new(), None);
    while page.len() < limit {
        let Some((key, item)) = wanted.next() else { break };
        page.push(item);
        last = Some(key);
    }
    let more = wanted.peek().is_some();
    let next_cursor = last.filter(|_| more).map(|key| cursor(list, &bytes_of(&key)));
    Page { items: page, next_cursor }
}

/// A page as it is answered: its JSON, and in `Link` the address of the next.
#[derive(Debug)]
pub(super) struct Paged<T> {
    page: Page<T>,
    uri: Uri,
}

impl<T> Paged<T> {
    /// The answer to a request of `uri`.
    pub(super) const fn new(page: Page<T>, uri: Uri) -> Self {
        Self { page, uri }
    }
}

impl<T: Serialize> IntoResponse for Paged<T> {
    fn into_response(self) -> Response {
        let link = self.page.next_cursor.as_deref().and_then(|cursor| next_link(&self.uri, cursor));
        let mut response = Json(self.page).into_response();
        if let Some(link) = link {
            response.headers_mut().insert(LINK, link);
        }
        response
    }
}

/// `Link` (RFC 8288) to the same list from `cursor` on.
pub(super) fn next_link(uri: &Uri, cursor: &str) -> Option<HeaderValue> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let kept = pairs.filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
    let query: String = kept.flat_map(|pair| [pair, "&"]).collect();
    HeaderValue::try_from(format!("<{}?{query}cursor={cursor}>; rel=\"next\"", uri.path())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_by_its_own_list_only() {
        let text = cursor(List::Packs, b"build");
        let read = |list, text: &str| key(list, Some(text), |key| Some(key.to_vec()));
        assert_eq!(read(List::Packs, &text), Ok(Some(b"build".to_vec())));
        for (list, text) in [(List::Agents, text.as_str()), (List::Packs, ""), (List::Packs, "é")] {
            assert_eq!(
                read(list, text).map_err(|error| error.kind()),
                Err(ProblemKind::InvalidCursor),
                "{text}"
            );
        }
        assert!(read(List::Packs, &"A".repeat(1 << 20)).is_err());
        assert_eq!(key(List::Packs, None, |_| Some(())), Ok(None));
    }

    #[test]
    fn limits_have_bounds() {
        assert_eq!((limit(None), limit(Some(1)), limit(Some(500))), (Ok(50), Ok(1), Ok(500)));
        assert!(limit(Some(0)).is_err() && limit(Some(501)).is_err());
    }

    #[test]
    fn pages_of_any_size_hold_every_item_once() {
        let items: Vec<(u32, u32)> = (0..10).map(|n| (n, n)).collect();
        for size in 1..=11 {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let behind = |key: &u32| after.is_none_or(|after| *key > after);
                let page = page(List::Tokens, items.clone(), behind, size, |key| key.to_be_bytes().to_vec());
                seen.extend(page.items);
                let Some(next) = page.next_cursor else { break };
                let bytes = |key: &[u8]| key.try_into().ok().map(u32::from_be_bytes);
                after = key(List::Tokens, Some(&next), bytes).unwrap();
            }
            assert_eq!(seen, (0..10).collect::<Vec<_>>(), "pages of {size}");
        }
    }

    #[test]
    fn a_link_keeps_the_rest_of_the_query() {
        let uri: Uri = "/v1/pack-runs?pack=a&cursor=old&limit=2".parse().unwrap();
        assert_eq!(
            next_link(&uri, "new").unwrap(),
            "</v1/pack-runs?pack=a&limit=2&cursor=new>; rel=\"next\""
        );
        assert_eq!(
            next_link(&"/v1/packs".parse().unwrap(), "new").unwrap(),
            "</v1/packs?cursor=new>; rel=\"next\""
        );
    }
}
