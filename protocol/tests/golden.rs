//! The bytes of every message, held fast: a change of a type that an older peer could not read fails here.
//!
//! A line of `golden.txt` is a message's name and its bytes in hex. New messages are added with
//! `PACKRUN_GOLDEN=write cargo test --workspace golden`; a changed line is a new protocol version.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod samples;

use std::fmt::Write as _;
use std::path::Path;

use packrun_protocol::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn lines<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(values: Vec<(&str, T)>) -> String {
    let mut text = String::new();
    for (name, value) in values {
        let bytes = codec::encode(&value).unwrap();
        assert_eq!(codec::decode::<T>(&bytes).unwrap(), value, "{name} comes back as it was");
        write!(text, "{name} ").unwrap();
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

#[test]
fn golden_bytes_of_every_message_are_unchanged() {
    let now = [
        lines(samples::from_agent()),
        lines(samples::to_agent()),
        lines(samples::headers()),
        lines(samples::upload_answers()),
        lines(samples::upload_ends()),
        lines(samples::input_answers()),
        lines(samples::download_answers()),
        lines(samples::enrols()),
        lines(samples::enrol_answers()),
    ]
    .concat();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden.txt");
    if std::env::var("PACKRUN_GOLDEN").is_ok_and(|mode| mode == "write") {
        std::fs::write(&file, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&file).unwrap();
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(now, golden);
    }
    assert_eq!(now.lines().count(), golden.lines().count(), "every message has its line");
}
