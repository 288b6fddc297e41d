//! Getting artifacts from a coordinator that may be anyone.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use axum::body::Body;
use futures_util::{StreamExt as _, stream};
use packrun_protocol::id::Digest;

use super::*;

fn artifact(key: &str, path: &str, content: &str, mode: &str) -> Value {
    json!({"key": key, "attempt": 1, "name": null, "path": path, "size": content.len(),
        "digest": Digest::of(content.as_bytes()), "mode": mode})
}

/// A coordinator that lists these artifacts and answers for their content.
async fn coordinator(
    list: Value,
    content: impl Fn(&Asked, usize) -> Response + Send + Sync + 'static,
) -> Scripted {
    Scripted::start(move |asked, before| {
        if asked.target.ends_with("/artifacts") {
            axum::Json(page(list.clone())).into_response()
        } else {
            content(asked, before)
        }
    })
    .await
}

/// Everything below a folder, links not followed.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        }
        found.push(name);
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    format!("{:o} {}", fs::metadata(path).unwrap().permissions().mode(), fs::read_to_string(path).unwrap())
}

async fn get(coordinator: &Scripted, what: Option<&str>, to: &Path) -> Ran {
    let to = to.display().to_string();
    let args: Vec<_> = ["artifacts", "get", RUN].into_iter().chain(what).chain(["--to", &to]).collect();
    coordinator.run(&args).await
}

#[tokio::test]
async fn files_come_to_their_places_with_their_permissions() {
    let list = json!([
        artifact("compile", "target/a b#?.txt", "text", "0640"),
        artifact("test[os=linux/x86]", "run", "#!/bin/sh", "7777"),
    ]);
    let coordinator = coordinator(list, |asked, _| {
        match asked.target.rsplit_once("/artifacts/").unwrap().1 {
            "compile/target/a%20b%23%3F.txt" => "text",
            "test%5Bos=linux%2Fx86%5D/run" => "#!/bin/sh",
            other => panic!("{other}"),
        }
        .into_response()
    })
    .await;
    let temp = tempfile::tempdir().unwrap();
    let ran = get(&coordinator, None, temp.path()).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(ran.out, format!("2 files, 13 B in {}\n", temp.path().display()));
    assert_eq!(text(&temp.path().join("compile/target/a b#?.txt")), "100640 text");
    assert_eq!(text(&temp.path().join("test[os=linux%2Fx86]/run")), "100777 #!/bin/sh");
    let count = coordinator.asked().len();
    assert_eq!(get(&coordinator, None, temp.path()).await.code, 0);
    assert_eq!(coordinator.asked().len(), count + 1, "what is there is not sent again");
    let one = tempfile::tempdir().unwrap();
    assert_eq!(get(&coordinator, Some("test"), one.path()).await.code, 0);
    assert_eq!(text(&one.path().join("run")), "100777 #!/bin/sh");
    assert_eq!(get(&coordinator, Some("test/none"), one.path()).await.code, 2);
}

#[tokio::test]
async fn a_path_out_of_the_folder_is_refused_before_anything_is_written() {
    for path in ["../x", "/etc/x", "a/../../x", "", "a\\..\\x", "a\nb"] {
        let list =
            json!([artifact("compile", "good", "text", "0644"), artifact("compile", path, "text", "0644")]);
        let coordinator = coordinator(list, |_, _| "text".into_response()).await;
        let temp = tempfile::tempdir().unwrap();
        let to = temp.path().join("to");
        let ran = get(&coordinator, None, &to).await;
        assert_eq!(ran.code, 4, "{path:?}");
        assert!(ran.err.contains("that can be none"), "{}", ran.err);
        assert_eq!(tree(temp.path()), Vec::<String>::new(), "{path:?}");
    }
    for key in ["..", "a/b", "test[a=1]/../x", ".", ""] {
        let coordinator =
            coordinator(json!([artifact(key, "x", "text", "0644")]), |_, _| "text".into_response()).await;
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(get(&coordinator, None, &temp.path().join("to")).await.code, 4, "{key:?}");
        assert_eq!(tree(temp.path()), Vec::<String>::new(), "{key:?}");
    }
}

