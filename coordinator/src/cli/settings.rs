//! Which coordinator, and with which token: flags, before variables, before the configuration file, before what a
//! coordinator on this host left in its data folder.
//!
//! A context is a whole: the file's current context counts only when neither a flag nor a variable names a server,
//! so that the token of one coordinator is never sent to another. Who names a context by `--context` may replace
//! parts of it by flags and variables.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::exit::Error;
use super::world::World;

/// Where a coordinator listens unless it was told otherwise.
pub const SERVER_DEFAULT: &str = "http://127.0.0.1:7080";

/// Largest file that is read here, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The flags of every command that talks to a coordinator.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// The coordinator's API, as http://127.0.0.1:7080 [variable: PACKRUN_SERVER]
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// A file with the token to send [variables: PACKRUN_TOKEN with the token itself, PACKRUN_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The coordinator's CA certificate, for https [variable: PACKRUN_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// A context of the configuration file [variable: PACKRUN_CONTEXT]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
}

/// Where to connect to, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// The API's URL.
    pub server: String,
    /// The token.
    pub token: Option<String>,
    /// The CA's certificates, in PEM.
    pub ca: Option<Vec<u8>>,
}

/// The token is not shown.
impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("Connection").field("server", &self.server).field("token", &token).finish()
    }
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// A coordinator in the configuration file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    server: String,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
}

/// What a coordinator that accepts work writes into its data folder; it may say more.
#[derive(Debug, Deserialize)]
struct Ready {
    api: String,
    admin_token_file: Option<PathBuf>,
}

impl ConnectionArgs {
    /// The connection that these flags and the surroundings ask for.
    ///
    /// # Errors
    /// When a file that was named can't be read or is wrong, there is no such context, or no coordinator is ready in
    /// the data folder that was named.
    pub fn resolve(&self, world: &World<'_>) -> Result<Connection, Error> {
        let server = self.server.as_deref().or_else(|| world.variable("PACKRUN_SERVER"));
        let named = self.context.as_deref().or_else(|| world.variable("PACKRUN_CONTEXT"));
        let context = if named.is_some() || server.is_none() { context(world, named)? } else { None };
        let path = |name| world.variable(name).map(PathBuf::from);
        let token_file = || path("PACKRUN_TOKEN_FILE").or_else(|| context.as_ref()?.token_file.clone());
        let ca = self.ca.clone().or_else(|| path("PACKRUN_CA")).or_else(|| context.as_ref()?.ca.clone());
        let token = match (&self.token_file, world.variable("PACKRUN_TOKEN")) {
            (Some(file), _) => Some(token(file)?),
            (None, Some(text)) => Some(checked(text, "PACKRUN_TOKEN")?),
            (None, None) => token_file().map(|file| token(&file)).transpose()?,
        };
        let ca = ca.map(|file| read(&file, "the CA's certificate")).transpose()?;
        match server.or_else(|| context.as_ref().map(|context| context.server.as_str())) {
            Some(server) => Ok(Connection { server: server.to_owned(), token, ca }),
            None => local(world, token, ca),
        }
    }
}

/// The connection to the coordinator of this host, as far as its data folder may be read. Where `PACKRUN_DATA_DIR`
/// names the folder, no other coordinator is meant.
fn local(world: &World<'_>, token: Option<String>, ca: Option<Vec<u8>>) -> Result<Connection, Error> {
    let told = world.variable("PACKRUN_DATA_DIR").map(PathBuf::from);
    let folders = told.as_ref().map_or(&*world.data_folders, std::slice::from_ref);
    for folder in folders {
        let Ok(text) = read(&folder.join("ready.json"), "") else { continue };
        let Ok(ready) = serde_json::from_slice::<Ready>(&text) else { continue };
        let admin = || self::token(&folder.join(ready.admin_token_file.as_ref()?)).ok();
        return Ok(Connection {
            token: token.or_else(admin),
            ca: ca.or_else(|| read(&folder.join("ca/ca.pem"), "").ok()),
            server: ready.api,
        });
    }
    match told {
        Some(folder) => Err(Error::unreachable(format!("no coordinator is ready in {}", folder.display()))
            .hint("start it by `packrun serve`, or unset PACKRUN_DATA_DIR or name a server by --server")),
        None => Ok(Connection { server: SERVER_DEFAULT.to_owned(), token, ca }),
    }
}

/// The context with this name, or else the current one, if there is one. Its paths are absolute.
fn context(world: &World<'_>, named: Option<&str>) -> Result<Option<Context>, Error> {
    let folder = world
        .variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(Path::new(world.variable("HOME")?).join(".config")));
    let file = folder.map(|folder| folder.join("packrun/config.toml"));
    let config = file.as_deref().map(config).transpose()?.flatten();
    let file = file.unwrap_or_default();
    let config = config.unwrap_or_default();
    let Some(name) = named.or(config.current.as_deref()) else { return Ok(None) };
    let Some(mut context) = config.contexts.get(name).cloned() else {
        let known: Vec<_> = config.contexts.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { known.join(", ") };
        return Err(Error::invalid(format!("no context `{name}` in {}", file.display()))
            .hint(format!("its contexts: {known}")));
    };
    let base = file.parent().unwrap_or(Path::new(""));
    context.token_file = context.token_file.map(|path| base.join(path));
    context.ca = context.ca.map(|path| base.join(path));
    Ok(Some(context))
}

/// The configuration in `file`, if it is there.
fn config(file: &Path) -> Result<Option<Config>, Error> {
    match fs::metadata(file) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        _ => {}
    }
    let bytes = read(file, "the configuration")?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::invalid(format!("{}: the configuration is not UTF-8", file.display())))?;
    toml::from_str(&text).map(Some).map_err(|error| {
        Error::invalid(format!("{}: {}", file.display(), error.to_string().trim_end()))
            .hint("keys are `current` and `[contexts.NAME]` with `server`, `token_file` and `ca`")
    })
}

fn token(file: &Path) -> Result<String, Error> {
    let bytes = read(file, "the token")?;
    checked(&String::from_utf8_lossy(&bytes), &file.display().to_string())
}

/// `text` without the space around it, if a header can carry it.
fn checked(text: &str, source: &str) -> Result<String, Error> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format!("{source} holds no token"))
            .hint("a token is what `packrun tokens create --role ROLE` prints"));
    }
    Ok(token.to_owned())
}

/// The content of a small file.
fn read(file: &Path, what: &str) -> Result<Vec<u8>, Error> {
    let failed = |why: &dyn std::fmt::Display| {
        Error::invalid(format!("cannot read {what} in {}: {why}", file.display()))
    };
    let mut bytes = Vec::new();
    let open = fs::File::open(file).map_err(|error| failed(&error))?;
    open.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(&format_args!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}
