//! The published schema knows the keys that the checker knows.

use serde_json::Value;

use super::super::JSON_SCHEMA;
use super::super::check::job::{ARTIFACT_KEYS, INPUT_KEYS, JOB_KEYS, RESOURCES_KEYS, RETRY_KEYS};
use super::super::check::{PACK_KEYS, PARAM_KEYS};

#[test]
fn a_key_that_only_the_checker_or_only_the_schema_knows_is_noticed() {
    let schema: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
    let job = "/$defs/job/properties";
    let places: [(String, &[&str]); 7] = [
        (String::new(), &PACK_KEYS),
        ("/$defs/param".to_owned(), &PARAM_KEYS),
        ("/$defs/job".to_owned(), &JOB_KEYS),
        (format!("{job}/resources"), &RESOURCES_KEYS),
        (format!("{job}/retry"), &RETRY_KEYS),
        (format!("{job}/artifacts/items/oneOf/1"), &ARTIFACT_KEYS),
        (format!("{job}/inputs/items"), &INPUT_KEYS),
    ];
    for (place, known) in places {
        let object = schema.pointer(&place).unwrap();
        assert_eq!(object["additionalProperties"], false, "{place}");
        let mut keys: Vec<_> = object["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut known = known.to_vec();
        keys.sort_unstable();
        known.sort_unstable();
        assert_eq!(keys, known, "{place}");
    }
}
