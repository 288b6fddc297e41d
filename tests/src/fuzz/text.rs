//! What is written by people and other programs, and read by whoever gets it: names, paths, tokens, certificates. An
//! accepted text is shown as what it was, and a path leads nowhere but into its workspace.

use std::fmt::{Debug, Display};
use std::path::{Component, Path};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use packrun_agent::artifacts::rules::Rules;
use packrun_coordinator::api::token::ApiToken;
use packrun_protocol::cert::{AgentCertificate, Authority, der_of};
use packrun_protocol::id::{AgentId, Digest, JobRunId};
use packrun_protocol::job::{ArtifactRule, InputRule};
use packrun_protocol::join_token::JoinToken;
use packrun_protocol::limit;
use packrun_protocol::name::{JobKey, Labels, MatrixValue, Name};
use packrun_protocol::path::RelativePath;
use packrun_protocol::time::Timestamp;

use super::choice;

/// A name, key, id, digest or time is read back from what it is shown as.
pub(super) fn names(data: &[u8]) {
    let (kind, data) = choice(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    match kind % 8 {
        0 => drop(same::<Name>(text)),
        1 => drop(same::<MatrixValue>(text)),
        2 => key(text),
        3 => drop(read_back::<JobRunId>(text)),
        4 => drop(read_back::<Digest>(text)),
        5 => drop(read_back::<Timestamp>(text)),
        _ => labels(text),
    }
}

/// The value of `text`, which is shown as `text`.
fn same<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = read_back(text)?;
    assert_eq!(value.to_string(), text);
    Some(value)
}

/// The value of `text`, which is read back from what it is shown as. A refusal is fit for a terminal.
fn read_back<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let shown = value.to_string();
            assert!(shown.parse().is_ok_and(|again: T| again == value), "{text:?} is shown as {shown:?}");
            Some(value)
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains(char::is_control) && message.len() < 2048, "{message:?}");
            None
        }
    }
}

fn key(text: &str) {
    let Some(key) = same::<JobKey>(text) else { return };
    let matrix: Vec<(Name, MatrixValue)> =
        key.matrix().map(|(axis, value)| (axis.parse().unwrap(), value.parse().unwrap())).collect();
    let again = JobKey::new(&key.job().parse().unwrap(), matrix.iter().map(|(axis, value)| (axis, value)));
    assert_eq!(again.unwrap(), key);
}

fn labels(text: &str) {
    let Ok(labels) = serde_json::from_str::<Labels>(text) else { return };
    let pairs = labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(Labels::new(pairs).unwrap(), labels);
    assert!(labels.satisfy(&labels));
    assert!(!labels.to_string().contains(char::is_control));
}

/// A path has normal components only, wherever a rule sends it; a rule finds no file that the walk passes by.
pub(super) fn paths(data: &[u8]) {
    let (flags, data) = choice(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut texts = text.split('\0');
    let mut next = || texts.next().unwrap_or_default();
    let (file, pattern, other, artifact, to, name) = (next(), next(), next(), next(), next(), next());
    let Ok(file) = file.parse::<RelativePath>() else { return };
    stays_inside(&file);
    let name: Option<Name> = name.parse().ok();
    let left = [(pattern, flags & 1), (other, flags & 2)]
        .map(|(path, named)| (path, name.clone().filter(|_| named != 0)))
        .map(|(path, name)| ArtifactRule { path: path.to_owned(), name, optional: false });
    if let Ok(rules) = Rules::compile(&left) {
        for position in rules.matching(file.as_path()) {
            found(&rules, &left[position], &file);
        }
        let plain = left.iter().filter(|rule| !rule.is_glob());
        for rule in plain.filter(|rule| file.as_str() == rule.path) {
            assert!(!rules.matching(file.as_path()).is_empty(), "{rule:?} misses the file it names");
        }
    }
    let to: Option<RelativePath> = to.parse().ok();
    let from = "a".parse().unwrap();
    let input = InputRule { from, artifact: artifact.to_owned(), to, optional: false };
    if let Ok(Some(place)) = input.destination(&left, name.as_ref(), &file) {
        stays_inside(&place);
        match &input.to {
            Some(to) => assert!(place.starts_with(to), "{place} is not below {to}"),
            None => assert_eq!(place, file),
        }
    }
}

fn stays_inside(path: &RelativePath) {
    let mut components = path.as_path().components();
    assert!(components.all(|component| matches!(component, Component::Normal(_))), "{path:?}");
    assert_eq!(path.as_str().parse().as_ref(), Ok(path));
    assert_eq!(path.as_path().components().count(), path.as_str().split('/').count());
}

/// The walk looks into every folder above a file that a rule matches.
fn found(rules: &Rules<'_>, rule: &ArtifactRule, file: &RelativePath) {
    let folders: Vec<&Path> = file.as_path().ancestors().skip(1).collect();
    for (depth, folder) in folders.iter().rev().enumerate() {
        assert!(rules.reach(folder, depth), "{rule:?} matches {file}, and {folder:?} is passed by");
    }
    if let Some(anchor) = rule.anchor().unwrap() {
        assert!(file.starts_with(&anchor), "{rule:?} matches {file}, which is not below its anchor");
    }
}

/// A token is read back from what it is shown as, which is all of it.
pub(super) fn tokens(data: &[u8]) {
    let (kind, data) = choice(data);
    let sealed = || {
        let crc = crc32c::crc32c(data).to_le_bytes();
        URL_SAFE_NO_PAD.encode([data, &crc].concat())
    };
    let text = match kind % 4 {
        0 => String::from_utf8_lossy(data).into_owned(),
        1 => format!("packrun-join-{}", sealed()),
        2 => format!("packrun-{}", sealed()),
        _ => format!("packrun-join-{}", URL_SAFE_NO_PAD.encode(data)),
    };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string(), text.trim());
    }
    if let Ok(token) = text.parse::<ApiToken>() {
        assert_eq!(token.to_string(), text.trim());
        assert!(text.parse::<JoinToken>().is_err(), "a token is of one kind");
    }
}

/// No request makes the CA sign anything but a certificate of the agent it is for.
pub(super) fn certificates(data: &[u8]) {
    static CA: OnceLock<Authority> = OnceLock::new();
    let now = Timestamp::from_micros(1_795_560_636_123_456);
    let ca = CA.get_or_init(|| Authority::create(now).unwrap().0);
    let (kind, data) = choice(data);
    let pem =
        |label: &str| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(data));
    match kind % 4 {
        0 => drop(AgentCertificate::parse(data)),
        1 => request(ca, &pem("CERTIFICATE REQUEST"), now),
        2 => {
            let pem = pem("CERTIFICATE");
            assert_eq!(der_of(&pem, "certificate").ok().as_deref(), Some(data));
            drop(AgentCertificate::parse_pem(&pem));
        }
        _ => {
            let text = String::from_utf8_lossy(data);
            request(ca, &text, now);
            drop(AgentCertificate::parse_pem(&text));
        }
    }
}

fn request(ca: &Authority, request: &str, now: Timestamp) {
    let agent = AgentId::from_bytes([7; 16]);
    let Ok(certificate) = ca.issue_agent(request, agent, now, Duration::from_secs(3600)) else { return };
    let certificate = AgentCertificate::parse_pem(&certificate).unwrap();
    assert_eq!(certificate.agent, agent);
    assert!(certificate.not_before < now && certificate.not_after >= now + Duration::from_secs(3599));
    assert!(request.len() <= limit::CERTIFICATE_BYTES_MAX);
}
