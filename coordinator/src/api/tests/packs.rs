//! The registry.

use reqwest::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LINK, LOCATION};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::site::{Answer, Site, send};
use crate::api::paging::{List, cursor};
use crate::api::types::{PackContent, PackRun, PackVersion, Page, Problem};
use crate::core::change::Role;

const YAML: &str = "# kept\nname: build\njobs:\n  a: { run: 'true' }\n";
const TOML: &str = "name = \"build\"\n[jobs.a]\nrun = \"true\"\n";

async fn register(site: &Site, media_type: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = site.request(Some(Role::Operator), Method::POST, "/v1/packs");
    send(request.header(CONTENT_TYPE, media_type).body(body)).await
}

#[tokio::test]
async fn a_pack_gets_versions_and_the_same_content_is_the_same_version() {
    let site = Site::start().await;
    let first = site.register(YAML).await;
    assert_eq!((first.status, first.header(LOCATION)), (StatusCode::CREATED, "/v1/packs/build/versions/1"));
    let made: PackVersion = first.json();
    assert_eq!((made.version, made.media_type.as_str()), (1, "application/yaml"));

    let again = register(&site, "application/toml; charset=utf-8", TOML).await;
    assert_eq!(again.status, StatusCode::OK, "another file that says the same");
    let again: PackVersion = again.json();
    assert_eq!((again.version, again.digest, again.media_type), (1, made.digest, made.media_type));

    let second = site.register("name: build\njobs:\n  a: { run: 'false' }\n").await;
    assert_eq!((second.status, second.json::<PackVersion>().version), (StatusCode::CREATED, 2));
    assert_eq!(site.get("/v1/packs/build").await.json::<PackContent>().version.version, 2);
}

