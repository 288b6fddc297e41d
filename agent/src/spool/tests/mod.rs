//! The journal on real files: what was written is read, across segments, restarts and crashes at any byte.

mod model;

use std::path::Path;
use std::time::Duration;

use packrun_protocol::block::{Block, BlockBuilder, LogStream};
use packrun_protocol::id::{AttemptId, AttemptNumber, Epoch, JobRunId};
use packrun_protocol::state::{ExitStatus, Outcome, Verdict};
use packrun_protocol::time::Timestamp;

use super::*;

const SMALL: JournalConfig = JournalConfig { segment_bytes: 4096, total_bytes: 64 << 10 };

fn attempt(number: u8) -> AttemptId {
    AttemptId { job_run: JobRunId::from_bytes([number; 16]), number: AttemptNumber::FIRST }
}

fn assigned(number: u8) -> Record {
    Record::Assigned { attempt: attempt(number), epoch: Epoch(3) }
}

fn started(number: u8) -> Record {
    let at = Timestamp::from_micros(77);
    Record::Started(Started { attempt: attempt(number), pid: 4242, start_ticks: 99, at })
}

fn ended(number: u8, entries: u64) -> Record {
    let outcome = Outcome {
        verdict: Verdict::Succeeded,
        exit: Some(ExitStatus::Code(0)),
        reason: None,
        ended_at: Timestamp::from_micros(99),
        ran_for: Duration::from_millis(3),
        entries,
        artifacts: 0,
        invalid_bytes: 0,
    };
    Record::Ended { attempt: attempt(number), outcome }
}

/// A block of `entries` lines of `bytes` bytes each.
fn block(number: u8, first_seq: u64, entries: u64, bytes: usize) -> Block {
    let mut builder = BlockBuilder::new(attempt(number), first_seq);
    for _ in 0..entries {
        builder.push(Timestamp::from_micros(88), LogStream::Stdout, false, &vec![number; bytes]).unwrap();
    }
    builder.finish().unwrap()
}

fn catch_up(follower: &mut Follower) -> Vec<Record> {
    std::iter::from_fn(|| follower.read().unwrap()).collect()
}

fn segments(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_follower_reads_what_is_written_as_soon_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(folder.path().to_owned());
    assert_eq!(follower.read().unwrap(), None, "before there is a journal");
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    for record in [assigned(1), started(1), Record::Block(block(1, 0, 3, 10)), ended(1, 3)] {
        journal.append([record.clone()]).unwrap();
        assert_eq!(catch_up(&mut follower), [record]);
    }
    let at = follower.index().life(attempt(1)).unwrap().blocks[0];
    assert_eq!(follower.block(at).unwrap(), Some(block(1, 0, 3, 10)));
    journal.append([Record::Settled(attempt(1))]).unwrap();
    catch_up(&mut follower);
    assert_eq!(follower.index().lives().count(), 0);
}

#[test]
fn a_reopened_journal_knows_every_attempt_and_a_new_follower_finds_every_block() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal.append([assigned(1), started(1), assigned(2), assigned(3), Record::Settled(attempt(3))]).unwrap();
    for seq in 0..40 {
        journal.append([Record::Block(block(1, seq, 1, 500))]).unwrap();
    }
    journal.append([ended(1, 40)]).unwrap();
    drop(journal);
    let journal = Journal::open(folder.path(), SMALL).unwrap();
    let phases: Vec<_> = journal.lives().map(|(id, phase)| (id, matches!(phase, Phase::Ended(_)))).collect();
    assert_eq!(phases, [(attempt(1), true), (attempt(2), false)]);
    let mut follower = Follower::new(folder.path().to_owned());
    catch_up(&mut follower);
    let blocks = follower.index().life(attempt(1)).unwrap().blocks.clone();
    let read: Vec<_> = blocks.iter().map(|at| follower.block(*at).unwrap().unwrap()).collect();
    assert_eq!(read, (0..40).map(|seq| block(1, seq, 1, 500)).collect::<Vec<_>>());
    assert_eq!(follower.index().epoch(), Epoch(3));
}

