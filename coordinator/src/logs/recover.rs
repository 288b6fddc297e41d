//! The log at start: what its tail holds, and which of it counts.
//!
//! Bytes that are no record are *torn* when no record anywhere says that they had been on disk: then nothing
//! from there on was acknowledged, all of it is cut off, and agents send it again. They are *damaged* when a
//! record says so, or another place before them is: they are reported and skipped, and the log has a gap there.
//!
//! A record that doesn't follow from those before it, and that no other says had been on disk, was left by a
//! failed write: it is torn too. It isn't when it only leaves out what damage before it may have taken.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use packrun_protocol::id::{AttemptId, PackRunId};
use packrun_protocol::time::Clock;

use super::checkpoint::{self, Checkpoint};
use super::extent::Extent;
use super::index::Runs;
use super::segment::{self, Disk, HEADER_BYTES, Position, Record, Segment};
use super::writer::Tail;

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Where they begin.
    pub at: Position,
    /// How many there are.
    pub bytes: u64,
}

/// What was found at start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Where a torn tail was cut off, which nobody had been told was kept.
    pub cut: Option<Position>,
    /// What was on disk once and is lost. The operator should know.
    pub damage: Vec<Spot>,
    /// Blocks found of runs that live.
    pub blocks: u64,
}

struct Found {
    pack_run: PackRunId,
    attempt: AttemptId,
    extent: Extent,
}

struct Scan<'a> {
    runs: &'a Runs,
    live: &'a dyn Fn(PackRunId) -> bool,
    blocks: u64,
    proof: Position,
    spots: Vec<Spot>,
    /// What lies behind the first spot, or the first record that doesn't follow from those before it.
    pending: Vec<Found>,
}

/// Reads the log from its checkpoint on and gives `runs` what belongs to live runs. Returns the place to go on at,
/// with all before it on disk, and the checkpoint.
pub(super) fn recover(
    dir: &Path,
    live: &dyn Fn(PackRunId) -> bool,
    runs: &Runs,
    disk: &dyn Disk,
) -> io::Result<(Tail, Position, Recovery)> {
    let mut numbers = segment::list(dir)?;
    let Checkpoint { from, seen } = checkpoint::load(dir, &numbers);
    let mut scan = Scan { runs, live, blocks: 0, proof: from, spots: Vec::new(), pending: Vec::new() };
    for &number in numbers.iter().filter(|&&number| number >= from.segment) {
        scan.segment(dir, number, from).map_err(|error| at_segment(number, &error))?;
    }
    let cut = scan.settle_pending();
    if let Some(cut) = cut {
        cut_off(dir, &mut numbers, cut)?;
    }
    let tail = settle(dir, &numbers, scan.proof, seen, disk)?;
    segment::sync_dir(dir)?;
    let now = Clock::start().now();
    for run in runs.all() {
        run.all_durable();
        // Readers may have been told so before.
        run.settle(&[], now);
    }
    let damage = scan.spots.into_iter().filter(|spot| cut.is_none_or(|cut| spot.at < cut)).collect();
    Ok((tail, from, Recovery { cut, damage, blocks: scan.blocks }))
}

fn cut_off(dir: &Path, numbers: &mut Vec<u64>, cut: Position) -> io::Result<()> {
    let whole = |number: u64| number > cut.segment || (number == cut.segment && cut.offset == 0);
    while let Some(number) = numbers.pop_if(|number| whole(*number)) {
        std::fs::remove_file(segment::path(dir, number))?;
    }
    if cut.offset > 0 {
        OpenOptions::new().write(true).open(segment::path(dir, cut.segment))?.set_len(cut.offset)?;
    }
    Ok(())
}

/// Brings to the disk what no record says is there. It is written again, for a sync may have failed before.
fn settle(dir: &Path, numbers: &[u64], proof: Position, seen: u64, disk: &dyn Disk) -> io::Result<Tail> {
    let mut tail = None;
    for &number in numbers.iter().filter(|&&number| number >= proof.segment) {
        let segment = Segment::open(dir, number, true).map_err(|error| at_segment(number, &error))?;
        let length = segment.file.metadata()?.len();
        let written = if proof.segment == number { proof.offset.min(length) } else { 0 };
        segment.rewrite(disk, written, length)?;
        disk.sync(&segment.file)?;
        tail = Some(Tail { segment: Arc::new(segment), length });
    }
    if let Some(tail) = tail {
        return Ok(tail);
    }
    // Numbers are not used twice, even if all segments are lost: extents that are kept refer to them.
    let number = numbers.last().copied().unwrap_or(0).max(seen) + 1;
    let segment = Segment::create(dir, number, disk)?;
    disk.sync(&segment.file)?;
    Ok(Tail { segment: Arc::new(segment), length: HEADER_BYTES as u64 })
}

