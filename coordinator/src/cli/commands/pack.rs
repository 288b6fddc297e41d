//! `packrun pack`: registering packs and looking at them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::diff;
use crate::api::types::{PackContent, PackVersion};
use crate::cli::Session;
use crate::cli::args::PackRef;
use crate::cli::client::{Answer, Client, Repeat};
use crate::cli::exit::{Error, Exit, Kind};
use crate::cli::output::{self, Format, printable, time};
use crate::cli::world::World;
use crate::pack::{self, FILE_BYTES_MAX};
use clap::Subcommand;
use packrun_protocol::name::Name;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum PackCommand {
    /// Register a pack file as the next version of its pack
    #[command(after_help = "Example:\n  packrun pack register build.yaml")]
    Register {
        /// The pack file: .yaml, .yml, .toml or .json
        file: PathBuf,
    },
    /// List the packs, each with the version that is run when none is named; or all versions of a pack
    #[command(
        after_help = "Example:\n  packrun pack list\n  packrun pack list build --archived --output json"
    )]
    List {
        /// The pack whose versions are wanted
        #[arg(value_name = "NAME")]
        pack: Option<Name>,
        /// Also what is archived
        #[arg(long)]
        archived: bool,
    },
    /// Show a version of a pack
    #[command(after_help = "Example:\n  packrun pack show build@2 --source > build.yaml")]
    Show {
        /// The pack, the newest version that is not archived unless one is given
        #[arg(value_name = "NAME[@V]")]
        pack: PackRef,
        /// Print the file as it was registered
        #[arg(long)]
        source: bool,
    },
    /// Show what differs between the files of two versions
    #[command(after_help = "Example:\n  packrun pack diff build@1 build@2")]
    Diff {
        /// The older version
        #[arg(value_name = "NAME@A")]
        old: PackRef,
        /// The newer version
        #[arg(value_name = "NAME@B")]
        new: PackRef,
    },
    /// Let nobody run a pack any more, or one version of it; what it ran is kept, and what runs goes on
    #[command(after_help = "Example:\n  packrun pack archive build@2\n
The next `packrun pack register` of an archived pack makes a version that is not archived.")]
    Archive {
        /// The pack with all its versions, or one version
        #[arg(value_name = "NAME[@V]")]
        pack: PackRef,
    },
    /// Let an archived pack be run again, or one version of it
    #[command(after_help = "Example:\n  packrun pack unarchive build@2")]
    Unarchive {
        /// The pack with all its versions, or one version
        #[arg(value_name = "NAME[@V]")]
        pack: PackRef,
    },
    /// Find the faults of a pack file, without a coordinator
    #[command(after_help = "Example:\n  packrun pack check build.yaml")]
    Check {
        /// The pack file: .yaml, .yml, .toml or .json
        file: PathBuf,
    },
}

impl PackCommand {
    pub(in crate::cli) async fn run(self, session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
        match self {
            Self::Register { file } => {
                let (format, content) = read(&file)?;
                let client = session.client(world)?;
                let version = register(&client, &file, format, &content).await?;
                output::show(world, session.format, &version.body, |_| {
                    let PackVersion { name, version, digest, .. } = &version.value;
                    format!("{name}@{version} {digest}")
                })?;
            }
            Self::List { pack, archived } => {
                let query = archived.then_some(("archived", "true"));
                let path = match &pack {
                    Some(pack) => vec!["v1", "packs", pack.as_str(), "versions"],
                    None => vec!["v1", "packs"],
                };
                let packs = session.client(world)?.list::<PackVersion>(&path, query.as_slice()).await?;
                output::show(world, session.format, &packs.body, |color| {
                    let rows = packs.value.iter().map(row);
                    output::table(["PACK", "VERSION", "STATE", "REGISTERED", "DIGEST"], rows, color)
                })?;
            }
            Self::Show { pack, source } => {
                let content = content(&session.client(world)?, &pack).await?;
                if source && session.format == Format::Table {
                    world.out.raw(shown(world, &content.value.source).as_bytes())?;
                } else {
                    output::show(world, session.format, &content.body, |_| described(&content.value))?;
                }
            }
            Self::Diff { old, new } => {
                let client = session.client(world)?;
                let (old, new) = (content(&client, &old).await?.value, content(&client, &new).await?.value);
                let named =
                    |content: &PackContent| format!("{}@{}", content.version.name, content.version.version);
                let text = diff::unified(&named(&old), &old.source, &named(&new), &new.source);
                let text = shown(world, &text);
                world.out.raw(diff::painted(&text, world.out.color).as_bytes())?;
            }
            Self::Archive { pack } => archive(session, world, &pack, "archive", "archived").await?,
            Self::Unarchive { pack } => archive(session, world, &pack, "unarchive", "not archived").await?,
            Self::Check { file } => {
                let (format, content) = read(&file)?;
                let pack = pack::check(format, &content, &pack::Limits::default())
                    .map_err(|invalid| Error::invalid(invalid.report(&file.display().to_string())))?;
                world.out.line(format_args!("{}: `{}` is a valid pack", file.display(), pack.name()))?;
            }
        }
        Ok(Exit::Done)
    }
}

