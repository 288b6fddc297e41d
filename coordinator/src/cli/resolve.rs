//! What people write, to what the API wants: names and prefixes of ids to the one thing they stand for.

use std::fmt::Display;

use packrun_protocol::id::PackRunId;

use super::client::Client;
use super::exit::Error;
use crate::api::types::{Agent, JobRun, PackRun, Page, Token};

/// Shortest part of an id.
const PREFIX_BYTES_MIN: usize = 4;

/// Most things that are named when more than one is meant.
const NAMED_MAX: usize = 5;

/// Most pages of the list of pack runs that are looked through for a prefix.
const PAGES_MAX: usize = 200;

/// Ids are compared as they are printed, in lower case.
fn part(text: &str, what: &str, list: &str) -> Result<String, Error> {
    let prefix = text.to_ascii_lowercase();
    let valid = prefix.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if valid && prefix.len() >= PREFIX_BYTES_MIN {
        return Ok(prefix);
    }
    Err(Error::invalid(format!(
        "`{text}` is no id of {what}, nor the start or the end of one with 4 or more characters"
    ))
    .hint(format!("`{list}` shows them")))
}

/// The pack run with this id, or the only one whose id starts so, or else the only one whose id ends so: ids of one
/// time start alike.
///
/// # Errors
/// When there is none, or more than one, or the list can't be had.
pub async fn pack_run(client: &Client, text: &str) -> Result<PackRunId, Error> {
    const LIST: &str = "packrun runs list";
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let prefix = part(text, "a pack run", LIST)?;
    let (mut found, mut ending): (Vec<PackRun>, Vec<PackRun>) = (Vec::new(), Vec::new());
    let mut cursor: Option<String> = None;
    let mut last: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let query = [("limit", "500")].into_iter().chain(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let query: Vec<_> = query.collect();
        let page = client.get::<Page<PackRun>>(&["v1", "pack-runs"], &query).await?.value;
        // Ids ascend with time and the list begins with the newest, so nothing starts so behind the prefix. Where
        // the order is another, all pages are read.
        let ids: Vec<_> = page.items.iter().map(|run| run.id.to_string()).collect();
        let descends = last.iter().chain(&ids).is_sorted_by(|a, b| a > b);
        last = ids.last().cloned();
        for run in page.items {
            let id = run.id.to_string();
            if id.starts_with(&prefix) {
                found.push(run);
            } else if id.ends_with(&prefix) && ending.len() <= NAMED_MAX {
                ending.push(run);
            }
        }
        let past = descends && last.as_ref().is_some_and(|id| *id < prefix);
        cursor = page.next_cursor;
        if (past && !found.is_empty()) || found.len() > 1 || cursor.is_none() {
            break;
        }
    }
    if found.is_empty() {
        found = ending;
    }
    let described = |run: &PackRun| format!("{} ({}@{}, {})", run.id, run.pack, run.version, run.state);
    Ok(only(&found, text, "pack run", LIST, described)?.id)
}

/// The agent with this name or id, or the only one whose name or id starts so.
///
/// # Errors
/// When there is none, or more than one, or the list can't be had.
pub async fn agent(client: &Client, text: &str) -> Result<Agent, Error> {
    let mut agents = client.list::<Agent>(&["v1", "agents"], &[]).await?.value;
    if let Some(exact) = agents.iter().position(|agent| agent.name.as_str() == text || is(&agent.id, text)) {
        return Ok(agents.swap_remove(exact));
    }
    agents.retain(|agent| {
        starts(&agent.id, text) || (!text.is_empty() && agent.name.as_str().starts_with(text))
    });
    let described = |agent: &Agent| format!("{} ({})", agent.name, agent.id);
    only(&agents, text, "agent", "packrun agents list", described).cloned()
}

/// The token with this id, or the only one whose id starts so.
///
/// # Errors
/// When there is none, or more than one, or the list can't be had.
pub async fn token(client: &Client, text: &str) -> Result<Token, Error> {
    let mut tokens = client.list::<Token>(&["v1", "tokens"], &[]).await?.value;
    tokens.retain(|token| is(&token.id, text) || starts(&token.id, text));
    let described = |token: &Token| format!("{} ({}, {})", token.id, token.role, token.state);
    only(&tokens, text, "token", "packrun tokens list", described).cloned()
}

/// The job runs of a pack run that are meant: the one with this key, or all of the job with this name, or else the only
/// one whose key or id starts so.
///
/// # Errors
/// When there is none, or more than one.
pub fn job_runs<'r>(job_runs: &'r [JobRun], text: &str) -> Result<Vec<&'r JobRun>, Error> {
    let all = || job_runs.iter();
    if let Some(one) = all().find(|job_run| job_run.key.as_str() == text || is(&job_run.id, text)) {
        return Ok(vec![one]);
    }
    let of_job: Vec<_> = all().filter(|job_run| job_run.job == text).collect();
    if !of_job.is_empty() {
        return Ok(of_job);
    }
    let start = |job_run: &&JobRun| {
        starts(&job_run.id, text) || (!text.is_empty() && job_run.key.as_str().starts_with(text))
    };
    let found: Vec<_> = all().filter(start).collect();
    if found.is_empty() {
        let mut jobs: Vec<_> = all().map(|job_run| job_run.job.as_str()).collect();
        jobs.dedup();
        return Err(Error::invalid(format!("the pack run has no job `{text}`"))
            .hint(format!("its jobs: {}", jobs.join(", "))));
    }
    one_job_run(&found, text).map(|one| vec![one])
}

/// The one job run among those that are meant.
///
/// # Errors
/// When there are more.
pub fn one_job_run<'r>(found: &[&'r JobRun], text: &str) -> Result<&'r JobRun, Error> {
    only(found, text, "job run", "packrun runs show RUN", |job_run| job_run.key.to_string()).copied()
}

fn is(id: &impl Display, text: &str) -> bool {
    id.to_string().eq_ignore_ascii_case(text)
}

fn starts(id: &impl Display, text: &str) -> bool {
    text.len() >= PREFIX_BYTES_MIN && id.to_string().starts_with(&text.to_ascii_lowercase())
}

fn only<'f, T>(
    found: &'f [T],
    text: &str,
    what: &str,
    list: &str,
    described: impl Fn(&T) -> String,
) -> Result<&'f T, Error> {
    match found {
        [one] => Ok(one),
        [] => {
            Err(Error::invalid(format!("there is no {what} `{text}`")).hint(format!("`{list}` shows them")))
        }
        several => {
            let some: Vec<_> = several.iter().take(NAMED_MAX).map(described).collect();
            Err(Error::invalid(format!("`{text}` stands for more than one {what}"))
                .hint(format!("write more of one of these: {}", some.join(", "))))
        }
    }
}
