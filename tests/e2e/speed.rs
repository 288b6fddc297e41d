//! What comes in masses, or is no text, or never ends a line, arrives whole; and it costs neither the coordinator nor
//! the agent memory that grows with it. In a release build the numbers are the full ones:
//! `cargo test --release --workspace --test e2e speed -- --include-ignored --nocapture`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use packrun_protocol::id::Digest;
use packrun_tests::api::{Api, job, states};
use packrun_tests::in_time;
use packrun_tests::noise::{self, STREAMS};
use packrun_tests::process::{Agent, Coordinator};
use packrun_tests::stream::Events;
use reqwest::{Method, Response};
use serde::Deserialize;

use crate::programs;

/// A program built without optimisation gets a part of the work.
const fn scaled(full: u64, debug: u64) -> u64 {
    if cfg!(debug_assertions) { debug } else { full }
}

const LINES: u64 = scaled(100_000, 10_000);
const JOBS: usize = 8;
const MIB: u64 = 1 << 20;

/// The most memory that either side may have had, in bytes. They were seen with 60 MiB at most, half of that the
/// program itself and the caches of the store; what goes through them here is up to twenty times this bound.
const MEMORY_MAX: u64 = 128 * MIB;

fn noisy(arguments: &str) -> String {
    format!("{} {arguments}", env!("CARGO_BIN_EXE_noisy"))
}

/// An entry of the log, without a look at what these tests don't need.
#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    time: &'a str,
    key: &'a str,
    stream: &'a str,
    text: &'a str,
}

/// What has come of each job run: its entries, and the lines of both streams among them.
#[derive(Default)]
struct Seen(BTreeMap<String, (u64, [u64; 2])>);

impl Seen {
    fn take(&mut self, line: &Line<'_>) {
        if !self.0.contains_key(line.key) {
            self.0.insert(line.key.to_owned(), (0, [0, 0]));
        }
        let (entries, lines) = self.0.get_mut(line.key).unwrap();
        assert_eq!(line.seq, *entries, "of {}", line.key);
        *entries += 1;
        let next = &mut lines[usize::from(line.stream == STREAMS[1])];
        assert_eq!(line.text, noise::line(line.stream, *next), "of {}", line.key);
        *next += 1;
    }

    fn check(&self, jobs: usize, lines: u64) {
        assert_eq!(self.0.len(), jobs);
        assert!(
            self.0.values().all(|seen| *seen == (2 * lines, [lines, lines])),
            "all of each: {:?}",
            self.0
        );
    }
}

/// All pages of a log, one after the other.
async fn pages(api: &Api, id: &str, query: &str, mut take: impl FnMut(&[u8])) {
    let mut next = Some(format!("/v1/pack-runs/{id}/logs?limit=10000&{query}"));
    while let Some(path) = next {
        let answer = api.send(api.request(Method::GET, &path)).await;
        assert!(answer.status().is_success(), "{}", answer.status());
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        next = link.map(|link| link[1..link.find('>').unwrap()].to_owned());
        take(&in_time("a page", answer.bytes()).await.unwrap());
    }
}

/// Prints how long something took, and holds both sides to their memory.
fn report(what: &str, since: Instant, coordinator: &mut Coordinator, agent: &mut Agent) {
    let peaks = [coordinator.process().peak_memory(), agent.process().peak_memory()];
    let [ours, theirs] = peaks.map(|peak| peak / MIB);
    let seconds = since.elapsed().as_secs_f64();
    println!("{what}: {seconds:.2} s; peak memory: coordinator {ours} MiB, agent {theirs} MiB");
    assert!(
        peaks.iter().all(|peak| *peak < MEMORY_MAX),
        "{what}: coordinator {ours} MiB, agent {theirs} MiB"
    );
}

