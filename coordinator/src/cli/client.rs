//! The REST client. Every answer is bounded, every refusal becomes an [`Error`] that says what to do, and a request
//! that may be repeated is, when its connection is lost. Every POST carries the invocation's `Idempotency-Key`.

pub mod feed;
mod refusal;
mod sse;
mod tls;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::refusal::refused;
use super::exit::Error;
use super::settings::Connection;
use crate::api::types::Page;

/// Largest JSON answer, in bytes: several times that of 20,000 job runs.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Most items of a list that is read to its end.
const ITEMS_MAX: usize = 200_000;

/// How often a request is sent at most, when its connection is lost.
const TRIES: u32 = 4;

/// How long the first pause between two tries is; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may take in all, with all tries: one that never ends is none.
const ANSWER_TIME: Duration = Duration::from_secs(300);

/// How long a silent answer is waited for. Streams send a sign of life more often.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What stands for itself in a path's segment (RFC 3986, `pchar` without what servers may read as syntax).
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Whether a request may be sent again after it may have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Doing it twice is doing it once.
    Always,
    /// Only if it surely did not arrive.
    IfUnsent,
}

/// An answer: the body as it came, and what it says.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// The body.
    pub body: String,
    /// What it says.
    pub value: T,
}

/// A client of one coordinator.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    idempotency_key: String,
}

