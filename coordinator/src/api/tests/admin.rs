//! Agents and tokens.

use std::time::Duration;

use packrun_protocol::id::{AgentId, Digest, TokenId};
use packrun_protocol::join_token::JoinToken;
use reqwest::header::CACHE_CONTROL;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::site::{Site, send};
use crate::api::types::{Agent, AgentState, JoinTokenMade, Page, Token, TokenMade};
use crate::core::change::{Grant, Role};
use crate::core::event::Command;
use crate::core::outcome::Reply;

async fn tokens(site: &Site) -> Vec<Token> {
    send(site.request(Some(Role::Admin), Method::GET, "/v1/tokens")).await.json::<Page<Token>>().items
}

#[tokio::test]
async fn an_agent_is_shown_drained_resumed_and_revoked_by_its_id_or_name() {
    let site = Site::start().await;
    let agent = site.agent("builder", 3).await;
    for (path, action, state) in [
        ("builder".to_owned(), "drain", AgentState::Drained),
        (agent.id.to_string(), "drain", AgentState::Drained),
        (agent.id.to_string(), "resume", AgentState::Active),
        ("builder".to_owned(), "revoke", AgentState::Revoked),
        (agent.id.to_string(), "revoke", AgentState::Revoked),
    ] {
        let answer = site.post(&format!("/v1/agents/{path}/{action}"), &json!({})).await;
        let body: Agent = answer.json();
        assert_eq!((body.id, body.state), (agent.id, state), "{action} of {path}");
        let shown: Agent = site.get(&format!("/v1/agents/{path}")).await.json();
        assert_eq!((shown.id, shown.state), (agent.id, state));
        assert_eq!((shown.slots, shown.cpus, shown.memory_bytes), (Some(3), Some(64.0), Some(1 << 36)));
        assert_eq!((shown.connected, shown.labels.get("os")), (state != AgentState::Revoked, Some("linux")));
    }
    let answer = site.post("/v1/agents/builder/drain", &json!({})).await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::CONFLICT, "agent-revoked"));

    let second = site.agent("builder", 1).await;
    assert_eq!(
        site.get("/v1/agents/builder").await.json::<Agent>().id,
        second.id,
        "the name is the living one's"
    );
    site.post("/v1/agents/builder/revoke", &json!({})).await;
    assert_eq!(site.get("/v1/agents/builder").await.problem(), "not-found", "which of the two is meant?");
    for nobody in ["nobody".to_owned(), AgentId::generate().to_string()] {
        assert_eq!(site.get(&format!("/v1/agents/{nobody}")).await.problem(), "not-found");
    }
    assert_eq!(site.get("/v1/agents/NO%20NAME").await.problem(), "invalid-request");
}

#[tokio::test]
async fn pages_of_any_size_hold_every_agent_and_token_once() {
    let site = Site::start().await;
    for number in 0..5 {
        site.agent(&format!("agent-{number}"), 1).await;
    }
    for (path, count) in [("/v1/agents", 5), ("/v1/tokens", 3 + 5)] {
        for limit in [1, 2, 3, 5, 8, 9] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let path = format!("{path}?limit={limit}{cursor}");
                let answer = send(site.request(Some(Role::Admin), Method::GET, &path)).await;
                let page: Page<Value> = answer.json();
                seen.extend(page.items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
                let Some(next) = page.next_cursor else { break };
                cursor = format!("&cursor={next}");
            }
            assert_eq!(seen.len(), count, "{path} in pages of {limit}");
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), count, "{path} in pages of {limit}");
        }
    }
}

