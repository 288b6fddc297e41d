//! Hostile bytes for every message: an error or a valid value, never a panic, and never more memory than a small
//! multiple of the bytes that were sent.
//!
//! `unsafe`: an allocator that counts has to implement `GlobalAlloc`. It adds numbers to what the system's
//! allocator does and touches no memory itself.
#![expect(unsafe_code, reason = "a counting allocator; see above")]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod samples;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use packrun_protocol::control::{FromAgent, FromCoordinator};
use packrun_protocol::stream::*;
use packrun_protocol::{codec, limit};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes in memory per byte on the wire: an empty `String` takes 24 bytes and comes as one, and a list that grows
/// holds its old and its new memory for a moment.
const MEMORY_PER_BYTE: usize = 72;
/// What an error with its message takes, whatever the input.
const MEMORY_CONSTANT: usize = 16 << 10;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: isize) {
    // The thread's storage may be gone while the thread ends; nothing is measured then.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `work` held at once, in bytes.
fn peak_of<T>(work: impl FnOnce() -> T) -> usize {
    let before = NOW.get();
    PEAK.set(before);
    drop(work());
    (PEAK.get() - before).unsigned_abs()
}

fn decode_within_bounds<T: DeserializeOwned>(bytes: &[u8]) {
    let peak = peak_of(|| codec::decode::<T>(bytes));
    let allowed = bytes.len() * MEMORY_PER_BYTE + MEMORY_CONSTANT;
    let (length, name) = (bytes.len(), std::any::type_name::<T>());
    let result = || codec::decode::<T>(bytes).map(drop);
    assert!(peak <= allowed, "{length} bytes made {peak} bytes of {name}: {:?}", result());
}

fn attack<T: Serialize + DeserializeOwned>(values: Vec<(&str, T)>) {
    let messages: Vec<_> = values.iter().map(|(_, value)| codec::encode(value).unwrap()).collect();
    for bytes in &messages {
        for length in 0..bytes.len() {
            assert!(codec::decode::<T>(&bytes[..length]).is_err(), "a message cut at {length}");
        }
        for at in 0..bytes.len() {
            // Every value of a byte: among them the markers of bincode's wider integers.
            for value in 0..=255 {
                let mut changed = bytes.clone();
                changed[at] = value;
                decode_within_bounds::<T>(&changed);
            }
            // A length of 2^62 in the place of whatever stands there.
            let endless = [&bytes[..at], &[253, 0, 0, 0, 0, 0, 0, 0, 64]].concat();
            decode_within_bounds::<T>(&endless);
            // A length that the decoder's budget allows and the input doesn't have.
            let long = [&bytes[..at], &[252, 0, 0, 0xf, 0]].concat();
            decode_within_bounds::<T>(&long);
        }
    }
    // Messages filled up to a frame with the smallest items there are.
    for bytes in &messages {
        for at in (0..bytes.len()).step_by(3) {
            for filler in [0, 1] {
                let mut full = [&bytes[..at], &[252, 0, 0, 8, 0]].concat();
                full.resize(limit::FRAME_BYTES_MAX, filler);
                decode_within_bounds::<T>(&full);
            }
        }
    }
    TestRunner::new(ProptestConfig::with_cases(512))
        .run(&prop::collection::vec(any::<u8>(), 0..400), |bytes| {
            decode_within_bounds::<T>(&bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn hostile_bytes_from_an_agent_cost_no_more_than_their_size() {
    attack::<FromAgent>(samples::from_agent());
}

#[test]
fn hostile_bytes_from_a_coordinator_cost_no_more_than_their_size() {
    attack::<FromCoordinator>(samples::to_agent());
}

#[test]
fn hostile_stream_headers_and_answers_cost_no_more_than_their_size() {
    attack::<StreamHeader>(samples::headers());
    attack::<UploadAnswer>(samples::upload_answers());
    attack::<UploadEnd>(samples::upload_ends());
    attack::<InputAnswer>(samples::input_answers());
    attack::<DownloadAnswer>(samples::download_answers());
}

#[test]
fn hostile_enrolments_cost_no_more_than_their_size() {
    attack::<Enrol>(samples::enrols());
    attack::<EnrolAnswer>(samples::enrol_answers());
}
