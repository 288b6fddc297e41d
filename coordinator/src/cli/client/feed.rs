//! The feed of a pack run: its log entries, states and artifacts as they come, to its end. A lost connection is
//! made again for as long as it takes, from where it broke off; what comes twice is given once.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use packrun_protocol::id::{AttemptNumber, PackRunId};
use packrun_protocol::name::JobKey;
use packrun_protocol::time::Timestamp;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;

use super::sse::{self, Parser};
use super::{Client, Failure, PAUSE, Refusal, cause, misread};
use crate::api::types::{ArtifactEvent, EndEvent, LogEntry, StateEvent};
use crate::cli::exit::Error;

/// Longest pause between two tries to connect.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Happened {
    /// A line was written, or a piece of one.
    Log(LogEntry),
    /// A job run, or the pack run, entered a state.
    State(StateEvent),
    /// A file was kept.
    Artifact(ArtifactEvent),
    /// The pack run ended. This is the last.
    End(EndEvent),
    /// The connection was lost, for this reason. It is being made again.
    Lost(String),
    /// The connection is there again.
    Back,
}

/// A reader of a feed.
#[derive(Debug)]
pub struct Feed<'c> {
    client: &'c Client,
    run: String,
    /// No entries are wanted from before it.
    since: Option<String>,
    response: Option<Response>,
    parser: Parser,
    last_id: Option<String>,
    pause: Duration,
    /// Whether [`Happened::Lost`] was given and [`Happened::Back`] was not.
    lost: bool,
    /// Why nothing more can be read, once what came before is given.
    failed: Option<Error>,
    seen: Seen,
}

impl<'c> Feed<'c> {
    /// The feed of a pack run from its start, without log entries from before `since`.
    #[must_use]
    pub fn new(client: &'c Client, run: PackRunId, since: Option<Timestamp>) -> Self {
        Self {
            client,
            run: run.to_string(),
            since: since.map(|since| since.to_string()),
            response: None,
            parser: Parser::default(),
            last_id: None,
            pause: PAUSE,
            lost: false,
            failed: None,
            seen: Seen::default(),
        }
    }

    /// What happens next: all that has come, at least one. Not cancel-safe: what had come may be lost.
    ///
    /// # Errors
    /// When the coordinator refuses, or sends what is no feed. A lost connection is no error.
    pub async fn next(&mut self) -> Result<Vec<Happened>, Error> {
        loop {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            let happened = self.come();
            if !happened.is_empty() {
                return Ok(happened);
            }
            if self.failed.is_some() {
                continue;
            }
            let Some(response) = &mut self.response else {
                match self.connect().await? {
                    Some(happened) => return Ok(vec![happened]),
                    None => continue,
                }
            };
            let why = match response.chunk().await {
                Ok(Some(bytes)) => {
                    self.parser.push(&bytes);
                    continue;
                }
                Ok(None) => "the coordinator ended it".to_owned(),
                Err(error) => cause(&error),
            };
            self.response = None;
            self.parser = Parser::default();
            if !mem::replace(&mut self.lost, true) {
                return Ok(vec![Happened::Lost(why)]);
            }
        }
    }