impl Client {
    /// A client for this connection, whose POSTs carry `idempotency_key`. Nothing is sent yet.
    ///
    /// # Errors
    /// When the URL or the CA's certificate is wrong, or https is asked for without one.
    pub fn new(connection: &Connection, idempotency_key: &str) -> Result<Self, Error> {
        let server = &connection.server;
        let wrong = |why: &str| {
            Error::invalid(format!("the server's URL `{server}` {why}"))
                .hint("it looks like http://127.0.0.1:7080; see --server")
        };
        let base = Url::parse(server).map_err(|error| wrong(&format!("is none: {error}")))?;
        if base.cannot_be_a_base() || base.host().is_none() || !matches!(base.scheme(), "http" | "https") {
            return Err(wrong("is neither http://HOST:PORT nor https://HOST:PORT"));
        }
        if base.scheme() == "https" && connection.ca.is_none() {
            return Err(Error::invalid(format!("{server} can only be trusted by its CA's certificate"))
                .hint(
                    "give it by --ca FILE or PACKRUN_CA: it is ca/ca.pem in the coordinator's data folder",
                ));
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config(connection.ca.as_deref())?)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_MAX)
            .build()
            .map_err(|error| Error::invalid(format!("cannot set up a client: {}", cause(&error))))?;
        let (token, idempotency_key) = (connection.token.clone(), idempotency_key.to_owned());
        Ok(Self { http, base, token, idempotency_key })
    }

    /// Whether the token can be read on its way.
    #[must_use]
    pub fn exposes_token(&self) -> bool {
        let host = self.base.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        self.token.is_some() && self.base.scheme() == "http" && !local
    }

    /// Reads what lies at these segments of a path.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer<T>, Error> {
        let build = || self.request(Method::GET, path).query(query).header(ACCEPT, "application/json");
        self.answer(build, Repeat::Always).await
    }

    /// Sends a body as JSON.
    ///
    /// # Errors
    /// When it is refused, or the answer can't be had.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
        repeat: Repeat,
    ) -> Result<Answer<T>, Error> {
        let build = || self.request(Method::POST, path).json(body);
        self.answer(build, repeat).await
    }

    /// Sends a file of this media type; doing so twice must be doing it once.
    ///
    /// # Errors
    /// When it is refused, or the answer can't be had.
    pub async fn post_file<T: DeserializeOwned>(
        &self,
        path: &[&str],
        media_type: &str,
        content: &[u8],
    ) -> Result<Answer<T>, Error> {
        let build =
            || self.request(Method::POST, path).header(CONTENT_TYPE, media_type).body(content.to_vec());
        self.answer(build, Repeat::Always).await
    }

    /// Reads a list to its end. The body of a list of several pages is that of one with all items.
    ///
    /// # Errors
    /// When a page can't be had, or the list is endless.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer<Vec<T>>, Error> {
        let mut page = self.get::<Page<Value>>(path, query).await?;
        let mut body = page.body;
        let mut items = page.value.items;
        let several = page.value.next_cursor.is_some();
        while let Some(cursor) = page.value.next_cursor.take() {
            let query: Vec<_> = query.iter().copied().chain([("cursor", cursor.as_str())]).collect();
            page = self.get::<Page<Value>>(path, &query).await?;
            items.append(&mut page.value.items);
            if items.len() > ITEMS_MAX {
                return Err(Error::unreachable(format!("the coordinator lists more than {ITEMS_MAX} items")));
            }
        }
        if several {
            body = serde_json::json!({ "items": items, "next_cursor": null }).to_string();
        }
        let value = items.into_iter().map(serde_json::from_value).collect::<Result<_, _>>();
        Ok(Answer { body, value: value.map_err(|error| misread(&error))? })
    }

    /// Sends a GET once and gives the answer with its body unread, if the status is a success.
    ///
    /// # Errors
    /// When there is no answer, or a refusal.
    pub(super) async fn open(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        headers: HeaderMap,
    ) -> Result<Response, Failure> {
        match self.request(Method::GET, path).query(query).headers(headers).send().await {
            Ok(response) if response.status().is_success() => Ok(response),
            Ok(response) => Err(Failure::Refused(refused(response).await)),
            Err(error) => Err(Failure::Lost(cause(&error))),
        }
    }

    /// The error of having lost the coordinator, for this reason.
    pub(super) fn lost(&self, why: &str) -> Error {
        Error::unreachable(format!("cannot reach the coordinator at {}: {why}", self.base))
            .hint("is it running? another address is given by --server URL or PACKRUN_SERVER")
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut text = self.base.path().trim_end_matches('/').to_owned();
        for segment in path {
            text.push('/');
            text.extend(utf8_percent_encode(segment, SEGMENT));
        }
        let mut url = self.base.clone();
        url.set_path(&text);
        let mut request = self.http.request(method.clone(), url);
        if method == Method::POST {
            request = request.header("idempotency-key", &self.idempotency_key);
        }
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        build: impl Fn() -> RequestBuilder,
        repeat: Repeat,
    ) -> Result<Answer<T>, Error> {
        let mut pause = PAUSE;
        let mut tries = 1;
        let deadline = Instant::now() + ANSWER_TIME;
        let body = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let lost = match build().timeout(left).send().await {
                Ok(response) if !response.status().is_success() => {
                    return Err(match refused(response).await {
                        Refusal::Final(error) | Refusal::Passing(error) => error,
                    });
                }
                Ok(response) if !is_json(&response) => return Err(misread(&"it is not JSON")),
                Ok(response) => match body(response, BODY_BYTES_MAX).await {
                    Ok(body) => break body,
                    Err(Failure::Refused(Refusal::Final(error) | Refusal::Passing(error))) => {
                        return Err(error);
                    }
                    Err(Failure::Lost(why)) => (why, false),
                },
                Err(error) => (cause(&error), error.is_connect()),
            };
            let (why, unsent) = lost;
            if repeat == Repeat::IfUnsent && !unsent {
                let error = Error::unreachable(format!("the connection was lost before the answer: {why}"));
                return Err(error.hint("it may have been done: look before you repeat it"));
            }
            if tries == TRIES || Instant::now() + pause >= deadline {
                return Err(self.lost(&why));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            tries += 1;
        };
        let value = serde_json::from_slice(&body).map_err(|error| misread(&error))?;
        Ok(Answer { body: String::from_utf8(body).map_err(|error| misread(&error))?, value })
    }
}

/// Whether an answer says that it is JSON.
fn is_json(response: &Response) -> bool {
    let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type
        .is_some_and(|text| text.split(';').next().is_some_and(|text| text.trim() == "application/json"))
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no answer, or not all of it.
    Lost(String),
    /// The coordinator refused.
    Refused(Refusal),
}

/// A refusal.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Asking again is of no use.
    Final(Error),
    /// It may go away by itself.
    Passing(Error),
}

/// The body of an answer, which may have so many bytes.
async fn body(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::Lost(cause(&error)))? {
        if body.len() + chunk.len() > bytes_max {
            let error = Error::unreachable(format!("the answer has more than {bytes_max} bytes"));
            return Err(Failure::Refused(Refusal::Final(error)));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn misread(error: &dyn std::fmt::Display) -> Error {
    Error::unreachable(format!("the answer is none that this version of packrun knows: {error}"))
        .hint("does --server name a packrun coordinator, and of this version?")
}

/// What is at the bottom of an error: what wraps it says only that there was one.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut bottom: &dyn std::error::Error = error;
    while let Some(source) = bottom.source() {
        bottom = source;
    }
    bottom.to_string()
}