#[test]
fn segments_go_once_their_blocks_are_acknowledged_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal.append([assigned(1), assigned(2), Record::Block(block(2, 0, 1, 10))]).unwrap();
    for seq in 0..64 {
        journal.append([Record::Block(block(1, seq, 1, 1000))]).unwrap();
    }
    assert!(journal.is_full());
    let full = segments(folder.path());
    journal.acknowledge(attempt(1), 63).unwrap();
    assert!(!journal.is_full());
    let held = segments(folder.path());
    assert!((2..full).contains(&held), "the first is kept by attempt 2: {held} of {full}");
    journal.acknowledge(attempt(1), 64).unwrap();
    journal.append([Record::Settled(attempt(2))]).unwrap();
    assert_eq!(segments(folder.path()), 1);
    let bytes: u64 =
        std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(journal.bytes(), bytes);
    let mut follower = Follower::new(folder.path().to_owned());
    catch_up(&mut follower);
    assert_eq!(follower.index().lives().map(|(id, _)| id).collect::<Vec<_>>(), [attempt(1)]);
}

#[test]
fn a_crash_at_any_byte_loses_only_the_record_that_was_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let records = [assigned(1), started(1), Record::Block(block(1, 0, 2, 30)), ended(1, 2)];
    let mut ends = Vec::new();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    for record in &records {
        ends.push(journal.bytes());
        journal.append([record.clone()]).unwrap();
    }
    ends.push(journal.bytes());
    let first = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&first).unwrap();
    for length in 0..=whole.len() {
        let crashed = tempfile::tempdir().unwrap();
        std::fs::write(crashed.path().join(first.file_name().unwrap()), &whole[..length]).unwrap();
        let journal = Journal::open(crashed.path(), SMALL).unwrap();
        let written = ends.iter().filter(|end| **end <= length as u64).count().saturating_sub(1);
        let phase = journal.lives().next().map(|(_, phase)| phase.clone());
        let expected = match written {
            0 => None,
            1 => Some("assigned"),
            2 | 3 => Some("running"),
            _ => Some("ended"),
        };
        let name = phase.map(|phase| match phase {
            Phase::Assigned => "assigned",
            Phase::Running(_) => "running",
            Phase::Ended(_) => "ended",
        });
        assert_eq!(name, expected, "cut at {length}");
    }
}

#[test]
fn a_damaged_tail_is_cut_and_a_damaged_block_is_never_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal
        .append([assigned(1), Record::Block(block(1, 0, 1, 100)), Record::Block(block(1, 1, 1, 100))])
        .unwrap();
    let mut follower = Follower::new(folder.path().to_owned());
    catch_up(&mut follower);
    let blocks = follower.index().life(attempt(1)).unwrap().blocks.clone();
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(follower.block(blocks[0]).unwrap().is_some());
    assert!(matches!(follower.block(blocks[1]), Err(SpoolError::Damaged { .. })));
    drop(journal);
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal.append([Record::Block(block(1, 2, 1, 100))]).unwrap();
    let mut follower = Follower::new(folder.path().to_owned());
    catch_up(&mut follower);
    let life = follower.index().life(attempt(1)).unwrap();
    assert_eq!((life.blocks.len(), life.next_seq), (1, Some(1)), "nothing behind the gap counts");
}

#[test]
fn a_segment_removed_unread_is_made_up_for_by_the_checkpoint_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal.append([assigned(1), assigned(2), assigned(3), started(3)]).unwrap();
    let mut follower = Follower::new(folder.path().to_owned());
    catch_up(&mut follower);
    journal.append([started(1), ended(1, 0), Record::Settled(attempt(2)), ended(3, 0)]).unwrap();
    while journal.number < 3 {
        journal.append((10..200).flat_map(|n| [assigned(n), Record::Settled(attempt(n))])).unwrap();
    }
    assert_eq!(segments(folder.path()), 1);
    let mut late = Follower::new(folder.path().to_owned());
    assert_eq!(catch_up(&mut late), [assigned(1), ended(1, 0), assigned(3), ended(3, 0)]);
    let news = catch_up(&mut follower);
    for expected in [ended(1, 0), ended(3, 0), Record::Settled(attempt(2))] {
        assert_eq!(news.iter().filter(|record| **record == expected).count(), 1, "{expected:?}");
    }
    assert_eq!(follower.index(), late.index());
}

