//! The log of a pack run is one list in chronological order, the same whatever the page, and can be read while it
//! grows.

use std::collections::BTreeMap;
use std::path::Path;

use packrun_tests::api::states;
use packrun_tests::process::Coordinator;
use serde_json::Value;

use crate::programs;

/// Jobs that write at the same time, on agents of two pools: each goes on behind its first line when the other has
/// written its own.
fn chatty(folder: &Path) -> String {
    let job = |side: &str, other: &str, to: &str| {
        let folder = folder.display();
        format!(
            "
  {side}:
    labels: {{ side: {side} }}
    run: |
      echo \"{side} 1\" {to}
      touch {folder}/{side}
      until [ -e {folder}/{other} ]; do sleep 0.02; done
      for n in $(seq 2 300); do echo \"{side} $n\" {to}; [ $((n % 30)) -ne 0 ] || sleep 0.02; done"
        )
    };
    format!("name: chatty\njobs:{}{}\n", job("left", "right", ""), job("right", "left", ">&2"))
}

fn check(entries: &[Value]) {
    assert_eq!(entries.len(), 600);
    assert!(
        entries.windows(2).all(|pair| pair[0]["time"].as_str() <= pair[1]["time"].as_str()),
        "in chronological order"
    );
    let mut of: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for entry in entries {
        of.entry(entry["key"].as_str().unwrap()).or_default().push(entry["seq"].as_u64().unwrap());
        let side = entry["job"].as_str().unwrap();
        assert_eq!(entry["stream"], if side == "left" { "stdout" } else { "stderr" });
    }
    for (key, seqs) in of {
        assert_eq!(seqs, (0..300).collect::<Vec<_>>(), "each entry of {key} once, in order");
    }
}

#[tokio::test]
async fn all_entries_of_two_agents_come_in_one_order_in_pages_of_any_size_and_while_they_are_written() {
    let coordinator = Coordinator::start(&programs()).await;
    let _left = coordinator.agent("left", &["--label", "side=left"]).await;
    let _right = coordinator.agent("right", &["--label", "side=right"]).await;
    let api = coordinator.api();
    let files = tempfile::tempdir().unwrap();
    let id = api.run(&chatty(files.path())).await;

    // One reads while the jobs write, and polls on until the log is complete.
    let (mut polled, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/pack-runs/{id}/logs?limit=70{cursor}")).await;
        polled.extend(page["items"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    check(&polled);

    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: left succeeded, right succeeded");
    for limit in [1, 7, 100, 10_000] {
        assert_eq!(api.logs(&id, limit).await, polled, "pages of {limit}");
    }
    let first_of_right = polled.iter().position(|entry| entry["job"] == "right").unwrap();
    let last_of_left = polled.iter().rposition(|entry| entry["job"] == "left").unwrap();
    assert!(first_of_right < last_of_left, "they wrote at the same time");
}
