//! `packrun artifacts`: the files that a pack run left, and getting them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Subcommand;
use packrun_protocol::id::PackRunId;
use packrun_protocol::name::JobKey;
use serde_json::Value;

use super::download;
use crate::api::types::Artifact;
use crate::cli::Session;
use crate::cli::client::{Answer, Client};
use crate::cli::exit::{Error, Exit};
use crate::cli::folder::{Folder, folder_name};
use crate::cli::output::{self, or_dash, size};
use crate::cli::resolve;
use crate::cli::world::World;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ArtifactsCommand {
    /// List the files that a pack run left
    #[command(after_help = "Example:\n  packrun artifacts list 8a5f21d07c3e")]
    List {
        /// The pack run's id, or the start or the end of it
        run: String,
    },
    /// Get files: all to DIR/JOB/PATH, those of one job to DIR/PATH
    #[command(
        after_help = "Example:\n  packrun artifacts get 8a5f21d07c3e compile/target/release/app --to out"
    )]
    Get {
        /// The pack run's id, or the start or the end of it
        run: String,
        /// Only the files of a job, or one file or folder of it: JOB is its name, its key, or the start of one
        #[arg(value_name = "JOB[/PATH]")]
        what: Option<String>,
        /// The folder to put them in; made if it is missing
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

impl ArtifactsCommand {
    pub(in crate::cli) async fn run(self, session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
        let client = session.client(world)?;
        match self {
            Self::List { run } => {
                let run = resolve::pack_run(&client, &run).await?;
                let artifacts = list(&client, run).await?;
                let rows = artifacts.value.iter().map(|file| {
                    [
                        file.key.to_string(),
                        file.attempt.to_string(),
                        file.path.to_string(),
                        or_dash(file.name.as_ref()),
                        size(file.size),
                        file.digest.to_string(),
                    ]
                });
                output::show(world, session.format, &artifacts.body, |color| {
                    output::table(["JOB", "ATTEMPT", "PATH", "NAME", "SIZE", "DIGEST"], rows, color)
                })?;
            }
            Self::Get { run, what, to } => {
                let run = resolve::pack_run(&client, &run).await?;
                let chosen = choose(list(&client, run).await?.value, what.as_deref())?;
                let failed = |error: std::io::Error| {
                    Error::invalid(format!("cannot use the folder {}: {error}", to.display()))
                };
                let root = Folder::open_or_make(&to).map_err(failed)?;
                let bytes = chosen.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
                let progress = download::progress(world, bytes);
                for file in &chosen.files {
                    let own = if chosen.by_key {
                        let name = folder_name(file.key.as_str());
                        Some(
                            root.child(&name)
                                .map_err(|error| failed(std::io::Error::other(format!("{name}: {error}"))))?,
                        )
                    } else {
                        None
                    };
                    download::file(&client, run, file, own.as_ref().unwrap_or(&root), &progress).await?;
                }
                progress.finish_and_clear();
                let count = chosen.files.len();
                let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
                world.out.line(format_args!("{files}, {} in {}", size(bytes), to.display()))?;
            }
        }
        Ok(Exit::Done)
    }
}

async fn list(client: &Client, run: PackRunId) -> Result<Answer<Vec<Artifact>>, Error> {
    let answer = client.list::<Value>(&["v1", "pack-runs", &run.to_string(), "artifacts"], &[]).await?;
    // Told one by one, so that the error names the file whose path is none.
    let read = |value: Value| {
        let path = value.get("path").and_then(Value::as_str).unwrap_or("?").to_owned();
        serde_json::from_value(value).map_err(|error| {
            Error::unreachable(format!(
                "the coordinator lists an artifact `{}` that can be none: {error}",
                output::printable(&path)
            ))
        })
    };
    let value = answer.value.into_iter().map(read).collect::<Result<_, _>>()?;
    Ok(Answer { body: answer.body, value })
}

/// The files to get.
#[derive(Debug)]
struct Chosen {
    files: Vec<Artifact>,
    /// Whether each goes to a folder named by its job run's key.
    by_key: bool,
}

/// What `JOB[/PATH]` stands for; all without. Of several attempts' files with one path, the newest.
fn choose(all: Vec<Artifact>, what: Option<&str>) -> Result<Chosen, Error> {
    let mut newest: BTreeMap<_, Artifact> = BTreeMap::new();
    for file in all {
        let place = (file.key.clone(), file.path.clone());
        match newest.get(&place) {
            Some(other) if other.attempt >= file.attempt => {}
            _ => drop(newest.insert(place, file)),
        }
    }
    let Some(what) = what else { return Ok(Chosen { files: newest.into_values().collect(), by_key: true }) };
    let of_job = |file: &&Artifact| {
        [file.key.as_str(), file.key.job()].into_iter().any(|job| is_meant(what, job, file))
    };
    let mut files: Vec<_> = newest.values().filter(of_job).cloned().collect();
    if files.is_empty() {
        files = of_one_key(what, &newest.values().cloned().collect::<Vec<_>>())?;
    }
    if files.is_empty() {
        return Err(Error::invalid(format!("the pack run left nothing that `{what}` names"))
            .hint("`packrun artifacts list RUN` shows what it left"));
    }
    let by_key = files.iter().any(|file| Some(&file.key) != files.first().map(|first| &first.key));
    Ok(Chosen { files, by_key })
}

/// What `what` stands for with the start of a key in place of a job, if that is the start of only one.
fn of_one_key(what: &str, all: &[Artifact]) -> Result<Vec<Artifact>, Error> {
    let start = what.split_once('/').map_or(what, |(start, _)| start);
    if all.iter().any(|file| file.key.job() == start) {
        return Ok(Vec::new());
    }
    let keys: BTreeSet<&JobKey> = all.iter().map(|file| &file.key).collect();
    let meant = keys.into_iter().filter(|key| !start.is_empty() && key.as_str().starts_with(start));
    match *meant.collect::<Vec<_>>().as_slice() {
        [] => Ok(Vec::new()),
        [key] => {
            let wanted = |file: &&Artifact| file.key == *key && is_meant(what, start, file);
            Ok(all.iter().filter(wanted).cloned().collect())
        }
        ref several => {
            let keys: Vec<_> = several.iter().map(|key| key.as_str()).collect();
            Err(Error::invalid(format!("`{start}` stands for more than one job run that left files"))
                .hint(format!("write more of one of these: {}", keys.join(", "))))
        }
    }
}

/// Whether `what` is the job, or the job with a file's path, name, or a folder that it lies in.
fn is_meant(what: &str, job: &str, file: &Artifact) -> bool {
    let Some(rest) = what.strip_prefix(job) else { return false };
    let Some(path) = rest.strip_prefix('/') else { return rest.is_empty() };
    let path = path.trim_end_matches('/');
    path.is_empty()
        || file.name.as_ref().is_some_and(|name| name.as_str() == path)
        || file.path.as_str().strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(key: &str, attempt: u32, path: &str, name: Option<&str>) -> Artifact {
        let digest = packrun_protocol::id::Digest::of(b"");
        serde_json::from_value(serde_json::json!({
            "key": key, "attempt": attempt, "name": name, "path": path, "size": 0, "digest": digest, "mode": "0644",
        }))
        .unwrap()
    }

    #[test]
    fn what_is_named_is_chosen_and_nothing_beside_it() {
        let all = || {
            vec![
                artifact("compile", 1, "target/app", None),
                artifact("compile", 2, "target/app", None),
                artifact("compile", 2, "target/apple", Some("fruit")),
                artifact("test[os=linux/x86]", 1, "report.xml", None),
                artifact("test[os=linux/arm]", 1, "report.xml", None),
            ]
        };
        let chosen = |what| {
            let chosen = choose(all(), what)?;
            let files =
                chosen.files.iter().map(|file| format!("{}#{}:{}", file.key, file.attempt, file.path));
            Ok::<_, Error>((files.collect::<Vec<_>>().join(" "), chosen.by_key))
        };
        let compile = "compile#2:target/app compile#2:target/apple";
        let tests = "test[os=linux/arm]#1:report.xml test[os=linux/x86]#1:report.xml";
        assert_eq!(chosen(None).unwrap(), (format!("{compile} {tests}"), true));
        assert_eq!(chosen(Some("compile")).unwrap(), (compile.into(), false));
        assert_eq!(chosen(Some("compile/target/")).unwrap(), (compile.into(), false));
        assert_eq!(chosen(Some("compile/target/app")).unwrap(), ("compile#2:target/app".into(), false));
        assert_eq!(chosen(Some("compile/fruit")).unwrap(), ("compile#2:target/apple".into(), false));
        assert_eq!(chosen(Some("test")).unwrap(), (tests.into(), true));
        let one = ("test[os=linux/x86]#1:report.xml".to_owned(), false);
        assert_eq!(chosen(Some("test[os=linux/x86]/report.xml")).unwrap(), one);
        assert_eq!(chosen(Some("comp")).unwrap(), (compile.into(), false));
        assert_eq!(chosen(Some("comp/target/app")).unwrap(), ("compile#2:target/app".into(), false));
        assert_eq!(
            chosen(Some("test[os=linux/x")).unwrap_err().hints.len(),
            1,
            "a slash ends the start of a key"
        );
        for nothing in ["mpile", "comp/targ", "compile/targ", "test/x", "", "/"] {
            let error = chosen(Some(nothing)).unwrap_err();
            assert!(error.message.contains("left nothing"), "{nothing}: {error}");
        }
        let several = chosen(Some("te")).unwrap_err();
        assert!(several.to_string().contains("test[os=linux/arm], test[os=linux/x86]"), "{several}");
    }
}
