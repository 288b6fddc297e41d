//! `packrun run`: starting a pack run.

use std::collections::BTreeMap;

use clap::Args;
use packrun_protocol::id::PackRunId;
use serde_json::Value;

use crate::api::types::{NewPackRun, PackRun};
use crate::cli::Session;
use crate::cli::args::{self, PackRef};
use crate::cli::client::{Answer, Client, Repeat};
use crate::cli::exit::{Error, Exit};
use crate::cli::follow::{self, Afterwards};
use crate::cli::output::{self, Format};
use crate::cli::world::World;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  packrun run build@3 --param profile=debug --follow")]
pub(in crate::cli) struct RunArgs {
    /// The pack, the newest version that is not archived unless one is given
    #[arg(value_name = "NAME[@V]")]
    pack: PackRef,
    /// A parameter's value; may be given for each parameter
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = args::pair)]
    params: Vec<(String, String)>,
    #[command(flatten)]
    until: Until,
    /// A key of your own: a second start with it is the first one
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// How long a command stays with the pack run it started.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(in crate::cli) struct Until {
    /// Show everything that happens, to its end; the exit code tells how it ended
    #[arg(long, conflicts_with = "wait")]
    follow: bool,
    /// Wait for its end in silence; the exit code tells how it ended
    #[arg(long)]
    wait: bool,
    /// Print its id and leave it to itself (the default)
    #[arg(long, conflicts_with_all = ["follow", "wait"])]
    detach: bool,
}

impl RunArgs {
    pub(in crate::cli) async fn run(self, session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
        self.until.check(session.format)?;
        let client = match &self.idempotency_key {
            Some(key)
                if key.is_empty() || key.len() > 255 || !key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                return Err(Error::invalid("an idempotency key takes 1 to 255 visible ASCII characters"));
            }
            Some(key) => session.client_with(world, key)?,
            None => session.client(world)?,
        };
        let started = start(&client, &self.pack, self.params).await?;
        self.until.stay(session, world, &client, started).await
    }
}

/// Starts a pack run. Also for `packrun dev`.
///
/// # Errors
/// When it is refused, or a parameter is given twice.
pub(in crate::cli) async fn start(
    client: &Client,
    pack: &PackRef,
    params: Vec<(String, String)>,
) -> Result<Answer<PackRun>, Error> {
    let mut values = BTreeMap::new();
    for (key, value) in params {
        if values.insert(key.clone(), Value::String(value)).is_some() {
            return Err(Error::invalid(format!("the parameter `{key}` is given twice")));
        }
    }
    let request = NewPackRun { pack: pack.name.to_string(), version: pack.version, params: values };
    client.post(&["v1", "pack-runs"], &request, Repeat::Always).await
}

impl Until {
    /// Refuses what can't be.
    pub(in crate::cli) fn check(self, format: Format) -> Result<(), Error> {
        if self.follow && format == Format::Json {
            return Err(Error::invalid("what --follow shows has no form in JSON")
                .hint("use --wait --output json, or `packrun logs RUN --follow --output json`"));
        }
        Ok(())
    }

    /// Stays with a pack run that was started for as long as is wanted.
    pub(in crate::cli) async fn stay(
        self,
        session: &Session,
        world: &mut World<'_>,
        client: &Client,
        started: Answer<PackRun>,
    ) -> Result<Exit, Error> {
        let id: PackRunId = started.value.id;
        if self.follow {
            let PackRun { pack, version, .. } = &started.value;
            world.err.line(format_args!("started pack run {id} of {pack}@{version}"))?;
            follow::follow(world, client, id, Afterwards::Stays).await
        } else if self.wait {
            follow::wait(world, client, id, session.format).await
        } else {
            output::show(world, session.format, &started.body, |_| id.to_string())?;
            Ok(Exit::Done)
        }
    }
}
