//! Whatever pieces output comes in, its entries are the same.

use super::*;
use packrun_protocol::block::Entry;
use packrun_protocol::id::{AttemptNumber, JobRunId};
use proptest::prelude::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_micros(millis * 1000)
}

fn cutter() -> Cutter {
    cutter_within(limit::LOG_BYTES_MAX)
}

fn cutter_within(bytes_max: u64) -> Cutter {
    Cutter::new(AttemptId { job_run: JobRunId::from_bytes([7; 16]), number: AttemptNumber::FIRST }, bytes_max)
}

fn texts(blocks: &[Block]) -> Vec<(String, bool)> {
    let entries = blocks.iter().flat_map(Block::entries);
    entries.map(|entry| (String::from_utf8_lossy(&entry.text).into_owned(), entry.continued)).collect()
}

fn bytes_of(entries: &[Entry], stream: LogStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries.iter().filter(|entry| entry.stream == stream) {
        bytes.extend_from_slice(&entry.text);
        if !entry.continued {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[test]
fn the_first_line_after_a_pause_leaves_at_once_and_the_next_wait_for_company() {
    let (mut cutter, mut out) = (cutter(), Vec::new());
    cutter.feed(at(0), LogStream::Stdout, b"one\n", &mut out);
    assert_eq!(cutter.next_deadline(), Some(at(0)));
    cutter.tick(at(0), &mut out);
    assert_eq!(texts(&out), [("one".to_owned(), false)]);
    for millis in 1..5 {
        cutter.feed(at(millis), LogStream::Stdout, b"more\n", &mut out);
        cutter.tick(at(millis), &mut out);
        assert_eq!(cutter.next_deadline(), Some(at(5)), "the deadline is the first line's");
    }
    assert_eq!(out.len(), 1);
    cutter.tick(at(5), &mut out);
    assert_eq!((out.len(), out[1].count()), (2, 4));
    assert_eq!(cutter.next_deadline(), None);
}

#[test]
fn a_prompt_without_newline_shows_after_half_a_second_and_its_line_stays_whole() {
    let (mut cutter, mut out) = (cutter(), Vec::new());
    cutter.feed(at(0), LogStream::Stdout, b"Passw", &mut out);
    cutter.feed(at(400), LogStream::Stdout, "ord: \u{e4}".as_bytes().split_last().unwrap().1, &mut out);
    assert_eq!(cutter.next_deadline(), Some(at(500)), "the deadline is the first byte's");
    cutter.tick(at(499), &mut out);
    assert!(out.is_empty());
    cutter.tick(at(500), &mut out);
    assert_eq!(texts(&out), [("Password: ".to_owned(), true)], "half a character waits");
    cutter.feed(at(501), LogStream::Stdout, b"\xa4\n", &mut out);
    cutter.end(at(501), &mut out);
    assert_eq!(texts(&out)[1], ("ä".to_owned(), false));
}

#[test]
fn progress_dots_show_while_they_come() {
    let (mut cutter, mut out) = (cutter(), Vec::new());
    for dot in 0..10 {
        let now = at(dot * 300);
        while let Some(due) = cutter.next_deadline().filter(|due| *due <= now) {
            cutter.tick(due, &mut out);
        }
        cutter.feed(now, LogStream::Stdout, b".", &mut out);
    }
    assert_eq!(texts(&out), vec![("..".to_owned(), true); 4], "none waits longer than half a second");
}

#[test]
fn a_line_of_exactly_the_limit_is_one_entry_and_one_byte_more_makes_two() {
    for (length, pieces) in [(limit::ENTRY_TEXT_BYTES_MAX, 1), (limit::ENTRY_TEXT_BYTES_MAX + 1, 2)] {
        let (mut cutter, mut out) = (cutter(), Vec::new());
        cutter.feed(at(0), LogStream::Stderr, &[&vec![b'x'; length][..], b"\n"].concat(), &mut out);
        cutter.end(at(0), &mut out);
        assert_eq!(texts(&out).len(), pieces);
        assert!(!texts(&out)[pieces - 1].1);
    }
}

#[test]
fn a_long_line_is_cut_between_its_characters() {
    let (mut cutter, mut out) = (cutter(), Vec::new());
    let line = format!("a{}", "€".repeat(limit::ENTRY_TEXT_BYTES_MAX));
    cutter.feed(at(0), LogStream::Stdout, line.as_bytes(), &mut out);
    cutter.end(at(0), &mut out);
    let entries: Vec<_> = out.iter().flat_map(Block::entries).collect();
    assert!(entries.len() > 3 && entries.iter().all(|entry| std::str::from_utf8(&entry.text).is_ok()));
}

#[test]
fn a_log_that_reaches_its_limit_says_so_at_once_and_at_its_end_what_is_missing() {
    let (mut cutter, mut out) = (cutter_within(1024), Vec::new());
    for number in 0..100 {
        cutter.feed(at(number), LogStream::Stdout, format!("line {number:03}\n").as_bytes(), &mut out);
    }
    cutter.tick(at(100), &mut out);
    let limit = "its limit of 1024 bytes";
    let shown: Vec<_> = out.iter().flat_map(Block::entries).collect();
    assert_eq!(shown.len(), 65, "each line of 8 bytes counts for 16");
    assert_eq!((&shown[63].text[..], shown[64].stream), (&b"line 063"[..], LogStream::System));
    let said = format!("packrun: the log has reached {limit}; what the job writes from here on is dropped");
    assert_eq!(shown[64].text, said);
    // Both streams are, with the line that has only begun.
    cutter.feed(at(200), LogStream::Stderr, b"1\n\n3", &mut out);
    assert_eq!(cutter.next_deadline(), None, "nothing is held any more");
    out.clear();
    cutter.end(at(300), &mut out);
    let missing = format!("packrun: the log was cut at {limit}: 39 lines, 328 bytes are missing here");
    assert_eq!(texts(&out), [(missing, false)]);
    assert_eq!(cutter.entries(), 66);
}

#[test]
fn a_line_without_end_is_cut_like_any_other_and_what_both_streams_hold_with_it() {
    let (mut cutter, mut out) = (cutter_within(100_000), Vec::new());
    cutter.feed(at(0), LogStream::Stderr, b"half", &mut out);
    for millis in 0..1600 {
        cutter.feed(at(millis), LogStream::Stdout, &vec![b'x'; limit::ENTRY_TEXT_BYTES_MAX], &mut out);
        assert!(cutter.held.iter().all(|held| held.text.len() <= limit::ENTRY_TEXT_BYTES_MAX));
    }
    cutter.end(at(2000), &mut out);
    let entries = texts(&out);
    assert_eq!(entries.len(), 3);
    assert_eq!((entries[0].0.len(), entries[0].1), (limit::ENTRY_TEXT_BYTES_MAX, true));
    let missing = 1599 * limit::ENTRY_TEXT_BYTES_MAX + 4;
    assert!(entries[2].0.contains(&format!("bytes: 2 lines, {missing} bytes are missing")), "{entries:?}");
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(prop_oneof![Just(b'\n'), Just(0xe2), Just(0x82), any::<u8>()], 0..40),
        "[a-zé€😀\n]{0,20}".prop_map(String::into_bytes),
        (0_usize..70_000).prop_map(|length| vec![b'x'; length]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_pieces_are_the_bytes_wherever_the_reads_were_split_and_no_deadline_is_missed(
        reads in proptest::collection::vec((any::<bool>(), piece(), 0_i64..700), 0..30)
    ) {
        let (mut cutter, mut out, mut now) = (cutter(), Vec::new(), at(0));
        let mut written = [Vec::new(), Vec::new()];
        for (error, bytes, pause) in reads {
            let stream = if error { LogStream::Stderr } else { LogStream::Stdout };
            let next = now.shifted(pause * 1000);
            while let Some(deadline) = cutter.next_deadline().filter(|deadline| *deadline <= next) {
                now = now.max(deadline);
                cutter.tick(now, &mut out);
                prop_assert!(cutter.next_deadline() > Some(deadline) || cutter.next_deadline().is_none());
            }
            now = next;
            cutter.feed(now, stream, &bytes, &mut out);
            written[usize::from(error)].extend_from_slice(&bytes);
            if let Some(deadline) = cutter.flush_at {
                prop_assert!(deadline <= now + FLUSH);
            }
            prop_assert!(cutter.held.iter().all(|held| held.text.len() <= limit::ENTRY_TEXT_BYTES_MAX));
        }
        cutter.end(now, &mut out);
        prop_assert_eq!(cutter.next_deadline(), None);
        for block in &out {
            prop_assert_eq!(&Block::parse(block.as_bytes().clone()).unwrap(), block);
        }
        let entries: Vec<_> = out.iter().flat_map(Block::entries).collect();
        prop_assert!(entries.iter().enumerate().all(|(seq, entry)| entry.seq == seq as u64));
        prop_assert_eq!(entries.len() as u64, cutter.entries());
        prop_assert_eq!(bytes_of(&entries, LogStream::Stdout), &written[0][..]);
        prop_assert_eq!(bytes_of(&entries, LogStream::Stderr), &written[1][..]);
    }

    #[test]
    fn a_log_with_a_limit_is_the_beginning_of_the_one_without_and_counts_the_rest(
        reads in proptest::collection::vec((any::<bool>(), piece(), 0_i64..700), 0..20),
        bytes_max in 0_u64..200_000,
    ) {
        let (mut whole, mut within) = (cutter(), cutter_within(bytes_max));
        let (mut all, mut kept, mut now, mut written) = (Vec::new(), Vec::new(), at(0), 0);
        for (error, bytes, pause) in reads {
            let stream = if error { LogStream::Stderr } else { LogStream::Stdout };
            whole.feed(now, stream, &bytes, &mut all);
            within.feed(now, stream, &bytes, &mut kept);
            written += bytes.len();
            now = now.shifted(pause * 1000);
            whole.tick(now, &mut all);
            within.tick(now, &mut kept);
        }
        whole.end(now, &mut all);
        within.end(now, &mut kept);
        let all: Vec<_> = all.iter().flat_map(Block::entries).collect();
        let (own, kept): (Vec<_>, Vec<_>) =
            kept.iter().flat_map(Block::entries).partition(|entry| entry.stream == LogStream::System);
        let alike = |(a, b): (&Entry, &Entry)| (a.stream, a.continued, &a.text) == (b.stream, b.continued, &b.text);
        prop_assert!(kept.iter().zip(&all).all(alike) && kept.len() <= all.len());
        let bytes = |entries: &[Entry]| {
            entries.iter().map(|entry| entry.text.len() + ENTRY_BYTES).sum::<usize>() as u64
        };
        prop_assert!(bytes(&kept) <= bytes_max);
        if kept.len() == all.len() {
            prop_assert!(own.is_empty());
        } else {
            prop_assert!(bytes(&all[..=kept.len()]) > bytes_max, "one more did not fit");
            let shown = bytes_of(&kept, LogStream::Stdout).len() + bytes_of(&kept, LogStream::Stderr).len();
            let missing = format!(" {} bytes are missing here", written - shown);
            prop_assert!(own.len() == 2 && String::from_utf8_lossy(&own[1].text).contains(&missing));
        }
    }
}
