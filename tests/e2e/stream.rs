//! The stream of a pack run is live, complete and in order, whoever reads it and however often he is cut off.

use packrun_tests::process::Coordinator;
use packrun_tests::stream::Event;

use crate::programs;

/// A pack whose jobs wait for a file which the test writes once it has seen their line.
fn waiting(folder: &std::path::Path) -> String {
    let folder = folder.display();
    format!(
        "
name: waiting
jobs:
  a:
    run: |
      echo begun a
      until [ -e {folder}/a ]; do sleep 0.05; done
      echo ended a
  b:
    run: |
      echo begun b
      until [ -e {folder}/b ]; do sleep 0.05; done
      echo ended b
  c:
    needs: [a, b]
    run: echo begun c
"
    )
}

/// What must hold of the events of a whole stream.
fn check_order(events: &[Event]) {
    assert_eq!(events.last().unwrap().kind, "end");
    let ids: std::collections::BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.len(), events.len(), "an id for each event");
    for key in ["a", "b", "c"] {
        let position = |state| events.iter().position(|event| event.is_state(Some(key), state)).unwrap();
        let entries: Vec<usize> = (0..)
            .zip(events)
            .filter(|(_, event)| event.kind == "log" && event.data["key"] == key)
            .map(|(index, _)| index)
            .collect();
        let seqs: Vec<u64> =
            entries.iter().map(|index| events[*index].data["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (0..seqs.len() as u64).collect::<Vec<_>>(), "each entry of {key} once, in order");
        assert!(position("running") < entries[0], "{key} runs before its first entry");
        assert!(position("succeeded") > *entries.last().unwrap(), "{key} ends after its last entry");
    }
}

#[tokio::test]
async fn entries_arrive_while_the_jobs_run_and_a_resumed_stream_misses_nothing() {
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let files = tempfile::tempdir().unwrap();
    let api = coordinator.api();
    let id = api.run(&waiting(files.path())).await;

    let mut stream = api.stream(&id, None).await;
    let mut first = stream.until(|event| event.is_line("begun a")).await;
    // The job can't have ended: it waits for what is written only now.
    std::fs::write(files.path().join("a"), "").unwrap();
    first.extend(stream.until(|event| event.is_line("ended a")).await);
    let seen = |text: &str| first.iter().any(|event| event.is_line(text));
    assert!(seen("begun a") && !seen("ended b"));
    drop(stream);

    // Another subscriber goes on behind what the first has seen, and then lets the rest happen.
    let last = first.last().unwrap().id.clone();
    let mut resumed = api.stream(&id, Some(&last)).await;
    std::fs::write(files.path().join("b"), "").unwrap();
    let mut all = first.clone();
    all.extend(resumed.until(|event| event.kind == "end").await);
    assert!(resumed.next().await.is_none());
    check_order(&all);

    let whole = api.stream(&id, None).await.to_end().await;
    check_order(&whole);
    let lines = |events: &[Event]| {
        let lines = events.iter().filter(|event| event.kind == "log");
        let mut lines: Vec<_> = lines.map(|event| event.data.to_string()).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(lines(&all), lines(&whole), "nothing missed, nothing twice");
}

#[tokio::test]
async fn a_stream_resumes_behind_any_event_also_after_a_crash_of_the_coordinator() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &["--slots", "2"]).await;
    let files = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::write(files.path().join(name), "").unwrap();
    }
    let id = coordinator.api().run(&waiting(files.path())).await;
    let whole = coordinator.api().stream(&id, None).await.to_end().await;
    check_order(&whole);

    coordinator.crash_and_restart().await;
    let api = coordinator.api();
    for (position, event) in (0..).zip(&whole[..whole.len() - 1]) {
        let rest = api.stream(&id, Some(&event.id)).await.to_end().await;
        let mut all = whole[..=position].to_vec();
        all.extend(rest);
        check_order(&all);
        assert_eq!(all.len(), whole.len(), "resumed behind event {position}");
    }
}
