//! Which arguments are taken, and which are not.

use clap::{CommandFactory, Parser};

use super::*;
use crate::cli::Cli;

#[test]
fn what_the_contract_names_is_taken() {
    let taken = [
        "pack register build.yaml",
        "pack list --output json",
        "pack show build",
        "pack show build@3 --source",
        "pack diff build@1 build@2",
        "pack check build.toml",
        "run build",
        "run build@2 --param a=1 --param b=x=y --follow",
        "run build --wait --idempotency-key k",
        "run build --detach --server http://h:1 --token-file t --ca c --context prod",
        "runs list --pack build --state partially_failed --limit 5 --cursor c",
        "runs show 0193",
        "runs cancel 0193",
        "runs retry 0193 --failed --follow",
        "runs retry 0193 --wait",
        "logs 0193 --job test[shard=1] --follow --since 10m --timestamps",
        "logs 0193 --since 2026-01-31T12:00:00Z --output json",
        "artifacts list 0193",
        "artifacts get 0193 --to out",
        "artifacts get 0193 compile/target/app --to out",
        "agents invite",
        "agents invite --ttl 2h --label os=linux --label gpu=none --name builder-1",
        "agents list",
        "agents show builder",
        "agents drain builder",
        "agents resume builder",
        "agents revoke builder-1",
        "tokens create --role operator --ttl 90d",
        "tokens list",
        "tokens revoke 0193",
        "status",
        "--output json status",
        "completions zsh",
    ];
    for line in taken {
        let args = std::iter::once("packrun").chain(line.split(' '));
        assert!(Cli::try_parse_from(args).is_ok(), "{line}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_a_usage_error() {
    let refused = [
        "",
        "pack",
        "pack show Build",
        "run",
        "run build --param a",
        "run build --follow --wait",
        "run build --detach --follow",
        "runs list --state done",
        "runs list --limit 0",
        "logs 0193 --since yesterday",
        "artifacts get 0193",
        "agents invite --ttl soon",
        "tokens create",
        "tokens create --role root",
        "status --output yaml",
        "status --no-such",
    ];
    for line in refused {
        let args: Vec<_> = line.split(' ').filter(|arg| !arg.is_empty()).collect();
        let ran = Invocation::new(&args).run().await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{line}: {}", ran.err);
        assert!(!ran.err.is_empty(), "{line}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    fn walk(command: &mut clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        let help = command.render_help().to_string();
        if command.get_subcommands().next().is_none() && !path.ends_with(" help") {
            assert!(help.contains("Example:\n  packrun "), "{path}: {help}");
        }
        for sub in command.get_subcommands_mut() {
            if sub.get_name() != "help" {
                walk(sub, &path);
            }
        }
    }
    let mut command = Cli::command();
    command.build();
    command.clone().debug_assert();
    walk(&mut command, "");
}

#[tokio::test]
async fn help_version_and_completions_go_to_the_output() {
    for args in [&["--help"][..], &["run", "--help"], &["--version"], &["completions", "bash"]] {
        let ran = Invocation::new(args).run().await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
        assert!(ran.out.contains("packrun"), "{args:?}");
    }
}
