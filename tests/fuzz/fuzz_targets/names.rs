//! See `packrun_tests::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| packrun_tests::fuzz::check("names", data));
