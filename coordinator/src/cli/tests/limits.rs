//! Limits as they are set: by flags, variables and a file, each within its range.

use std::collections::HashSet;
use std::fs;

use super::*;
use crate::cli::limits::{Limits, SETTINGS};
use crate::cli::serve::ServeArgs;

fn read(flags: &[&str], variables: &[(&str, &str)], file: &str) -> Result<Limits, String> {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("coordinator.toml");
    fs::write(&config, file).unwrap();
    let limits = flags.iter().map(|flag| crate::cli::args::pair(flag).unwrap()).collect();
    let args = ServeArgs { config: Some(config), limits, ..ServeArgs::default() };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let world = World {
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        data_folders: Vec::new(),
        out: Screen { writer: &mut out, terminal: false, color: false },
        err: Screen { writer: &mut err, terminal: false, color: false },
        now: Timestamp::MIN,
        interrupt: Interrupt::Taken,
        lull: Duration::ZERO,
    };
    args.settings(&world).map(|(settings, _)| settings.limits).map_err(|error| format!("{error:?}"))
}

#[test]
fn a_flag_goes_before_a_variable_and_that_before_the_file() {
    let file = "[limits]\nlog_bytes = \"1GiB\"\ntokens = 5\njob_runs = 7\n";
    let variables = [("PACKRUN_LIMITS_LOG_BYTES", "2 MiB"), ("PACKRUN_LIMITS_TOKENS", "6")];
    let limits = read(&["log_bytes=4096"], &variables, file).unwrap();
    assert_eq!((limits.api.packs.log_bytes, limits.tokens, limits.api.packs.job_runs), (4096, 6, 7));
    assert_eq!(read(&[], &[("PACKRUN_LIMITS_TOKENS", "")], "").unwrap(), Limits::default());
}

#[test]
fn what_is_no_limit_or_out_of_its_range_is_refused_by_its_name() {
    for (flags, variables, file, words) in [
        (&["log_byte=1MiB"][..], &[][..], "", &["--limit log_byte: there is no limit", "log_bytes"][..]),
        (&["log_bytes=1B"], &[], "", &["--limit log_bytes: `1B` is out of bounds: it takes 1KiB to 1TiB"]),
        (&["tokens=many"], &[], "", &["--limit tokens: `many` is no number"]),
        (&["tokens=1MiB"], &[], "", &["`1MiB` is no number"]),
        (&[], &[("PACKRUN_LIMITS_X", "1")], "", &["PACKRUN_LIMITS_X: there is no limit `x`"]),
        (
            &[],
            &[("PACKRUN_LIMITS_PACK_BYTES", "-1")],
            "",
            &["PACKRUN_LIMITS_PACK_BYTES: `-1` is no amount of bytes"],
        ),
        (
            &[],
            &[],
            "[limits]\nstreams = 0\n",
            &["the configuration's `limits.streams`: `0` is out of bounds"],
        ),
        (&[], &[], "[limits]\nstreams = true\n", &["`limits.streams`: `boolean` is no number"]),
        (&[], &[], "[limits]\nstream = 1\n", &["`limits.stream`: there is no limit"]),
    ] {
        let refused = read(flags, variables, file).unwrap_err();
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    }
}

#[test]
fn every_setting_has_a_name_and_a_place_of_its_own_and_its_default_in_its_range() {
    let mut names = HashSet::new();
    for setting in SETTINGS {
        assert!(names.insert(setting.name), "{} is there twice", setting.name);
        let default = setting.of(&Limits::default());
        let shown = setting.shown(default);
        let same = read(&[&format!("{}={shown}", setting.name)], &[], "").unwrap();
        assert_eq!(same, Limits::default(), "{} is {shown}", setting.name);
        let other = default / 2;
        let changed = read(&[&format!("{}={other}", setting.name)], &[], "").unwrap();
        assert_eq!(setting.of(&changed), other);
        for another in SETTINGS.iter().filter(|another| another.name != setting.name) {
            assert_eq!(another.of(&changed), another.of(&Limits::default()), "{}", setting.name);
        }
    }
}
