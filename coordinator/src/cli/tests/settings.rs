//! Which coordinator is meant, and as whom.

use std::fs;
use std::path::Path;

use super::*;
use crate::cli::settings::{Connection, ConnectionArgs};

struct Files(tempfile::TempDir);

impl Files {
    /// Tokens in `t-flag`, `t-variable` and `t-prod`, and a configuration of two contexts, `prod` the current one.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("packrun");
        fs::create_dir(&config).unwrap();
        for name in ["flag", "variable"] {
            fs::write(folder.path().join(name), format!("t-{name}\n")).unwrap();
        }
        fs::write(config.join("prod"), "t-prod").unwrap();
        fs::write(config.join("ca.pem"), "ca-prod").unwrap();
        fs::write(
            config.join("config.toml"),
            "current = \"prod\"\n[contexts.prod]\nserver = \"https://prod\"\ntoken_file = \"prod\"\nca = \"ca.pem\"\n\
             [contexts.test]\nserver = \"http://test\"\n",
        )
        .unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn resolve(&self, flags: ConnectionArgs, variables: &[(&str, &str)]) -> Result<Connection, String> {
        let config = self.path("");
        let variables = variables.iter().copied().chain([("XDG_CONFIG_HOME", config.as_str())]);
        resolve(flags, variables, &[])
    }
}

fn resolve<'v>(
    flags: ConnectionArgs,
    variables: impl IntoIterator<Item = (&'v str, &'v str)>,
    data_folders: &[&Path],
) -> Result<Connection, String> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let world = World {
        variables: variables.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        data_folders: data_folders.iter().map(|path| path.to_path_buf()).collect(),
        out: Screen { writer: &mut out, terminal: false, color: false },
        err: Screen { writer: &mut err, terminal: false, color: false },
        now: Timestamp::default(),
        interrupt: Interrupt::Token(CancellationToken::new()),
        lull: std::time::Duration::from_secs(60),
    };
    flags.resolve(&world).map_err(|error| error.to_string())
}

fn connection(server: &str, token: Option<&str>, ca: Option<&str>) -> Connection {
    Connection {
        server: server.to_owned(),
        token: token.map(str::to_owned),
        ca: ca.map(|ca| ca.as_bytes().to_vec()),
    }
}

fn flags() -> ConnectionArgs {
    ConnectionArgs::default()
}

#[test]
fn a_flag_comes_before_a_variable_and_that_before_the_file() {
    let files = Files::new();
    let prod = connection("https://prod", Some("t-prod"), Some("ca-prod"));
    assert_eq!(files.resolve(flags(), &[]), Ok(prod.clone()));
    assert_eq!(files.resolve(flags(), &[("PACKRUN_SERVER", "")]), Ok(prod), "an empty variable is none");
    let variables = [("PACKRUN_SERVER", "http://variable"), ("PACKRUN_TOKEN", "t-secret")];
    let expected = connection("http://variable", Some("t-secret"), None);
    assert_eq!(files.resolve(flags(), &variables), Ok(expected));
    let all = ConnectionArgs {
        server: Some("http://flag".into()),
        token_file: Some(files.path("flag").into()),
        ..flags()
    };
    assert_eq!(files.resolve(all, &variables), Ok(connection("http://flag", Some("t-flag"), None)));
    let file = files.path("variable");
    let variables = [("PACKRUN_SERVER", "http://variable"), ("PACKRUN_TOKEN_FILE", file.as_str())];
    let expected = connection("http://variable", Some("t-variable"), None);
    assert_eq!(files.resolve(flags(), &variables), Ok(expected));
}

