//! The file in the state folder with the coordinator's CA, the highest epoch that was seen of it, and the proof of
//! that epoch.

use std::io;
use std::path::Path;

use packrun_protocol::id::{Digest, Epoch, EpochProof};

use super::identity::write_whole;
use super::machine::Seen;

const FILE: &str = "epoch";

/// The highest epoch of the coordinator with this CA that an earlier process of this agent saw: none of those of
/// another coordinator. `None` when the state folder doesn't say.
pub(super) fn read(state: &Path, ca: &Digest) -> Option<Seen> {
    let text = std::fs::read_to_string(state.join(FILE)).ok()?;
    let mut words = text.split_whitespace();
    if words.next()? != ca.to_string() {
        return Some(Seen::default());
    }
    let epoch = Epoch(words.next()?.parse().ok()?);
    Some(Seen { epoch, proof: words.next().and_then(EpochProof::from_hex) })
}

/// Keeps what was seen of the coordinator with this CA, whole or not at all.
pub(super) fn write(state: &Path, ca: &Digest, seen: Seen) -> io::Result<()> {
    let Seen { epoch, proof } = seen;
    let proof = proof.map(EpochProof::to_hex).unwrap_or_default();
    write_whole(&state.join(FILE), format!("{ca} {epoch} {proof}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nothing_of_another_coordinator() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (Digest::of(b"ours"), Digest::of(b"other"));
        assert_eq!(read(folder.path(), &ours), None);
        for proof in [None, Some(EpochProof::from_bytes([7; 32]))] {
            let seen = Seen { epoch: Epoch(9), proof };
            write(folder.path(), &ours, seen).unwrap();
            assert_eq!(read(folder.path(), &ours), Some(seen));
            assert_eq!(read(folder.path(), &other), Some(Seen::default()));
        }
        for damaged in ["", "sha256:", &format!("{ours} x"), "\0"] {
            std::fs::write(folder.path().join(FILE), damaged).unwrap();
            let seen = read(folder.path(), &ours);
            assert!(seen.is_none_or(|seen| seen == Seen::default()), "{damaged:?}: {seen:?}");
        }
    }
}
