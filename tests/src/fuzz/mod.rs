//! What must hold of everything that reads bytes somebody else made: a property a target, each a plain function that
//! panics where it is broken. `tests/fuzz` gives them random bytes; `tests/corpus` those that are kept.
//!
//! | file | targets |
//! | --- | --- |
//! | `wire` | frames, messages and log blocks, from the other end of a connection |
//! | `text` | names, paths, tokens and certificates, from wherever people and programs get them |
//! | `pack` | pack files and the expressions in them |
//! | `disk` | the agent's journal and the rows of log extents, as a crash or a bad disk leaves them |

mod disk;
mod pack;
mod text;
mod wire;

/// What must hold of any bytes: it panics where that is broken.
pub type Property = fn(&[u8]);

/// What is fuzzed: the name of a target, which is also that of its folder in the corpus, and its property.
pub const TARGETS: &[(&str, Property)] = &[
    ("blocks", wire::blocks),
    ("certificates", text::certificates),
    ("expressions", pack::expressions),
    ("extents", disk::extents),
    ("frames", wire::frames),
    ("journal", disk::journal),
    ("messages", wire::messages),
    ("names", text::names),
    ("packs", pack::packs),
    ("paths", text::paths),
    ("tokens", text::tokens),
];

/// Checks the target called `name` with `data`.
///
/// # Panics
/// When the property is broken, and when there is no such target.
pub fn check(name: &str, data: &[u8]) {
    match TARGETS.iter().find(|(target, _)| *target == name) {
        Some((_, property)) => property(data),
        None => panic!("there is no target `{name}`"),
    }
}

/// The first byte, which chooses, and the rest; nothing of nothing.
fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}