    /// What has come and is news.
    fn come(&mut self) -> Vec<Happened> {
        let mut happened = Vec::new();
        loop {
            let taken = match self.parser.next() {
                Ok(None) => return happened,
                Ok(Some(event)) => {
                    self.pause = PAUSE;
                    if event.id.is_some() {
                        self.last_id = event.id;
                    }
                    self.take(&event.kind, &event.data)
                }
                Err(sse::TooLong) => Err(misread(&"an event is longer than any may be")),
            };
            match taken {
                Ok(news) => happened.extend(news),
                Err(error) => {
                    self.failed = Some(error);
                    return happened;
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<Option<Happened>, Error> {
        if self.lost {
            // Also where a connection can be made but brings nothing.
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = self.last_id.as_ref().and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert("last-event-id", id);
        }
        let path = ["v1", "pack-runs", &self.run, "stream"];
        let since = self.since.as_deref().map(|since| ("since", since));
        let why = match self.client.open(&path, since.as_slice(), headers).await {
            Ok(response) if response.status() == StatusCode::NO_CONTENT => {
                return Err(misread(&"the feed ended without saying how"));
            }
            Ok(response) => {
                self.response = Some(response);
                return Ok(mem::take(&mut self.lost).then_some(Happened::Back));
            }
            Err(Failure::Refused(Refusal::Final(error))) => return Err(error),
            Err(Failure::Refused(Refusal::Passing(error))) => error.message,
            Err(Failure::Lost(why)) => why,
        };
        Ok((!mem::replace(&mut self.lost, true)).then_some(Happened::Lost(why)))
    }

    /// What an event says, if it is news. An event of a kind that is not known here is none.
    fn take(&mut self, kind: &str, data: &str) -> Result<Option<Happened>, Error> {
        Ok(match kind {
            "log" => {
                let entry: LogEntry = read(data)?;
                self.seen.entry(&entry.key, entry.attempt, entry.seq).then_some(Happened::Log(entry))
            }
            "state" => {
                let event: StateEvent = read(data)?;
                self.seen
                    .change(event.key.as_ref(), event.time, &event.state)
                    .then_some(Happened::State(event))
            }
            "artifact" => {
                let event: ArtifactEvent = read(data)?;
                let (key, path) = (&event.artifact.key, event.artifact.path.as_str());
                self.seen.change(Some(key), event.time, path).then_some(Happened::Artifact(event))
            }
            "end" => Some(Happened::End(read(data)?)),
            "reset" => {
                self.seen.again();
                None
            }
            _ => None,
        })
    }
}

fn read<T: DeserializeOwned>(data: &str) -> Result<T, Error> {
    serde_json::from_str(data).map_err(|error| misread(&error))
}

/// What of a feed has been given: enough to know it when the feed comes once more from its start.
#[derive(Debug, Default)]
struct Seen {
    /// The next entry of each attempt.
    next: HashMap<(JobKey, AttemptNumber), u64>,
    /// The time of the newest change of each job run and of the pack run, and what changed at that time.
    changes: HashMap<Option<JobKey>, (Timestamp, Vec<String>)>,
    /// What `changes` was when the feed began again. Changes come in order, but the clock may be set back, so
    /// only a repetition is compared by time.
    repeated: HashMap<Option<JobKey>, (Timestamp, Vec<String>)>,
}

impl Seen {
    /// Whether this entry is new. Within an attempt they come in order.
    fn entry(&mut self, key: &JobKey, attempt: AttemptNumber, seq: u64) -> bool {
        let next = self.next.entry((key.clone(), attempt)).or_default();
        let new = seq >= *next;
        if new {
            *next = seq.saturating_add(1);
        }
        new
    }

    /// Whether this change is new.
    fn change(&mut self, key: Option<&JobKey>, time: Timestamp, what: &str) -> bool {
        let key = key.cloned();
        if let Some((newest, at_newest)) = self.repeated.get(&key)
            && (time < *newest || time == *newest && at_newest.iter().any(|seen| seen == what))
        {
            return false;
        }
        let (newest, at_newest) = self.changes.entry(key).or_default();
        if *newest != time {
            *newest = time;
            at_newest.clear();
        }
        at_newest.push(what.to_owned());
        true
    }

    /// The feed begins again.
    fn again(&mut self) {
        self.repeated.extend(mem::take(&mut self.changes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_a_reset_is_given_once_and_what_came_after_is_given() {
        let (key, at): (JobKey, _) = ("test[shard=1]".parse().unwrap(), Timestamp::from_micros);
        let mut seen = Seen::default();
        for _ in 0..3 {
            let first = seen.repeated.is_empty();
            assert_eq!(seen.change(None, at(1), "running"), first);
            assert_eq!(seen.change(Some(&key), at(1), "running"), first);
            assert_eq!(seen.change(Some(&key), at(5), "a"), first);
            assert_eq!(seen.change(Some(&key), at(5), "b"), first);
            assert_eq!(seen.entry(&key, AttemptNumber::FIRST, 0), first);
            assert_eq!(seen.entry(&key, AttemptNumber::FIRST, 1), first);
            seen.again();
        }
        assert!(seen.change(Some(&key), at(5), "succeeded"), "at the same time, but another");
        assert!(seen.entry(&key, AttemptNumber::FIRST, 2));
        assert!(seen.entry(&key, AttemptNumber::FIRST.next(), 0));
    }

    #[test]
    fn a_clock_that_was_set_back_hides_no_change() {
        let mut seen = Seen::default();
        assert!(seen.change(None, Timestamp::from_micros(9), "running"));
        assert!(seen.change(None, Timestamp::from_micros(3), "completed"));
    }
}
