//! Where an answer leads: what in it names which other operation's path. An answer has all that its links name, so
//! lists, which may be empty, have none.

use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{OpenApi, RefOr};

/// An operation, the operation that its successful answers lead to, and what goes into which parameter there.
type LinkTo = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const PACK_RUN: &[(&str, &str)] = &[("id", "$response.body#/id")];
const JOB_RUN: &[(&str, &str)] = &[("id", "$response.body#/job_runs/0/id")];

const LINKS: &[LinkTo] = &[
    ("register_pack", "show_pack", &[("name", "$response.body#/name")]),
    ("register_pack", "list_pack_versions", &[("name", "$response.body#/name")]),
    (
        "register_pack",
        "show_pack_version",
        &[("name", "$response.body#/name"), ("version", "$response.body#/version")],
    ),
    ("start_pack_run", "show_pack_run", PACK_RUN),
    ("start_pack_run", "cancel_pack_run", PACK_RUN),
    ("start_pack_run", "follow_pack_run", PACK_RUN),
    ("start_pack_run", "list_pack_run_logs", PACK_RUN),
    ("retry_pack_run", "show_pack_run", PACK_RUN),
    ("show_pack_run", "show_run", JOB_RUN),
    ("show_pack_run", "list_run_logs", JOB_RUN),
    ("show_pack_run", "cancel_run", JOB_RUN),
    ("create_token", "revoke_token", PACK_RUN),
    ("create_join_token", "revoke_token", PACK_RUN),
];

/// Adds them to the operations' answers.
pub(super) fn add(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            add_to(operation);
        }
    }
}

fn add_to(operation: &mut Operation) {
    let id = operation.operation_id.clone().unwrap_or_default();
    for (_, to, parameters) in LINKS.iter().filter(|(from, ..)| *from == id) {
        let link = LinkBuilder::new().operation_id(*to);
        let link = parameters.iter().fold(link, |link, (name, from)| link.parameter(*name, *from)).build();
        for (status, response) in &mut operation.responses.responses {
            if let (true, RefOr::T(response)) = (matches!(status.as_str(), "200" | "201"), response) {
                response.links.insert((*to).to_owned(), RefOr::T(link.clone()));
            }
        }
    }
}