#[test]
fn a_segment_that_cannot_be_begun_leaves_the_journal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    let in_the_way = folder.path().join("draft");
    std::fs::create_dir(&in_the_way).unwrap();
    journal.append([assigned(1), started(1)]).unwrap();
    let blocks: Vec<_> = (0..20).map(|seq| block(1, seq, 1, 500)).collect();
    for block in &blocks[..10] {
        journal.append([Record::Block(block.clone())]).unwrap();
    }
    assert_eq!(journal.number, 1);
    std::fs::remove_dir(&in_the_way).unwrap();
    for block in &blocks[10..] {
        journal.append([Record::Block(block.clone())]).unwrap();
    }
    assert!(journal.number > 1);
    let mut follower = Follower::new(folder.path().to_owned());
    catch_up(&mut follower);
    let places = follower.index().life(attempt(1)).unwrap().blocks.clone();
    let read: Vec<_> = places.iter().map(|at| follower.block(*at).unwrap().unwrap()).collect();
    assert_eq!(read, blocks);
    journal.acknowledge(attempt(1), 20).unwrap();
    assert_eq!(segments(folder.path()), 1, "what was written then is booked where it lies");
    Journal::open(folder.path(), SMALL).unwrap();
}

#[test]
fn a_full_disk_refuses_a_record_whole_and_the_journal_goes_on_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal.append([assigned(1)]).unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let file = journal.swap_file(full);
    let before = journal.bytes();
    assert!(journal.append([started(1), Record::Block(block(1, 0, 1, 10))]).is_err());
    assert_eq!(journal.bytes(), before);
    assert!(journal.lives().all(|(_, phase)| *phase == Phase::Assigned), "nothing of it counts");
    journal.swap_file(file);
    journal.append([started(1)]).unwrap();
    let mut follower = Follower::new(folder.path().to_owned());
    assert_eq!(catch_up(&mut follower), [assigned(1), started(1)]);
}

#[test]
fn a_file_of_another_format_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("000000000001.spool"), b"pkrspl9\nwhatever").unwrap();
    let error = Journal::open(folder.path(), SMALL).unwrap_err();
    assert!(error.to_string().contains("000000000001.spool"), "{error}");
}

#[test]
fn a_segment_that_cannot_be_removed_fails_no_append() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal.append([assigned(1), started(1)]).unwrap();
    let mut seq = 0;
    while journal.number == 1 {
        journal.append([Record::Block(block(1, seq, 1, 500))]).unwrap();
        seq += 1;
    }
    let first = folder.path().join("000000000001.spool");
    std::fs::remove_file(&first).unwrap();
    std::fs::create_dir(&first).unwrap();
    journal.append([Record::Settled(attempt(1))]).unwrap();
    assert_eq!(journal.lives().count(), 0);
}

#[test]
fn a_follower_passes_over_segments_that_were_removed_before_it_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(folder.path().to_owned());
    let mut journal = Journal::open(folder.path(), SMALL).unwrap();
    journal.append([assigned(1), started(1)]).unwrap();
    catch_up(&mut follower);
    for first in [0, 1] {
        journal.append([Record::Block(block(1, first, 1, 10))]).unwrap();
        drop(journal);
        journal = Journal::open(folder.path(), SMALL).unwrap();
    }
    journal.acknowledge(attempt(1), 2).unwrap();
    journal.append([Record::Block(block(1, 2, 1, 10))]).unwrap();
    assert_eq!(segments(folder.path()), 1, "what was acknowledged is gone");
    catch_up(&mut follower);
    let life = follower.index().life(attempt(1)).unwrap().clone();
    assert_eq!((life.blocks.len(), life.next_seq), (1, Some(3)));
    assert_eq!(follower.block(life.blocks[0]).unwrap(), Some(block(1, 2, 1, 10)));
}
