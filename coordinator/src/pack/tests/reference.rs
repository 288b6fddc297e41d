//! The reference of the pack file for people (`deploy/reference/pack-file.md`) says what is so: its packs check, and
//! every key of the language is in it.

use super::super::check::job::{ARTIFACT_KEYS, INPUT_KEYS, JOB_KEYS, RESOURCES_KEYS, RETRY_KEYS};
use super::super::check::{PACK_KEYS, PARAM_KEYS};
use super::super::fields::RESERVED;
use super::pack;

const REFERENCE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/reference/pack-file.md"));

#[test]
fn every_pack_in_the_reference_checks() {
    let packs: Vec<_> = REFERENCE.split("```yaml\n").skip(1).map(|rest| rest.split("```").next()).collect();
    assert!(packs.len() >= 2, "the packs were not found");
    for text in packs.into_iter().flatten() {
        pack(text);
    }
}

#[test]
fn every_key_is_in_the_reference() {
    let keys = [
        &PACK_KEYS[..],
        &PARAM_KEYS,
        &JOB_KEYS,
        &RESOURCES_KEYS,
        &RETRY_KEYS,
        &ARTIFACT_KEYS,
        &INPUT_KEYS,
        &RESERVED,
    ];
    for key in keys.into_iter().flatten() {
        let mentioned = REFERENCE.split('`').skip(1).step_by(2).any(|code| {
            code.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .any(|word| word == *key)
        });
        assert!(mentioned, "`{key}` is not in the reference");
    }
}
