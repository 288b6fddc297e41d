//! Every route × every role.

use std::collections::BTreeMap;

use packrun_protocol::id::PackRunId;
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::site::{BEARERS, Site, send};
use crate::core::change::Role::{self, Admin, Operator, Viewer};

/// Who may use which route at least. A route that is not here fails the test.
const ROUTES: &[(&str, &str, Option<Role>)] = &[
    ("get", "/healthz", None),
    ("get", "/openapi.json", None),
    ("get", "/readyz", None),
    ("get", "/v1/agents", Some(Viewer)),
    ("get", "/v1/agents/{agent}", Some(Viewer)),
    ("get", "/v1/events", Some(Viewer)),
    ("get", "/v1/pack-runs", Some(Viewer)),
    ("get", "/v1/pack-runs/{id}", Some(Viewer)),
    ("get", "/v1/pack-runs/{id}/artifacts", Some(Viewer)),
    ("get", "/v1/pack-runs/{id}/artifacts/{key}/{path}", Some(Viewer)),
    ("get", "/v1/pack-runs/{id}/logs", Some(Viewer)),
    ("get", "/v1/pack-runs/{id}/stream", Some(Viewer)),
    ("get", "/v1/pack-schema.json", None),
    ("get", "/v1/packs", Some(Viewer)),
    ("get", "/v1/packs/{name}", Some(Viewer)),
    ("get", "/v1/packs/{name}/versions", Some(Viewer)),
    ("get", "/v1/packs/{name}/versions/{version}", Some(Viewer)),
    ("get", "/v1/runs/{id}", Some(Viewer)),
    ("get", "/v1/runs/{id}/logs", Some(Viewer)),
    ("get", "/v1/status", Some(Viewer)),
    ("get", "/v1/tokens", Some(Admin)),
    ("post", "/v1/agents/{agent}/drain", Some(Admin)),
    ("post", "/v1/agents/{agent}/resume", Some(Admin)),
    ("post", "/v1/agents/{agent}/revoke", Some(Admin)),
    ("post", "/v1/join-tokens", Some(Admin)),
    ("post", "/v1/pack-runs", Some(Operator)),
    ("post", "/v1/pack-runs/{id}/cancel", Some(Operator)),
    ("post", "/v1/pack-runs/{id}/retry", Some(Operator)),
    ("post", "/v1/packs", Some(Operator)),
    ("post", "/v1/packs/{name}/archive", Some(Admin)),
    ("post", "/v1/packs/{name}/unarchive", Some(Admin)),
    ("post", "/v1/packs/{name}/versions/{version}/archive", Some(Admin)),
    ("post", "/v1/packs/{name}/versions/{version}/unarchive", Some(Admin)),
    ("post", "/v1/runs/{id}/cancel", Some(Operator)),
    ("post", "/v1/tokens", Some(Admin)),
    ("post", "/v1/tokens/{id}/revoke", Some(Admin)),
];

#[tokio::test]
async fn every_route_lets_in_who_may_use_it_and_nobody_else() {
    let site = Site::start().await;
    let document: Value = site.get("/openapi.json").await.json();
    let mut routes = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            routes.insert((method.as_str(), path.as_str()), ());
        }
    }
    for (method, path, needed) in ROUTES {
        assert!(routes.remove(&(*method, *path)).is_some(), "{method} {path} is not in the document");
        let asked = path
            .replace("{id}", &PackRunId::generate().to_string())
            .replace("{agent}", "nobody")
            .replace("{name}", "nothing")
            .replace("{key}", "job")
            .replace("{path}", "file")
            .replace("{version}", "1");
        for bearer in BEARERS {
            let method: Method = method.to_uppercase().parse().unwrap();
            let request = site.request(bearer, method.clone(), &asked);
            // What no route takes: whoever may not use it is told so before his body is looked at.
            let request = if method == Method::POST { request.json(&json!(["?"])) } else { request };
            if *path == "/v1/events" && bearer.is_some() {
                // It doesn't end.
                assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
                continue;
            }
            let answer = send(request).await;
            let expected = match (needed, bearer) {
                (Some(_), None) => Some((StatusCode::UNAUTHORIZED, "unauthenticated")),
                (Some(needed), Some(role)) if role < *needed => Some((StatusCode::FORBIDDEN, "forbidden")),
                _ => None,
            };
            match expected {
                Some(expected) => {
                    assert_eq!(
                        (answer.status, answer.problem().as_str()),
                        expected,
                        "{method} {path} {bearer:?}"
                    );
                    let challenged = answer.header(WWW_AUTHENTICATE).starts_with("Bearer");
                    assert_eq!(challenged, expected.0 == StatusCode::UNAUTHORIZED);
                }
                None => assert!(
                    ![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status)
                        && !answer.status.is_server_error(),
                    "{method} {path} {bearer:?}: {answer:?}"
                ),
            }
        }
    }
    assert_eq!(routes.keys().collect::<Vec<_>>(), Vec::<&(&str, &str)>::new(), "who may use these?");
}
