//! What lies on disks, as a crash, a bad disk or another version leaves it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use packrun_agent::spool::{Follower, Journal, JournalConfig, Phase, SpoolError};
use packrun_coordinator::logs::{decode_extents, encode_extents};
use packrun_protocol::block::HEADER_BYTES;
use packrun_protocol::id::AttemptId;
use tempfile::TempDir;

use super::choice;
use super::wire::sealed;

/// Extents that are accepted are written in no more bytes and read back.
pub(super) fn extents(data: &[u8]) {
    let Ok(extents) = decode_extents(data) else { return };
    let bytes = encode_extents(&extents);
    assert!(bytes.len() <= data.len());
    assert_eq!(decode_extents(&bytes).as_ref(), Ok(&extents));
    for extent in &extents {
        assert!(extent.entries > 0 && extent.next_seq() > extent.first_seq);
        assert!(extent.bytes <= extent.length && extent.first_time <= extent.last_time);
    }
}

/// Whatever lies in a journal's folder, its reader comes to an end, can read every block that it knows of, and finds
/// what the writer finds.
pub(super) fn journal(data: &[u8]) {
    let folder = folder();
    write_segments(folder.path(), data);
    let mut follower = Follower::new(folder.path().to_owned());
    let mut news = 0;
    let is_damaged = loop {
        match follower.read() {
            Ok(Some(_)) => news += 1,
            Ok(None) => break false,
            Err(SpoolError::Damaged { .. }) => break true,
            Err(error) => panic!("a reader that gives up: {error}"),
        }
        assert!(news <= 4 * data.len(), "news without end");
    };
    let lives: Vec<_> = follower.index().lives().map(|(attempt, life)| (attempt, life.clone())).collect();
    for (attempt, life) in &lives {
        for at in &life.blocks {
            let block = follower.block(*at).unwrap().unwrap();
            assert_eq!(
                (block.attempt(), block.first_seq(), block.next_seq()),
                (*attempt, at.first_seq, at.next_seq)
            );
        }
    }
    let phases: BTreeMap<AttemptId, Phase> =
        lives.into_iter().map(|(attempt, life)| (attempt, life.phase)).collect();
    let writer = Journal::open(folder.path(), JournalConfig::default()).unwrap();
    let found: BTreeMap<_, _> = writer.lives().map(|(attempt, phase)| (attempt, phase.clone())).collect();
    assert_eq!(found, phases);
    drop(writer);
    if !is_damaged {
        // The same reader goes on behind the writer that died.
        while follower.read().unwrap().is_some() {}
        let followed: BTreeMap<_, _> =
            follower.index().lives().map(|(attempt, life)| (attempt, life.phase.clone())).collect();
        assert_eq!(followed, phases);
    }
}

/// A folder in memory, where there is one: a million files are no work for a disk.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

/// Segments of what `data` says: a record is a byte of flags, a length of two and so many bytes.
fn write_segments(folder: &Path, mut data: &[u8]) {
    const MAGIC: &[u8] = b"pkrspl1\n";
    let (mut number, mut segment) = (1, MAGIC.to_vec());
    while let Some((header, rest)) = data.split_first_chunk::<3>() {
        let (flags, _) = choice(header);
        let length = usize::from(u16::from_le_bytes([header[1], header[2]])).min(rest.len());
        let (body, rest) = rest.split_at(length);
        data = rest;
        if flags & 1 != 0 {
            fs::write(folder.join(format!("{number:012}.spool")), &segment).unwrap();
            number += 1 + u64::from(flags >> 6);
            segment = MAGIC.to_vec();
        }
        match flags >> 1 & 3 {
            // A record as the journal writes it, of whatever kind.
            0 => put_record(&mut segment, body),
            // A block that is one but for its content.
            1 if body.len() >= HEADER_BYTES => put_record(&mut segment, &[&[0], &sealed(body)[..]].concat()),
            2 => {
                let end = segment.len().saturating_sub(usize::from(flags >> 3));
                segment.truncate(end.max(MAGIC.len()));
            }
            _ => segment.extend_from_slice(body),
        }
    }
    fs::write(folder.join(format!("{number:012}.spool")), &segment).unwrap();
}

fn put_record(segment: &mut Vec<u8>, body: &[u8]) {
    segment.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    segment.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    segment.extend_from_slice(body);
}