#[tokio::test]
async fn an_invited_agent_joins_once_with_what_the_token_gives_it() {
    let site = Site::start().await;
    let body = json!({ "ttl_seconds": 60, "labels": { "zone": "a" }, "name": "given" });
    let answer = site.post("/v1/join-tokens", &body).await;
    assert_eq!((answer.status, answer.header(CACHE_CONTROL)), (StatusCode::CREATED, "no-store"));
    let made: JoinTokenMade = answer.json();
    let token: JoinToken = made.token.parse().unwrap();
    assert_eq!((token.id, token.ca), (made.id, site.app.ca_fingerprint));
    let enrol = |agent| Command::EnrolAgent {
        token: token.id,
        secret: Digest::of(&token.secret.0),
        agent,
        name: "own".parse().unwrap(),
    };
    let agent = AgentId::generate();
    let enrolled = site.app.engine.command(enrol(agent)).await;
    assert_eq!(enrolled, Ok(Reply::Enrolled { name: "given".parse().unwrap() }));
    assert!(site.app.engine.command(enrol(AgentId::generate())).await.is_err());
    let shown: Agent = site.get("/v1/agents/given").await.json();
    assert_eq!((shown.id, shown.slots, shown.labels.get("zone")), (agent, None, Some("a")));

    let token = tokens(&site).await.remove(0);
    assert_eq!((token.id, token.role.as_str(), token.state.as_str()), (made.id, "join", "used"));
    let revoked = site.post(&format!("/v1/tokens/{}/revoke", made.id), &json!({})).await;
    assert_eq!(revoked.problem(), "already-ended");
    let bare = site.request(Some(Role::Admin), Method::POST, "/v1/join-tokens");
    let hour: JoinTokenMade = send(bare).await.json();
    assert!(
        hour.expires_at.since(site.app.clock.now()) > Duration::from_secs(3000),
        "an hour without a body"
    );
    for wrong in [
        json!({ "ttl_seconds": 0 }),
        json!({ "ttl_seconds": 2_592_001 }),
        json!({ "ttl_seconds": -1 }),
        json!({ "name": "No Name" }),
        json!({ "labels": { "": "x" } }),
        json!({ "labels": { "os": "x".repeat(256) } }),
        json!({ "other": 1 }),
    ] {
        assert_eq!(site.post("/v1/join-tokens", &wrong).await.problem(), "invalid-request", "{wrong}");
    }
}

#[tokio::test]
async fn a_token_works_until_it_is_revoked() {
    let site = Site::start().await;
    let made: TokenMade =
        site.post("/v1/tokens", &json!({ "role": "operator", "ttl_seconds": 60 })).await.json();
    assert_eq!((made.info.role.as_str(), made.info.state.as_str()), ("operator", "active"));
    assert!(made.info.expires_at.is_some());
    let ask = || send(site.client.get(format!("{}/v1/packs", site.url)).bearer_auth(&made.token));
    assert_eq!(ask().await.status, StatusCode::OK);
    let listed = tokens(&site).await;
    assert_eq!((listed.len(), listed[0].id), (4, made.info.id), "newest first");
    for _ in 0..2 {
        let revoked = site.post(&format!("/v1/tokens/{}/revoke", made.info.id), &json!({})).await;
        assert_eq!(revoked.json::<Token>().state, "revoked");
    }
    assert_eq!(ask().await.problem(), "unauthenticated");
    let nobody = TokenId::generate();
    assert_eq!(site.post(&format!("/v1/tokens/{nobody}/revoke"), &json!({})).await.problem(), "not-found");
    for wrong in [json!({}), json!({ "role": "root" }), json!({ "role": "viewer", "ttl_seconds": 0 })] {
        assert_eq!(site.post("/v1/tokens", &wrong).await.problem(), "invalid-request", "{wrong}");
    }
}

#[tokio::test]
async fn a_token_that_has_expired_is_worth_nothing() {
    let site = Site::start().await;
    let token = crate::api::token::ApiToken::generate().unwrap();
    let (id, secret, grant) = (token.id(), token.digest(), Grant::Api(Role::Admin));
    let command = Command::CreateToken { id, secret, grant, ttl: Some(Duration::ZERO) };
    site.app.engine.command(command).await.unwrap();
    let answer = send(site.client.get(format!("{}/v1/packs", site.url)).bearer_auth(token.to_string())).await;
    assert_eq!(answer.problem(), "unauthenticated");
    assert_eq!(tokens(&site).await[0].state, "expired");
}