#[tokio::test]
async fn lines_of_eight_jobs_on_both_streams_come_once_and_in_order_to_every_reader() {
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &["--slots", "8"]).await;
    let api = coordinator.api();
    let numbers: Vec<String> = (0..JOBS).map(|number| number.to_string()).collect();
    let source = format!(
        "name: noise\njobs:\n  noise:\n    matrix: {{ n: [{}] }}\n    run: {}\n",
        numbers.join(", "),
        noisy(&format!("lines {LINES}"))
    );
    let begin = Instant::now();
    let id = api.run(&source).await;
    let (mut stream, mut streamed, mut ended) = (api.stream(&id, None).await, Seen::default(), false);
    while let Some(event) = stream.next_raw().await {
        match event.kind.as_str() {
            "log" => streamed.take(&serde_json::from_str(&event.data).unwrap()),
            kind => ended = kind == "end",
        }
    }
    assert!(ended, "the stream ended without `end`");
    streamed.check(JOBS, LINES);
    report("followed", begin, &mut coordinator, &mut agent);

    let (begin, mut paged, mut time) = (Instant::now(), Seen::default(), String::new());
    pages(&api, &id, "format=ndjson", |page| {
        for line in std::str::from_utf8(page).unwrap().lines() {
            let line: Line<'_> = serde_json::from_str(line).unwrap();
            paged.take(&line);
            assert!(*time <= *line.time, "in chronological order");
            time.clear();
            time.push_str(line.time);
        }
    })
    .await;
    paged.check(JOBS, LINES);
    report("read in pages", begin, &mut coordinator, &mut agent);

    let begin = Instant::now();
    for number in numbers {
        let (mut next, query) = ([0, 0], format!("format=text&job=noise%5Bn%3D{number}%5D"));
        pages(&api, &id, &query, |page| {
            for line in std::str::from_utf8(page).unwrap().lines() {
                let stream = usize::from(line.starts_with(STREAMS[1]));
                assert_eq!(line, noise::line(STREAMS[stream], next[stream]));
                next[stream] += 1;
            }
        })
        .await;
        assert_eq!(next, [LINES; 2]);
    }
    report("read as text", begin, &mut coordinator, &mut agent);
}

#[tokio::test]
async fn a_line_of_100_mib_comes_in_pieces_and_whole() {
    const BYTES: usize = 100 << 20;
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let begin = Instant::now();
    let source = format!("name: long\njobs:\n  long: {{ run: {} }}\n", noisy(&format!("long-line {BYTES}")));
    let id = api.run(&source).await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: long succeeded");
    let (line, mut at) = (noise::long_line(BYTES), 0);
    pages(&api, &id, "format=text", |page| {
        let end = at + page.len();
        assert!(line.get(at..end) == Some(page), "what comes at byte {at} is what was written there");
        at = end;
    })
    .await;
    assert_eq!(at, BYTES);
    let attempt =
        api.get(&format!("/v1/runs/{}/logs?limit=10", job(&run, "long")["id"].as_str().unwrap())).await;
    for item in attempt["items"].as_array().unwrap() {
        assert!(item["continued"] == true && item["text"].as_str().unwrap().len() <= 64 << 10, "{item}");
    }
    report("a long line", begin, &mut coordinator, &mut agent);
}

/// The lines of some bytes, as entries have them.
fn lines_of(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
    lines.pop_if(|last| last.is_empty());
    lines
}

#[tokio::test]
async fn what_is_no_text_is_replaced_where_it_is_shown_and_counted_and_kept_as_it_was() {
    const BYTES: usize = 1 << 20;
    let coordinator = Coordinator::start(&programs()).await;
    let _agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let source =
        format!("name: garbage\njobs:\n  garbage: {{ run: {} }}\n", noisy(&format!("garbage {BYTES}")));
    let id = api.run(&source).await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: garbage succeeded");

    let garbage = noise::garbage(BYTES);
    let (mut written, mut invalid) = (lines_of(&garbage).into_iter(), 0);
    for entry in api.logs(&id, 10_000).await {
        let line = written.next().unwrap();
        assert_eq!(entry["text"], String::from_utf8_lossy(line).as_ref());
        let kept = String::from_utf8_lossy(line).replace('\u{fffd}', "").len();
        assert_eq!(
            entry.get("invalid_bytes").map_or(0, |count| count.as_u64().unwrap()),
            (line.len() - kept) as u64
        );
        invalid += line.len() - kept;
    }
    assert!(written.next().is_none() && invalid > BYTES / 3, "of half of all bytes few begin a character");

    let mut text = Vec::new();
    pages(&api, &id, "format=text", |page| text.extend_from_slice(page)).await;
    assert!(text == garbage, "as text the bytes are what was written");
    let garbage = job(&run, "garbage");
    assert_eq!(garbage["invalid_bytes"], invalid);
    let attempts = api.get(&format!("/v1/runs/{}", garbage["id"].as_str().unwrap())).await;
    assert_eq!(attempts["attempts"][0]["invalid_bytes"], invalid);
    let shown = coordinator.cli(&["runs", "show", &id]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("no UTF-8, shown as U+FFFD: {invalid}\n")), "{shown}");
}