#[tokio::test]
async fn a_pack_is_given_back_as_it_came_or_as_json() {
    let site = Site::start().await;
    site.register(YAML).await;
    for path in ["/v1/packs/build", "/v1/packs/build/versions/1"] {
        let whole = site.get(path).await;
        let content: PackContent = whole.json();
        assert_eq!((content.source.as_str(), &content.definition["name"]), (YAML, &Value::from("build")));
        let digest = content.version.digest.to_string();

        let file = site.get(&format!("{path}?format=source")).await;
        assert_eq!((&*file.body, file.header(CONTENT_TYPE)), (YAML.as_bytes(), "application/yaml"));
        assert_eq!(file.header(ETAG), format!("\"{digest}\""));
        let known = site.request(Some(Role::Viewer), Method::GET, path).header(ACCEPT, "application/yaml");
        let known = send(known.header(IF_NONE_MATCH, file.header(ETAG))).await;
        assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));
    }
    for (accept, expected) in [
        ("application/yaml", Ok("application/yaml")),
        ("text/html, application/x-yaml;q=0.8", Ok("application/yaml")),
        ("application/json", Ok("application/json")),
        ("*/*", Ok("application/json")),
        ("application/toml", Err("not-acceptable")),
    ] {
        let request = site.request(Some(Role::Viewer), Method::GET, "/v1/packs/build");
        let answer = send(request.header(ACCEPT, accept)).await;
        match expected {
            Ok(media_type) => assert_eq!(answer.header(CONTENT_TYPE), media_type, "{accept}"),
            Err(problem) => assert_eq!(answer.problem(), problem, "{accept}"),
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_pack_file_is_said_with_its_place() {
    let site = Site::start().await;
    let answer = site.register("name: build\njobs:\n  a: { run: 'true', neds: [b] }\n").await;
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid-pack")
    );
    let problem: Problem = answer.json();
    let fault = &problem.errors[0];
    assert_eq!((fault.line, fault.column, fault.kind.as_str()), (Some(3), Some(21), "unknown_key"));
    assert_eq!(fault.suggestion.as_deref(), Some("needs"));
    for (media_type, body) in
        [("application/json", YAML), ("application/toml", YAML), ("application/yaml", "\0")]
    {
        assert_eq!(register(&site, media_type, body).await.problem(), "invalid-pack", "{media_type}");
    }
    assert_eq!(register(&site, "application/yaml", vec![0xff, 0xfe]).await.problem(), "invalid-pack");
    assert_eq!(register(&site, "text/plain", YAML).await.problem(), "unsupported-media-type");
    let without = site.request(Some(Role::Operator), Method::POST, "/v1/packs").body(YAML);
    assert_eq!(send(without).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(site.get("/v1/packs").await.json::<Page<PackVersion>>().items.len(), 0);
}

#[tokio::test]
async fn pages_of_any_size_hold_every_pack_and_version_once() {
    let site = Site::start().await;
    for number in 0..7 {
        site.register(&format!("name: pack-{number}\njobs:\n  a: {{ run: 'true' }}\n")).await;
        site.register(&format!("name: build\njobs:\n  a: {{ run: 'exit {number}' }}\n")).await;
    }
    let packs = |page: &Page<PackVersion>| {
        page.items.iter().map(|pack| (pack.name.to_string(), pack.version)).collect::<Vec<_>>()
    };
    for path in ["/v1/packs", "/v1/packs/build/versions"] {
        let all = packs(&site.get(path).await.json());
        assert!(all.len() >= 7 && all.contains(&("build".to_owned(), 7)), "{all:?}");
        for limit in [1, 2, 3, 7, 8, 500] {
            let (mut seen, mut next) = (Vec::new(), Some(format!("{path}?limit={limit}")));
            while let Some(path) = next {
                let answer = site.get(&path).await;
                let page: Page<PackVersion> = answer.json();
                assert!(page.items.len() <= limit);
                seen.extend(packs(&page));
                let link = answer
                    .header(LINK)
                    .strip_prefix('<')
                    .and_then(|link| link.strip_suffix(">; rel=\"next\""));
                assert_eq!(link.is_some(), page.next_cursor.is_some());
                next = link.map(str::to_owned);
            }
            assert_eq!(seen, all, "{path} in pages of {limit}");
        }
    }
    assert_eq!(site.get("/v1/packs").await.json::<Page<PackVersion>>().items.len(), 8);
}

#[tokio::test]
async fn what_there_is_not_is_said_so() {
    let site = Site::start().await;
    site.register(YAML).await;
    for path in [
        "/v1/packs/other",
        "/v1/packs/other/versions",
        "/v1/packs/other/versions/1",
        "/v1/packs/build/versions/0",
        "/v1/packs/build/versions/2",
        "/v1/packs/build/versions/4294967295",
    ] {
        assert_eq!(site.get(path).await.problem(), "not-found", "{path}");
    }
    let beyond = cursor(List::Versions, &u32::MAX.to_be_bytes());
    let page: Page<PackVersion> = site.get(&format!("/v1/packs/build/versions?cursor={beyond}")).await.json();
    assert_eq!(page.items.len(), 1);
}

#[tokio::test]
async fn what_is_archived_is_kept_and_not_run() {
    let site = Site::start().await;
    let say = |number: u32| format!("name: build\njobs:\n  a: {{ run: 'exit {number}' }}\n");
    for number in 1..=3 {
        site.register(&say(number)).await;
    }
    let post = async |path: &str, body: Value| {
        let request = site.request(Some(Role::Admin), Method::POST, path).json(&body);
        send(request).await
    };
    let run = async |version: Option<u32>| {
        let answer = post("/v1/pack-runs", json!({ "pack": "build", "version": version })).await;
        answer.status.is_success().then(|| answer.json::<PackRun>().version).ok_or_else(|| {
            assert_eq!(answer.status, StatusCode::CONFLICT);
            answer.problem()
        })
    };
    let listed = async |query: &str| {
        let page: Page<PackVersion> = site.get(&format!("/v1/packs{query}")).await.json();
        page.items.iter().map(|pack| (pack.version, pack.archived)).collect::<Vec<_>>()
    };
    let shown = async || site.get("/v1/packs/build").await.json::<PackContent>().version;
    let archived = Err("pack-archived".to_owned());

    for _ in 0..2 {
        let answer = post("/v1/packs/build/versions/3/archive", json!({})).await;
        let version: PackVersion = answer.json();
        assert_eq!((answer.status, version.version, version.archived), (StatusCode::OK, 3, true));
    }
    assert_eq!(
        (run(Some(3)).await, run(None).await),
        (archived.clone(), Ok(2)),
        "the newest that can be run"
    );
    assert_eq!((shown().await.version, listed("").await), (2, vec![(2, false)]));
    assert_eq!(listed("/build/versions").await, [(2, false), (1, false)]);
    assert_eq!(listed("/build/versions?archived=true").await, [(3, true), (2, false), (1, false)]);
    let kept: PackContent = site.get("/v1/packs/build/versions/3").await.json();
    assert!(kept.version.archived && kept.source == say(3));

    assert!(post("/v1/packs/build/archive", json!({})).await.json::<PackVersion>().archived);
    assert_eq!((run(None).await, run(Some(1)).await), (archived.clone(), archived.clone()));
    assert_eq!((listed("").await, listed("?archived=true").await), (vec![], vec![(3, true)]));
    assert!(shown().await.archived);

    let answer = site.register(&say(3)).await;
    let version: PackVersion = answer.json();
    assert_eq!((answer.status, version.version, version.archived), (StatusCode::CREATED, 4, false));
    assert_eq!((run(None).await, run(Some(3)).await), (Ok(4), archived));
    post("/v1/packs/build/unarchive", json!({})).await;
    assert_eq!((run(Some(3)).await, listed("/build/versions").await.len()), (Ok(3), 4));
    for path in [
        "/v1/packs/other/archive",
        "/v1/packs/build/versions/9/archive",
        "/v1/packs/build/versions/0/unarchive",
    ] {
        assert_eq!(post(path, json!({})).await.problem(), "not-found", "{path}");
    }
}