impl Scan<'_> {
    fn segment(&mut self, dir: &Path, number: u64, from: Position) -> io::Result<()> {
        let bytes = Bytes::from(std::fs::read(segment::path(dir, number))?);
        if bytes.iter().take(HEADER_BYTES).all(|&byte| byte == 0) || bytes.len() < HEADER_BYTES {
            // Made just before the power was cut.
            let at = Position { segment: number, offset: 0 };
            self.spots.push(Spot { at, bytes: bytes.len() as u64 });
            return Ok(());
        }
        let marker = Segment::open(dir, number, false)?.marker;
        let start = if number == from.segment { from.offset as usize } else { 0 };
        let mut at = start.max(HEADER_BYTES);
        while at < bytes.len() {
            let place = Position { segment: number, offset: at as u64 };
            if let Some(record) = Record::parse(marker, &bytes.slice(at..)) {
                self.record(place, &record);
                at += record.bytes();
            } else {
                let end = next_record(marker, &bytes, at + 1);
                self.spots.push(Spot { at: place, bytes: (end - at) as u64 });
                at = end;
            }
        }
        Ok(())
    }

    fn record(&mut self, at: Position, record: &Record) {
        self.proof = self.proof.max(record.header.durable);
        let found = Found {
            pack_run: record.header.pack_run,
            attempt: record.block.attempt(),
            extent: Extent::of(at, &record.header, &record.block),
        };
        if !(self.live)(found.pack_run) {
            return;
        }
        if self.spots.is_empty() && self.pending.is_empty() && self.counts(&found) {
            self.publish(&found);
        } else {
            self.pending.push(found);
        }
    }

    /// Publishes what counts of the pending records, and says from where on nothing does.
    fn settle_pending(&mut self) -> Option<Position> {
        let cut = self.spots.iter().map(|spot| spot.at).find(|&at| at >= self.proof);
        let mut spots_passed = 0;
        for found in std::mem::take(&mut self.pending) {
            let at = found.extent.at;
            if cut.is_some_and(|cut| at >= cut) {
                break;
            }
            let spots_before = self.spots.partition_point(|spot| spot.at < at);
            if spots_before > spots_passed {
                self.break_spans();
                spots_passed = spots_before;
            }
            if !self.counts(&found) && at >= self.proof {
                // A write that failed left it, and a later one went over what was before it.
                return Some(at);
            }
            self.publish(&found);
        }
        if self.spots.iter().any(|spot| cut.is_none_or(|cut| spot.at < cut)) {
            self.break_spans();
        }
        cut
    }

    fn break_spans(&self) {
        for run in self.runs.all() {
            run.break_spans();
        }
    }

    /// Whether it follows from what is before it, or would but for what was lost in between.
    fn counts(&self, found: &Found) -> bool {
        let Found { pack_run, attempt, extent } = found;
        let (owner, run) = (self.runs.run_of(*attempt), self.runs.run(*pack_run));
        let next_seq =
            owner.as_ref().and_then(|run| run.expected(*attempt)).map_or(0, |known| known.next_seq);
        let next_arrival = run.as_ref().map_or(0, |run| run.next_arrival());
        let by_seq = |last| Some(owner.as_ref()?.extent_from_seq(*attempt, last)?.at);
        let by_arrival = |last| Some(run.as_ref()?.feed_span_from(last)?.span.at);
        self.fits(extent.at, extent.first_seq, next_seq, by_seq)
            && self.fits(extent.at, extent.first_arrival, next_arrival, by_arrival)
    }

    /// Whether `number` is what comes `next`, or something was lost between `at` and the span of the last.
    fn fits(&self, at: Position, number: u64, next: u64, of: impl Fn(u64) -> Option<Position>) -> bool {
        let lost = || {
            let last = next.checked_sub(1).and_then(of);
            self.spots.iter().any(|spot| last.is_none_or(|last| last < spot.at) && spot.at < at)
        };
        number == next || (number > next && lost())
    }

    fn publish(&mut self, found: &Found) {
        self.blocks += 1;
        self.runs.enter(found.attempt, found.pack_run).publish(&[(found.attempt, found.extent)]);
    }
}

/// Where the next record begins at or behind `from`, or the end.
fn next_record(marker: u64, bytes: &Bytes, from: usize) -> usize {
    let marker_bytes = marker.to_le_bytes();
    (from..bytes.len())
        .find(|&at| {
            bytes[at..].starts_with(&marker_bytes) && Record::parse(marker, &bytes.slice(at..)).is_some()
        })
        .unwrap_or(bytes.len())
}

fn at_segment(number: u64, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("log segment {number} {error}"))
}