/// The format and content of a pack file.
///
/// # Errors
/// When its name says no format, or it can't be read or is too large.
pub(in crate::cli) fn read(file: &Path) -> Result<(pack::Format, Vec<u8>), Error> {
    let format = pack::Format::of_file(file).ok_or_else(|| {
        Error::invalid(format!("{} does not say what it is", file.display()))
            .hint("the name of a pack file ends in .yaml, .yml, .toml or .json")
    })?;
    let mut content = Vec::new();
    File::open(file)
        .and_then(|open| open.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut content))
        .map_err(|error| Error::invalid(format!("cannot read {}: {error}", file.display())))?;
    if content.len() > FILE_BYTES_MAX {
        let message = format!("{} has more than {FILE_BYTES_MAX} bytes", file.display());
        return Err(Error::invalid(message).hint("scripts can be moved into files that the jobs fetch"));
    }
    Ok((format, content))
}

/// Registers the content of a pack file. Also for `packrun dev`.
///
/// # Errors
/// When it is refused; the faults of the file are named as compilers do.
pub(in crate::cli) async fn register(
    client: &Client,
    file: &Path,
    format: pack::Format,
    content: &[u8],
) -> Result<Answer<PackVersion>, Error> {
    let answer = client.post_file(&["v1", "packs"], format.media_type(), content).await;
    answer.map_err(|error| match (error.kind, pack::check(format, content, &pack::Limits::default())) {
        // The same check, here with the file's name in each line.
        (Kind::Invalid, Err(invalid)) => Error::invalid(invalid.report(&file.display().to_string())),
        _ => error,
    })
}

async fn content(client: &Client, pack: &PackRef) -> Result<Answer<PackContent>, Error> {
    match pack.version.map(|version| version.to_string()) {
        Some(version) => client.get(&["v1", "packs", pack.name.as_str(), "versions", &version], &[]).await,
        None => client.get(&["v1", "packs", pack.name.as_str()], &[]).await,
    }
}

async fn archive(
    session: &Session,
    world: &mut World<'_>,
    PackRef { name, version }: &PackRef,
    verb: &str,
    done: &str,
) -> Result<(), Error> {
    let number = version.map(|version| version.to_string());
    let path = match &number {
        Some(number) => vec!["v1", "packs", name.as_str(), "versions", number, verb],
        None => vec!["v1", "packs", name.as_str(), verb],
    };
    let client = session.client(world)?;
    let answer = client.post::<PackVersion>(&path, &serde_json::json!({}), Repeat::Always).await?;
    output::show(world, session.format, &answer.body, |_| match version {
        Some(version) => format!("{name}@{version} is {done}"),
        None => format!("{name}, up to version {}, is {done}", answer.value.version),
    })
}

/// What a version is called that may be run, or not.
fn state(version: &PackVersion) -> &'static str {
    if version.archived { "archived" } else { "active" }
}

fn row(version: &PackVersion) -> [String; 5] {
    [
        version.name.to_string(),
        version.version.to_string(),
        state(version).to_owned(),
        time(version.registered_at),
        version.digest.to_string(),
    ]
}

fn described(content: &PackContent) -> String {
    let version = &content.version;
    let definition = serde_json::to_string_pretty(&content.definition).unwrap_or_default();
    let definition: Vec<_> = definition.lines().map(printable).collect();
    let fields = output::fields(&[
        ("Pack", version.name.to_string()),
        ("Version", version.version.to_string()),
        ("State", state(version).to_owned()),
        ("Digest", version.digest.to_string()),
        ("Format", version.media_type.clone()),
        ("Registered", time(version.registered_at)),
    ]);
    format!("{fields}\n{}", definition.join("\n"))
}

/// A file's text: on a terminal without what would command it.
fn shown(world: &World<'_>, text: &str) -> String {
    if !world.out.terminal {
        return text.to_owned();
    }
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => printable(line).replace("\\t", "\t") + "\n",
            None => printable(line),
        })
        .collect()
}