/// A body to its end.
async fn rest(mut answer: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(chunk) = in_time("the rest of a body", answer.chunk()).await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    body
}

/// A reader of a stream who takes his time.
struct Stopped {
    events: Events,
    last: String,
    /// Lines of either stream.
    seen: [u64; 2],
}

impl Stopped {
    /// Reads one event; `false` when it is the last.
    async fn read(&mut self, api: &Api, id: &str) -> bool {
        let Some(event) = self.events.next_raw().await else {
            // Given up, perhaps: then it goes on behind the last event that came.
            self.events = api.stream(id, Some(&self.last)).await;
            return true;
        };
        self.last = event.id;
        if event.kind == "log" {
            let line: Line<'_> = serde_json::from_str(&event.data).unwrap();
            assert_eq!(line.seq, self.seen.iter().sum::<u64>());
            let next = &mut self.seen[usize::from(line.stream == STREAMS[1])];
            // What follows begins again.
            assert_eq!(line.text, noise::line(line.stream, next.checked_sub(BEFORE).unwrap_or(*next)));
            *next += 1;
        }
        event.kind != "end"
    }
}

/// Lines that come before a reader stops.
const BEFORE: u64 = 5_000;

#[tokio::test]
async fn readers_who_stop_hold_up_nobody_and_get_all_when_they_go_on() {
    const LINES: u64 = scaled(400_000, 60_000);
    const FILE: usize = scaled(192 << 20, 64 << 20) as usize;
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let files = tempfile::tempdir().unwrap();
    let source = format!(
        "name: slow\njobs:\n  file: {{ run: {} > file, artifacts: [file] }}\n  lines:\n    needs: [file]\n    run: |\n      \
         {}\n      until [ -e {}/go ]; do sleep 0.02; done\n      {}\n",
        noisy(&format!("long-line {FILE}")),
        noisy(&format!("lines {BEFORE}")),
        files.path().display(),
        noisy(&format!("lines {LINES}"))
    );
    let begin = Instant::now();
    let id = api.run(&source).await;
    // Three readers take a little each, and then nothing until the run is over.
    let mut stopped = Stopped { events: api.stream(&id, None).await, last: String::new(), seen: [0, 0] };
    while stopped.seen != [BEFORE; 2] {
        assert!(stopped.read(&api, &id).await, "the job waits");
    }
    let page = format!("/v1/pack-runs/{id}/logs?limit=10000");
    let page = api.send(api.request(Method::GET, &page)).await;
    let file = format!("/v1/pack-runs/{id}/artifacts/file/file");
    let file = api.send(api.request(Method::GET, &file)).await;
    std::fs::write(files.path().join("go"), "").unwrap();
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: file succeeded, lines succeeded");
    report("the run, with readers who don't read", begin, &mut coordinator, &mut agent);

    while stopped.read(&api, &id).await {}
    assert_eq!(stopped.seen, [BEFORE + LINES; 2]);
    let page: serde_json::Value = serde_json::from_slice(&rest(page).await).unwrap();
    assert!(page["items"].as_array().unwrap().len() > 1);
    assert!(rest(file).await == noise::long_line(FILE), "the file came whole");
    report("read at last", begin, &mut coordinator, &mut agent);
}

