//! `packrun tokens`: making, listing and revoking API tokens.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use crate::api::types::{NewToken, Role, Token, TokenMade};
use crate::cli::client::Repeat;
use crate::cli::exit::{Error, Exit};
use crate::cli::output::{self, time};
use crate::cli::world::World;
use crate::cli::{Session, args, resolve};

/// What a token's bearer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RoleArg {
    /// Read
    Viewer,
    /// Register packs, start, cancel and repeat pack runs
    Operator,
    /// Everything
    Admin,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TokensCommand {
    /// Make a token and print it; it is not shown again
    #[command(after_help = "Example:\n  packrun tokens create --role operator --ttl 90d > token")]
    Create {
        /// What its bearer may do
        #[arg(long, value_enum)]
        role: RoleArg,
        /// How long it holds; until it is revoked without
        #[arg(long, value_parser = args::duration)]
        ttl: Option<Duration>,
    },
    /// List the tokens, those of invited agents too
    #[command(after_help = "Example:\n  packrun tokens list --output json")]
    List,
    /// Revoke a token
    #[command(after_help = "Example:\n  packrun tokens revoke 0193c5e2")]
    Revoke {
        /// Its id, or the start of it
        id: String,
    },
}

impl TokensCommand {
    pub(in crate::cli) async fn run(self, session: &Session, world: &mut World<'_>) -> Result<Exit, Error> {
        let client = session.client(world)?;
        match self {
            Self::Create { role, ttl } => {
                let role = match role {
                    RoleArg::Viewer => Role::Viewer,
                    RoleArg::Operator => Role::Operator,
                    RoleArg::Admin => Role::Admin,
                };
                let request = NewToken { role, ttl_seconds: ttl.map(|ttl| ttl.as_secs()) };
                let made = client.post::<TokenMade>(&["v1", "tokens"], &request, Repeat::IfUnsent).await?;
                output::show(world, session.format, &made.body, |_| made.value.token.clone())?;
                let id = made.value.info.id;
                world
                    .err
                    .line(format_args!("it is not shown again; revoke it by `packrun tokens revoke {id}`"))?;
            }
            Self::List => {
                let tokens = client.list::<Token>(&["v1", "tokens"], &[]).await?;
                let rows = tokens.value.iter().map(|token| {
                    [
                        token.id.to_string(),
                        token.role.clone(),
                        token.state.clone(),
                        time(token.created_at),
                        token.expires_at.map_or_else(|| "never".to_owned(), time),
                    ]
                });
                output::show(world, session.format, &tokens.body, |color| {
                    output::table(["ID", "ROLE", "STATE", "CREATED", "EXPIRES"], rows, color)
                })?;
            }
            Self::Revoke { id } => {
                let id = resolve::token(&client, &id).await?.id;
                let path = ["v1", "tokens", &id.to_string(), "revoke"];
                let answer =
                    client.post::<serde_json::Value>(&path, &serde_json::json!({}), Repeat::Always).await?;
                output::show(world, session.format, &answer.body, |_| format!("token {id} is revoked"))?;
            }
        }
        Ok(Exit::Done)
    }
}