#[test]
fn a_contexts_token_goes_to_no_other_server() {
    let files = Files::new();
    let other = ConnectionArgs { server: Some("http://other".into()), ..flags() };
    assert_eq!(files.resolve(other.clone(), &[]), Ok(connection("http://other", None, None)));
    let named = ConnectionArgs { context: Some("prod".into()), ..other };
    let expected = connection("http://other", Some("t-prod"), Some("ca-prod"));
    assert_eq!(files.resolve(named, &[]), Ok(expected), "unless it is asked for");
    let test = [("PACKRUN_CONTEXT", "test")];
    assert_eq!(files.resolve(flags(), &test), Ok(connection("http://test", None, None)));
    let unknown = ConnectionArgs { context: Some("live".into()), ..flags() };
    let error = files.resolve(unknown, &[]).unwrap_err();
    assert!(error.contains("no context `live`") && error.contains("prod, test"), "{error}");
}

#[test]
fn a_wrong_file_is_an_error_that_names_it() {
    let files = Files::new();
    let config = files.path("packrun/config.toml");
    for (text, said) in [
        ("curent = \"prod\"", "unknown field `curent`"),
        ("[contexts.a]\nserver = \"x\"\ntoken = \"y\"", "unknown field `token`"),
        ("[contexts.a]", "missing field `server`"),
        ("current = ", "config.toml"),
    ] {
        fs::write(&config, text).unwrap();
        let error = files.resolve(flags(), &[]).unwrap_err();
        assert!(error.contains(said) && error.contains(&config), "{error}");
    }
    fs::remove_file(&config).unwrap();
    for token in ["", " \n", "two words", "é"] {
        fs::write(files.path("flag"), token).unwrap();
        let wrong = ConnectionArgs { token_file: Some(files.path("flag").into()), ..flags() };
        assert!(files.resolve(wrong, &[]).unwrap_err().contains("holds no token"), "{token:?}");
    }
    let missing = ConnectionArgs { token_file: Some(files.path("missing").into()), ..flags() };
    assert!(files.resolve(missing, &[]).unwrap_err().contains("cannot read the token in "));
}

#[test]
fn without_any_setting_the_coordinator_of_this_host_is_meant() {
    let nothing: [(&str, &str); 0] = [];
    let default = connection("http://127.0.0.1:7080", None, None);
    assert_eq!(resolve(flags(), nothing, &[Path::new("/nonexistent")]), Ok(default.clone()));
    let data = tempfile::tempdir().unwrap();
    let token = data.path().join("admin.token");
    fs::write(&token, "t-admin\n").unwrap();
    let ready = json!({"api": "http://127.0.0.1:4000", "agents": "127.0.0.1:7443",
        "ca_fingerprint": DIGEST, "admin_token_file": token});
    fs::write(data.path().join("ready.json"), ready.to_string()).unwrap();
    let folders = [Path::new("/nonexistent"), data.path()];
    let expected = connection("http://127.0.0.1:4000", Some("t-admin"), None);
    assert_eq!(resolve(flags(), nothing, &folders), Ok(expected));
    let elsewhere = [("PACKRUN_SERVER", "http://elsewhere")];
    assert_eq!(resolve(flags(), elsewhere, &folders), Ok(connection("http://elsewhere", None, None)));
    fs::remove_file(token).unwrap();
    let expected = connection("http://127.0.0.1:4000", None, None);
    assert_eq!(resolve(flags(), nothing, &folders), Ok(expected), "a token that may not be read is left");
    fs::write(data.path().join("ready.json"), "{").unwrap();
    assert_eq!(resolve(flags(), nothing, &folders), Ok(default));
}

#[test]
fn a_data_folder_that_was_named_is_the_only_one() {
    let (other, named) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ready = |port: u16| json!({"api": format!("http://127.0.0.1:{port}")}).to_string();
    fs::write(other.path().join("ready.json"), ready(4000)).unwrap();
    let folder = named.path().display().to_string();
    let variables = [("PACKRUN_DATA_DIR", folder.as_str())];
    let error = resolve(flags(), variables, &[other.path()]).unwrap_err();
    assert!(error.contains(&format!("no coordinator is ready in {folder}")), "{error}");
    fs::write(named.path().join("ready.json"), ready(5000)).unwrap();
    let expected = connection("http://127.0.0.1:5000", None, None);
    assert_eq!(resolve(flags(), variables, &[other.path()]), Ok(expected));
}