/// Gets all artifacts of a run by the CLI.
async fn fetched(coordinator: &Coordinator, id: &str, to: &Path) {
    let got = coordinator.cli(&["artifacts", "get", id, "--to", to.to_str().unwrap()]).await;
    assert!(got.status.success(), "{got:?}");
}

/// A large file there and back. Its bytes are few, but it has them all: hashed, sent, kept and read again.
async fn large_file(bytes: u64) {
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let source = format!(
        "name: large\njobs:\n  make:\n    run: |\n      printf begin > large\n      truncate -s {} large\n      \
         printf end >> large\n    artifacts: [large]\n  take:\n    needs: [make]\n    inputs: [{{ from: make, artifact: \
         large }}]\n    run: sha256sum large\n",
        bytes - 3
    );
    let begin = Instant::now();
    let id = api.run(&source).await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: make succeeded, take succeeded");
    report(&format!("{} MiB there and to another job", bytes / MIB), begin, &mut coordinator, &mut agent);
    let list = api.get(&format!("/v1/pack-runs/{id}/artifacts")).await;
    let (size, digest) = (list["items"][0]["size"].as_u64(), list["items"][0]["digest"].as_str().unwrap());
    assert_eq!(size, Some(bytes));
    let entries = api.logs(&id, 10).await;
    let sum = entries[0]["text"].as_str().unwrap().split(' ').next().unwrap();
    assert_eq!(digest, format!("sha256:{sum}"), "the other job has the same");
    let (begin, to) = (Instant::now(), tempfile::tempdir().unwrap());
    // The CLI refuses what has not the digest that was announced.
    fetched(&coordinator, &id, to.path()).await;
    assert_eq!(std::fs::metadata(to.path().join("make/large")).unwrap().len(), bytes);
    report("got by the CLI", begin, &mut coordinator, &mut agent);
}

#[tokio::test]
async fn a_large_artifact_costs_no_memory() {
    large_file(scaled(512, 192) * MIB).await;
}

#[tokio::test]
#[ignore = "it writes 8 GiB; for a release build"]
async fn an_artifact_of_2_gib_costs_no_memory() {
    large_file(2048 * MIB).await;
}

#[tokio::test]
async fn ten_thousand_small_artifacts_are_kept_listed_and_got() {
    const FILES: u32 = 10_000;
    let mut coordinator = Coordinator::start(&programs()).await;
    let mut agent = coordinator.agent("builder", &[]).await;
    let api = coordinator.api();
    let source = format!(
        "name: many\njobs:\n  make: {{ run: {}, artifacts: [files] }}\n",
        noisy(&format!("files files {FILES} 1024"))
    );
    let begin = Instant::now();
    let id = api.run(&source).await;
    let run = api.ended(&id).await;
    assert_eq!(states(&run), "completed: make succeeded");
    report("10,000 files there", begin, &mut coordinator, &mut agent);
    let begin = Instant::now();
    let (mut listed, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/pack-runs/{id}/artifacts?limit=1000{cursor}")).await;
        for item in page["items"].as_array().unwrap() {
            let text = |key: &str| item[key].as_str().unwrap().to_owned();
            assert!(listed.insert(text("path"), text("digest")).is_none(), "each once: {item}");
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let expected = (0..FILES).map(|number| {
        let digest = Digest::of(&noise::file(number, 1024)).to_string();
        (format!("files/{}/{number}", number / 100), digest)
    });
    assert!(listed == expected.collect(), "every file under its digest");
    report("listed", begin, &mut coordinator, &mut agent);
    let (begin, to) = (Instant::now(), tempfile::tempdir().unwrap());
    fetched(&coordinator, &id, to.path()).await;
    for number in 0..FILES {
        let file = to.path().join(format!("make/files/{}/{number}", number / 100));
        assert!(std::fs::read(&file).unwrap() == noise::file(number, 1024), "{}", file.display());
    }
    report("got by the CLI", begin, &mut coordinator, &mut agent);
}
