//! The pack language from the outside: a file's text in, a pack, a plan or problems out.

mod bounds;
mod equivalence;
mod expansion;
mod problems;
mod properties;
mod reference;
mod schema;

use super::{Format, InvalidPack, Limits, Pack};

fn check(format: Format, source: &[u8]) -> Result<Pack, InvalidPack> {
    super::check(format, source, &Limits::default())
}

/// The pack of a YAML text that is right.
fn pack(text: &str) -> Pack {
    check(Format::Yaml, text.as_bytes())
        .unwrap_or_else(|error| panic!("{}\n{text}", error.report("pack.yaml")))
}

/// What is wrong with a text, a line each.
fn report(format: Format, text: &str) -> String {
    match check(format, text.as_bytes()) {
        Ok(pack) => panic!("accepted: {}", pack.canonical()),
        Err(error) => lines(&error),
    }
}

fn lines(error: &InvalidPack) -> String {
    let lines = error.problems.iter().map(|problem| format!("{problem} [{}]", problem.kind.as_str()));
    lines.collect::<Vec<_>>().join("\n")
}
