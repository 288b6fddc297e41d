//! Which arguments are taken, and which are not.

use clap::{CommandFactory, Parser};

use super::*;
use crate::cli::Cli;
use crate::cli::coordinator::Settings;

#[test]
fn what_the_contract_names_is_taken() {
    let taken = [
        "pack register build.yaml",
        "pack list --output json",
        "pack show build",
        "pack show build@3 --source",
        "pack diff build@1 build@2",
        "pack check build.toml",
        "pack list build --archived",
        "pack archive build",
        "pack archive build@2",
        "pack unarchive build@2",
        "run build",
        "run build@2 --param a=1 --param b=x=y --follow",
        "run build --wait --idempotency-key k",
        "run build --detach --server http://h:1 --token-file t --ca c --context prod",
        "runs list --pack build --state partially_failed --limit 5 --cursor c",
        "runs show 0193",
        "runs show 0193 --job lint",
        "runs cancel 0193",
        "runs cancel 0193 --job lint",
        "runs retry 0193 --failed --follow",
        "runs retry 0193 --wait",
        "logs 0193 --job test[shard=1] --follow --since 10m --timestamps",
        "logs 0193 --tail 100 --follow",
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
        "logs 0193 --tail -1",
        "logs 0193 --tail 100001",
        "pack archive build@0",
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

/// Every command with its path and its help.
fn commands() -> Vec<(String, String)> {
    fn walk(command: &mut clap::Command, above: &str, found: &mut Vec<(String, String)>) {
        let path = format!("{above}{}", command.get_name());
        found.push((path.clone(), command.render_long_help().to_string()));
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            walk(sub, &format!("{path} "), found);
        }
    }
    let mut command = Cli::command();
    command.build();
    command.clone().debug_assert();
    let mut found = Vec::new();
    walk(&mut command, "", &mut found);
    found
}

/// The words of a line as a shell reads them, without the variables before it, and what it writes to behind it. Two
/// spaces end an example, and a remark follows.
fn words(example: &str) -> Vec<String> {
    let example = example.split("  ").next().unwrap_or_default();
    let example = example.split(" > ").next().unwrap_or_default();
    let (mut words, mut quoted) = (vec![String::new()], false);
    for char in example.chars() {
        match (char, words.last_mut()) {
            ('\'', _) => quoted = !quoted,
            (' ', _) if !quoted => words.push(String::new()),
            (char, Some(word)) => word.push(char),
            (_, None) => {}
        }
    }
    words.into_iter().skip_while(|word| word.contains('=')).collect()
}

#[test]
fn every_command_has_help_with_examples_of_itself_that_are_taken() {
    let commands = commands();
    assert!(commands.len() > 30, "{}", commands.len());
    for (path, help) in commands {
        let (_, examples) =
            help.split_once("\nExample:\n").unwrap_or_else(|| panic!("{path} has none: {help}"));
        let lines = examples.lines().take_while(|line| line.starts_with("  "));
        let examples: Vec<_> = lines.map(|line| words(line.trim())).collect();
        assert!(!examples.is_empty(), "{path}");
        for example in examples {
            assert!(example.join(" ").starts_with(&path), "{path}: {example:?}");
            let parsed = Cli::try_parse_from(&example);
            assert!(parsed.is_ok(), "{path}: {example:?}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn every_option_of_serve_has_a_variable_and_a_key_of_the_file() {
    let command = Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml").display().to_string();
    // The file is named, and limits, which are many, have a test of their own.
    let own = ["config", "limits"];
    for option in serve.get_arguments().filter(|option| !own.contains(&option.get_id().as_str())) {
        let name = option.get_long().unwrap().replace('-', "_");
        let help = option.get_help().unwrap().to_string();
        assert!(help.contains(&format!("PACKRUN_{}", name.to_uppercase())), "{name}: {help}");
        std::fs::write(&file, format!("\n{name} = {{ a = [] }}\n")).unwrap();
        let error = settings(&["packrun", "serve", "--config", &file]).unwrap_err();
        assert!(error.contains("line 2") && !error.contains("unknown field"), "{error}");
    }
}

/// What `serve` makes of these arguments, or why it doesn't.
fn settings(args: &[&str]) -> Result<Settings, String> {
    let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
    let crate::cli::Command::Serve(serve) = cli.command else { panic!("{args:?}") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let world = World {
        variables: BTreeMap::from([("PACKRUN_LEASE".to_owned(), "3m".to_owned())]),
        data_folders: Vec::new(),
        out: Screen { writer: &mut out, terminal: false, color: false },
        err: Screen { writer: &mut err, terminal: false, color: false },
        now: Timestamp::default(),
        interrupt: Interrupt::Token(CancellationToken::new()),
        lull: Duration::from_secs(60),
    };
    serve.settings(&world).map(|(settings, _)| settings).map_err(|error| error.to_string())
}

#[test]
fn a_flag_of_serve_comes_before_a_variable_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml").display().to_string();
    let text = "data_dir = '/of-file'\nlisten_api = '127.0.0.1:1'\nlease = '2m'\ncertificate_ttl = '2d'\n\
                api_name = ['a.example']\nlog = 'warn'\n[limits]\nartifact_bytes = 7\n";
    std::fs::write(&file, text).unwrap();
    let made = settings(&["packrun", "serve", "--config", &file, "--listen-api", "127.0.0.1:2"]).unwrap();
    assert_eq!((made.listen_api.port(), made.lease.as_secs()), (2, 180), "the flag; the variable");
    assert_eq!((made.data_dir.to_str(), made.certificate.as_secs()), (Some("/of-file"), 2 * 86_400));
    assert_eq!((made.api_names, made.limits.artifact_bytes), (vec!["a.example".to_owned()], 7));
    for (text, line, said) in [
        ("lease = '1m'\nleese = '1m'\n", "line 2", "unknown field `leese`"),
        ("\n\nlease = 'soon'\n", "line 3", "`soon` is not a duration"),
        ("coordinator = 'h:7443'\n", "line 1", "unknown field `coordinator`"),
        ("lease = \n", "line 1", "c.toml"),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = settings(&["packrun", "serve", "--config", &file]).unwrap_err();
        assert!(error.contains(line) && error.contains(said) && error.contains("c.toml"), "{error}");
    }
}

#[tokio::test]
async fn help_version_and_completions_go_to_the_output() {
    for args in [&["--help"][..], &["run", "--help"], &["--version"], &["completions", "bash"]] {
        let ran = Invocation::new(args).run().await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
        assert!(ran.out.contains("packrun"), "{args:?}");
    }
}
