//! Health, status, the OpenAPI document, and how the server listens and stops.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use packrun_protocol::cert::{Authority, COORDINATOR_NAME, der_of};
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::site::{Site, send};
use crate::api::problem::ProblemKind;
use crate::api::serve;
use crate::api::types::Status;
use crate::pack::JSON_SCHEMA;

#[tokio::test]
async fn status_counts_what_there_is() {
    let site = Site::start().await;
    let mut agent = site.agent("builder", 1).await;
    let run = site.run("name: p\njobs:\n  a: { run: 'true', matrix: { n: [1, 2, 3] } }\n").await;
    agent.start_next().await;
    let status: Status = site.get("/v1/status").await.json();
    assert_eq!((status.version.as_str(), status.epoch, status.ready), (env!("CARGO_PKG_VERSION"), 1, true));
    assert_eq!((status.pack_runs, status.queued, status.held, status.agents), (1, 2, 1, 1));
    assert_eq!((status.started_at, status.quarantined.len()), (site.app.started_at, 0));
    assert!(run.created_at >= status.started_at);
}

#[tokio::test]
async fn a_coordinator_whose_engine_has_stopped_lives_and_reads_but_is_not_ready() {
    let site = Site::start().await;
    site.register("name: p\njobs:\n  a: { run: 'true' }\n").await;
    let open = |path: &str| send(site.client.get(format!("{}{path}", site.url)));
    assert_eq!(
        (open("/healthz").await.status, open("/readyz").await.status),
        (StatusCode::OK, StatusCode::OK)
    );
    site.app.engine.stop().await;
    assert_eq!(open("/healthz").await.status, StatusCode::OK);
    let unready = open("/readyz").await;
    assert_eq!(
        (unready.status, unready.problem().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
    );
    assert_eq!(site.get("/v1/packs/p").await.status, StatusCode::OK);
    let answer = site.post("/v1/pack-runs", &json!({ "pack": "p" })).await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "unavailable"));
    assert_eq!(answer.header(reqwest::header::RETRY_AFTER), "1");
}

/// All texts at `$ref` in a document.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.insert(reference.clone());
            }
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_openapi_document_is_whole() {
    let site = Site::start().await;
    let answer = send(site.client.get(format!("{}/openapi.json", site.url))).await;
    let document: Value = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in &found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    assert!(found.contains("#/components/schemas/PackRun") && found.contains("#/components/schemas/Problem"));
    let mut operations = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = format!("{method} {path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{name} says nothing of success");
            assert!(operation["summary"].is_string(), "{name} says not what it is for");
            let closed = path.starts_with("/v1/") && path != "/v1/pack-schema.json";
            assert_eq!(closed, !operation["security"][0]["token"].is_null(), "{name}");
            // What is refused is a problem, and what is a page says where the next is.
            for (status, response) in responses.iter().filter(|(status, _)| status.starts_with(['4', '5'])) {
                let problem = &response["content"]["application/problem+json"]["schema"]["$ref"];
                assert_eq!(problem, "#/components/schemas/Problem", "{name} {status}");
            }
            let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
            if parameters.iter().any(|parameter| parameter["name"] == "cursor" && parameters.len() > 1)
                && path.ends_with('s')
            {
                assert!(responses["200"]["headers"]["Link"].is_object(), "{name}");
            }
            assert!(parameters.iter().all(|parameter| parameter["description"].is_string()), "{name}");
            assert_eq!(closed, responses.contains_key("401") && responses.contains_key("403"), "{name}");
            let ids = operation["operationId"].as_str().unwrap().to_owned();
            assert!(operations.insert(ids), "{name}: two operations have one id");
            for parameter in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let named = |known: &Value| known["name"] == parameter && known["in"] == "path";
                assert!(operation["parameters"].as_array().unwrap().iter().any(named), "{name}: {parameter}");
            }
        }
    }
}

#[tokio::test]
async fn the_document_names_every_kind_of_problem_and_what_a_pack_file_takes() {
    let site = Site::start().await;
    let open = async |path: &str| send(site.client.get(format!("{}{path}", site.url))).await;
    let document: Value = open("/openapi.json").await.json();
    let schemas = &document["components"]["schemas"];
    let kinds = schemas["ProblemType"]["enum"].as_array().unwrap().iter();
    let kinds: Vec<_> = kinds.map(|kind| kind.as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ProblemKind::ALL.iter().map(|kind| kind.urn()).collect::<Vec<_>>());
    let served = open("/v1/pack-schema.json").await;
    assert_eq!(
        (served.header(CONTENT_TYPE), &*served.body),
        ("application/schema+json", JSON_SCHEMA.as_bytes())
    );
    let body = &document["paths"]["/v1/packs"]["post"]["requestBody"]["content"]["application/yaml"];
    assert_eq!(body["schema"]["$ref"], "#/components/schemas/Pack");
    let at = schemas["Pack"]["properties"]["jobs"]["additionalProperties"]["$ref"].as_str().unwrap();
    assert!(document.pointer(&at[1..]).is_some(), "{at} leads nowhere");
}

#[tokio::test]
async fn the_server_stops_with_the_coordinator() {
    let site = Site::start().await;
    let (client, url) = (site.client.clone(), site.url.clone());
    site.stop().await;
    assert!(client.get(format!("{url}/healthz")).send().await.is_err());
}

#[tokio::test]
async fn https_is_served_with_the_callers_certificate() {
    let site = Site::start().await;
    let (authority, _) = Authority::create(site.app.clock.now()).unwrap();
    let identity = authority.issue_coordinator(site.app.clock.now(), Duration::from_secs(3600)).unwrap();
    let certificate = CertificateDer::from(der_of(&identity.certificate_pem, "CERTIFICATE").unwrap());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let served =
        tokio::spawn(serve(listener, Some(RustlsConfig::from_config(Arc::new(server))), site.app.clone()));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(der_of(authority.certificate_pem(), "CERTIFICATE").unwrap().into()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.unwrap().with_root_certificates(roots).with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).resolve(COORDINATOR_NAME, address);
    let client = client.timeout(Duration::from_secs(60)).no_proxy().build().unwrap();
    let url = format!("https://{COORDINATOR_NAME}:{}/healthz", address.port());
    assert_eq!(send(client.get(url)).await.status, StatusCode::OK);
    let plain = site.client.get(format!("http://{address}/healthz"));
    assert!(plain.send().await.is_err(), "not without TLS");
    site.app.stop.cancel();
    served.await.unwrap().unwrap();
}
