//! First figures, each beside a limit that was measured in the same run: `cargo bench -p packrun-tests`. Everything is
//! real: one coordinator and one agent as processes on this machine, mutual TLS, all that is acknowledged on the disk.
//! A figure is the median of several; on a machine that does something else besides, look at the ratios.

#![expect(clippy::unwrap_used, reason = "a benchmark that can't run has no result")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use packrun_tests::Programs;
use packrun_tests::api::Api;
use packrun_tests::process::{Agent, Coordinator};
use serde_json::json;

const ROUNDS: usize = 3;
const JOBS: u32 = 2_000;
const LATENCIES: usize = 50;
const ARTIFACT_BYTES: u64 = 1 << 30;
const LOG_LINES: u64 = 4_000_000;
const LINE: &str =
    "a line of a hundred bytes, its newline among them, such as a compiler or a test prints all day long";

struct Row {
    what: &'static str,
    packrun: f64,
    limit: f64,
    unit: &'static str,
    of: &'static str,
}

#[tokio::main]
async fn main() {
    let programs = Programs {
        packrun: env!("CARGO_BIN_EXE_packrun-under-test").into(),
        agent: env!("CARGO_BIN_EXE_packrun-agent-under-test").into(),
    };
    let slots = thread::available_parallelism().unwrap().get();
    let mut coordinator = Coordinator::start(&programs).await;
    let mut agent = coordinator.agent("builder", &["--slots", &slots.to_string()]).await;
    let api = coordinator.api();
    let (mut rows, mut agents) = (Vec::new(), Vec::new());

    for (what, slots) in
        [("jobs of /bin/true, a slot a core", slots), ("the same, four slots a core", 4 * slots)]
    {
        let label = format!("slots={slots}");
        let arguments = ["--slots", &slots.to_string(), "--label", &label];
        agents.push(coordinator.agent(&label.replace('=', "-"), &arguments).await);
        let mut rates = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            rates.0.push(jobs_per_second(&api, slots).await);
            rates.1.push(spawns_per_second(slots));
        }
        let (packrun, limit) = (median(rates.0), median(rates.1));
        rows.push(Row { what, packrun, limit, unit: "/s", of: "bare posix_spawn and wait, as many at once" });
    }
    let mut latencies = (Vec::new(), Vec::new());
    for _ in 0..LATENCIES {
        latencies.0.push(start_latency(&api).await);
        latencies.1.push(three_syncs_and_a_spawn(coordinator.data()));
    }
    rows.push(Row {
        what: "POST of a pack run to its process's start",
        packrun: median(latencies.0),
        limit: median(latencies.1),
        unit: "ms",
        of: "3 fdatasync and one spawn",
    });
    let mut log = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        log.0.push(log_lines_per_second(&api).await);
        log.1.push(pipe_lines_per_second());
    }
    let (packrun, limit) = (median(log.0), median(log.1));
    let bytes = (LINE.len() + 1) as f64 / 1e6;
    rows.push(Row { what: "lines of one log", packrun, limit, unit: "/s", of: "the same through a pipe" });
    rows.push(Row {
        what: "bytes of one log",
        packrun: packrun * bytes,
        limit: limit * bytes,
        unit: "MB/s",
        of: "the same through a pipe",
    });
    let mut artifact = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        artifact.0.push(artifact_rate(&api, round).await);
        artifact.1.push(write_rate(coordinator.data()));
    }
    rows.push(Row {
        what: "one artifact of 1 GiB, hashed, sent and kept",
        packrun: median(artifact.0),
        limit: median(artifact.1),
        unit: "MB/s",
        of: "writing and syncing a file of that size",
    });
    print(&rows, &mut coordinator, &mut agent);
}

fn print(rows: &[Row], coordinator: &mut Coordinator, agent: &mut Agent) {
    println!("\n{:<46} {:>12} {:>12} {:>7}", "", "packrun", "limit", "ratio");
    for Row { what, packrun, limit, unit, of } in rows {
        let ratio = packrun / limit;
        println!("{what:<46} {packrun:>8.1} {unit:<4}{limit:>8.1} {unit:<4}{ratio:>6.2}  {of}");
    }
    let peak = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    println!(
        "\npeak memory: coordinator {:.0} MiB, agent {:.0} MiB",
        peak(coordinator.process().pid()),
        peak(agent.process().pid())
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn jobs_per_second(api: &Api, slots: usize) -> f64 {
    let axis = |count: u32| (0..count).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    let source = format!(
        "name: wide\njobs:\n  wide:\n    labels: {{ slots: '{slots}' }}\n    matrix: {{ a: [{}], b: [{}] }}\n    \
         command: [/bin/true]\n",
        axis(JOBS / 100),
        axis(100)
    );
    api.register(&source).await;
    let begin = Instant::now();
    let id = api.start("wide").await;
    assert_eq!(api.ended(&id).await["state"], "completed");
    f64::from(JOBS) / begin.elapsed().as_secs_f64()
}

fn spawns_per_second(threads: usize) -> f64 {
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..JOBS as usize / threads {
                    spawn();
                }
            });
        }
    });
    f64::from(JOBS) / begin.elapsed().as_secs_f64()
}