#[tokio::test]
async fn a_key_with_dots_and_slashes_stays_one_folder() {
    let list = json!([artifact("test[a=/../../../x]", "file", "text", "0644")]);
    let coordinator = coordinator(list, |_, _| "text".into_response()).await;
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(get(&coordinator, None, &temp.path().join("to")).await.code, 0);
    let name = "to/test[a=%2F..%2F..%2F..%2Fx]";
    assert_eq!(tree(temp.path()), ["to", name, &format!("{name}/file")]);
}

#[tokio::test]
async fn a_link_in_the_folder_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("app"), "old").unwrap();
    let list = json!([artifact("compile", "target/app", "text", "0644")]);
    let coordinator = coordinator(list, |_, _| "text".into_response()).await;
    let temp = tempfile::tempdir().unwrap();
    symlink(outside.path(), temp.path().join("compile")).unwrap();
    symlink(outside.path(), temp.path().join("target")).unwrap();
    for what in [None, Some("compile")] {
        let ran = get(&coordinator, what, temp.path()).await;
        assert_eq!(ran.code, 2, "{what:?}");
        assert!(ran.err.contains("links are not followed"), "{}", ran.err);
    }
    fs::remove_file(temp.path().join("target")).unwrap();
    fs::create_dir(temp.path().join("target")).unwrap();
    symlink(outside.path().join("app"), temp.path().join("target/app")).unwrap();
    assert_eq!(get(&coordinator, Some("compile"), temp.path()).await.code, 0);
    assert_eq!(text(&temp.path().join("target/app")), "100644 text", "the link itself is replaced");
    assert_eq!(fs::read_to_string(outside.path().join("app")).unwrap(), "old");
    assert_eq!(tree(outside.path()), ["app"]);
}

#[tokio::test]
async fn what_is_not_as_announced_is_not_put_in_its_place() {
    let cases: [(&str, &str, &str, &str); 4] = [
        ("tExt", "0644", "is not what was announced: its digest is sha256:", "wrong content"),
        ("text and more", "0644", "more than the 4 bytes that were announced", "too much"),
        ("te", "0644", "broke off after 2 of 4 bytes", "too little"),
        ("text", "rwx\u{7}", "has permissions that are none: `rwx\\u{7}`", "no mode"),
    ];
    for (content, mode, said, case) in cases {
        let list = json!([artifact("compile", "app", "text", mode)]);
        let coordinator = coordinator(list, move |_, _| content.into_response()).await;
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("app"), "old").unwrap();
        let ran = get(&coordinator, Some("compile"), temp.path()).await;
        assert_eq!(ran.code, 4, "{case}");
        assert!(ran.err.contains(said), "{case}: {}", ran.err);
        assert_eq!(tree(temp.path()), ["app"], "{case}: nothing is left behind");
        assert_eq!(fs::read_to_string(temp.path().join("app")).unwrap(), "old", "{case}");
    }
}

#[tokio::test]
async fn a_file_that_breaks_off_goes_on_where_it_did() {
    for ranges in [true, false] {
        let list = json!([artifact("compile", "app", "0123456789", "0644")]);
        let coordinator = coordinator(list, move |asked, before| {
            let from = asked.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
            let from: usize = from.filter(|_| ranges).map_or(0, |from| from.parse().unwrap());
            let part = "0123456789"[from..].to_owned();
            let cut = if before < 2 { part[..4].to_owned() } else { part };
            let breaks = (before < 2).then(|| Err(std::io::Error::other("cut")));
            let body = stream::iter(std::iter::once(Ok(cut)).chain(breaks)).then(|part| async {
                tokio::task::yield_now().await;
                part
            });
            let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
            (status, Body::from_stream(body)).into_response()
        })
        .await;
        let temp = tempfile::tempdir().unwrap();
        let ran = get(&coordinator, Some("compile"), temp.path()).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        assert_eq!(fs::read_to_string(temp.path().join("app")).unwrap(), "0123456789");
    }
}
