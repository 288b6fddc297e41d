//! A job that writes more, faster or worse than a shell could.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use packrun_tests::noise;

const USAGE: &str = "usage: noisy lines COUNT | garbage BYTES | long-line BYTES | files FOLDER COUNT BYTES";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("noisy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    let usage = || io::Error::other(USAGE);
    match *words {
        ["lines", count] => noise::write_lines(count.parse().map_err(|_| usage())?),
        ["garbage", bytes] => write(&noise::garbage(bytes.parse().map_err(|_| usage())?)),
        ["long-line", bytes] => write(&noise::long_line(bytes.parse().map_err(|_| usage())?)),
        ["files", folder, count, bytes] => {
            let (count, bytes) = (count.parse().map_err(|_| usage())?, bytes.parse().map_err(|_| usage())?);
            noise::write_files(Path::new(folder), count, bytes)
        }
        _ => Err(usage()),
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
