//! What the noisy program writes, so that a test knows every byte of it. Nothing is random: the same call, the same
//! bytes.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Where a line is written to, as lines and entries name it.
pub const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// The line of this number, from 0, on a stream, without its newline. Long enough for a block to have hundreds.
#[must_use]
pub fn line(stream: &str, number: u64) -> String {
    format!("{stream} {number:07} the quick brown fox jumps over the lazy dog")
}

/// The numbers of a simple generator, high bits first, which are the good ones.
fn numbers(seed: u64) -> impl Iterator<Item = u8> {
    let step = |state: &u64| {
        Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    };
    std::iter::successors(Some(seed), step).skip(1).map(|state| (state >> 56) as u8)
}

/// So many bytes of every value, newlines and NUL among them.
#[must_use]
pub fn garbage(bytes: usize) -> Vec<u8> {
    numbers(7).take(bytes).collect()
}

/// So many bytes of one line, each part of which says where it belongs.
#[must_use]
pub fn long_line(bytes: usize) -> Vec<u8> {
    let mut line = Vec::with_capacity(bytes + 61);
    // No power of two, so that no piece of the line is like another.
    for number in 0..=bytes / 61 {
        let _ = write!(line, "{number:020}, and not a newline in sight for a long while; ");
    }
    line.truncate(bytes);
    line
}

/// The content of the file of this number: no two are alike.
#[must_use]
pub fn file(number: u32, bytes: usize) -> Vec<u8> {
    number.to_string().into_bytes().into_iter().chain(numbers(u64::from(number))).take(bytes).collect()
}

/// Writes `count` lines to each of both streams, in turns.
///
/// # Errors
/// When a stream is closed.
pub fn write_lines(count: u64) -> io::Result<()> {
    let (mut out, mut err) =
        (io::BufWriter::new(io::stdout().lock()), io::BufWriter::new(io::stderr().lock()));
    for number in 0..count {
        writeln!(out, "{}", line(STREAMS[0], number))?;
        writeln!(err, "{}", line(STREAMS[1], number))?;
    }
    out.flush()?;
    err.flush()
}

/// Writes `count` files of `bytes` into `folder`, a hundred to a folder of it.
///
/// # Errors
/// When one can't be written.
pub fn write_files(folder: &Path, count: u32, bytes: usize) -> io::Result<()> {
    for number in 0..count {
        let inner = folder.join((number / 100).to_string());
        if number % 100 == 0 {
            fs::create_dir_all(&inner)?;
        }
        fs::write(inner.join(number.to_string()), file(number, bytes))?;
    }
    Ok(())
}
