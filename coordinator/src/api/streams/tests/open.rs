//! How many streams are open, what they share, and how long they are.

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use futures_util::stream;
use packrun_protocol::id::PackRunId;

use super::super::names::Names;
use super::super::open::{Streams, guarded};
use super::client::HANGS;
use super::stage::Stage;
use crate::api::auth::Viewer;
use crate::api::problem::ProblemKind;
use crate::core::change::Role;
use crate::core::event::Command;

#[test]
fn streams_have_places() {
    let streams = Streams::at_most(1);
    let first = streams.place().unwrap();
    assert_eq!(streams.place().unwrap_err().kind(), ProblemKind::Overloaded);
    drop(first);
    streams.place().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_of_a_run_share_its_names_while_there_is_one() {
    let stage = Stage::new().await;
    let run: PackRunId = stage.run(&[("job", &[], 1, 1)]).await;
    let read = || Names::read(&stage.app.engine.read().unwrap(), run).unwrap();
    let streams = Streams::at_most(1);
    assert!(streams.known(run).is_none());
    let first = streams.share(run, read());
    assert!(Arc::ptr_eq(&first, &streams.known(run).unwrap()));
    assert!(Arc::ptr_eq(&first, &streams.share(run, read())));
    drop(first);
    assert!(streams.known(run).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_ends_when_its_readers_token_is_revoked() {
    let stage = Stage::new().await;
    let viewer = Viewer { token: stage.token.id(), role: Role::Viewer };
    let streams = Streams::at_most(1);
    let often = (viewer, stage.app.clone(), Duration::from_millis(1));
    let response = guarded(stream::pending(), often, streams.place().unwrap());
    let ended = tokio::spawn(to_bytes(response.into_body(), 1));
    stage.app.engine.command(Command::RevokeToken(stage.token.id())).await.unwrap();
    tokio::time::timeout(HANGS, ended).await.unwrap().unwrap().unwrap();
    streams.place().unwrap();
}