fn spawn() {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
}

/// Milliseconds from the request to what the job's first instruction reads of the same clock.
async fn start_latency(api: &Api) -> f64 {
    api.register("name: now\njobs:\n  now: { command: [date, '+%s%N'] }\n").await;
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let id = api.post("/v1/pack-runs", &json!({ "pack": "now" })).await["id"].as_str().unwrap().to_owned();
    api.ended(&id).await;
    let entries = api.logs(&id, 1).await;
    let nanos: u64 = entries[0]["text"].as_str().unwrap().parse().unwrap();
    Duration::from_nanos(nanos).saturating_sub(begin).as_secs_f64() * 1e3
}

fn three_syncs_and_a_spawn(folder: &std::path::Path) -> f64 {
    let path = folder.join("latency");
    let mut file = File::create(&path).unwrap();
    let begin = Instant::now();
    for _ in 0..3 {
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
    }
    spawn();
    let elapsed = begin.elapsed().as_secs_f64() * 1e3;
    std::fs::remove_file(path).unwrap();
    elapsed
}

/// From the first to the last line as the coordinator has them, which is when they are readable.
async fn log_lines_per_second(api: &Api) -> f64 {
    let source = format!("name: log\njobs:\n  log: {{ run: 'yes \"{LINE}\" | head -n {LOG_LINES}' }}\n");
    api.register(&source).await;
    let begin = Instant::now();
    let id = api.start("log").await;
    // The end is not told before all lines are on the disk.
    let mut events = api.request(reqwest::Method::GET, &format!("/v1/pack-runs/{id}")).send().await.unwrap();
    while events.json::<serde_json::Value>().await.unwrap()["state"] != "completed" {
        tokio::time::sleep(Duration::from_millis(20)).await;
        events = api.request(reqwest::Method::GET, &format!("/v1/pack-runs/{id}")).send().await.unwrap();
    }
    LOG_LINES as f64 / begin.elapsed().as_secs_f64()
}

fn pipe_lines_per_second() -> f64 {
    let script = format!("yes \"{LINE}\" | head -n {LOG_LINES}");
    let begin = Instant::now();
    let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let (mut pipe, mut buffer, mut bytes) = (child.stdout.take().unwrap(), vec![0; 64 << 10], 0);
    loop {
        match pipe.read(&mut buffer).unwrap() {
            0 => break,
            read => bytes += read as u64,
        }
    }
    child.wait().unwrap();
    assert_eq!(bytes, LOG_LINES * (LINE.len() as u64 + 1));
    LOG_LINES as f64 / begin.elapsed().as_secs_f64()
}

/// From the end of the job that made the file to the record of its end. Each round's content is new.
async fn artifact_rate(api: &Api, round: usize) -> f64 {
    let source = format!(
        "name: artifact\njobs:\n  big:\n    run: |\n      yes {round}{} | head -c {ARTIFACT_BYTES} > big\n      \
         date +%s%N\n    artifacts: [big]\n",
        std::process::id()
    );
    api.register(&source).await;
    let id = api.start("artifact").await;
    assert_eq!(api.ended(&id).await["state"], "completed");
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let made: u64 = api.logs(&id, 1).await[0]["text"].as_str().unwrap().parse().unwrap();
    ARTIFACT_BYTES as f64 / 1e6 / end.saturating_sub(Duration::from_nanos(made)).as_secs_f64()
}

fn write_rate(folder: &std::path::Path) -> f64 {
    let path = folder.join("written");
    let (mut file, chunk) = (File::create(&path).unwrap(), vec![7; 1 << 20]);
    let begin = Instant::now();
    for _ in 0..ARTIFACT_BYTES >> 20 {
        file.write_all(&chunk).unwrap();
    }
    file.sync_data().unwrap();
    let rate = ARTIFACT_BYTES as f64 / 1e6 / begin.elapsed().as_secs_f64();
    std::fs::remove_file(path).unwrap();
    rate
}
