//! What is shown, and how: tables or JSON, sizes and durations for people, colours, and nothing that commands the
//! terminal. Pure but for [`show`].

use std::fmt::{self, Write as _};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, ContentArrangement, Table};
use packrun_protocol::time::Timestamp;

use super::exit::Error;
use super::world::World;
pub use crate::pack::problem::printable;

/// How lists and single things are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// The body of the API's answer.
    Json,
}

/// Shows an answer: the body as it came, or what `table` makes of it.
///
/// # Errors
/// When it can't be written.
pub fn show(
    world: &mut World<'_>,
    format: Format,
    body: &str,
    table: impl FnOnce(bool) -> String,
) -> Result<(), Error> {
    let text = match format {
        Format::Json => body.to_owned(),
        Format::Table => table(world.out.color),
    };
    Ok(world.out.line(text.trim_end_matches('\n'))?)
}

/// A colour, or another way to stand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Not important.
    Dim,
    /// Went well.
    Good,
    /// Went wrong.
    Bad,
    /// Of note.
    Warn,
    /// Of one of several things that are told apart: a number for each.
    Name(u8),
    /// As it is.
    Plain,
}

/// Colours that say neither good nor bad.
const NAME_COLORS: [&str; 6] = ["34", "35", "36", "94", "95", "96"];

impl Style {
    /// How the state of a pack run, job run, attempt or agent is shown.
    #[must_use]
    pub fn of_state(state: &str) -> Self {
        match state {
            "succeeded" | "completed" | "active" => Self::Good,
            "failed" | "timed_out" | "lost" | "revoked" => Self::Bad,
            "partially_failed" | "canceled" | "drained" => Self::Warn,
            "archived" | "blocked" | "queued" | "pending" | "skipped" | "expired" | "used" => Self::Dim,
            _ => Self::Plain,
        }
    }

    /// How a job run's key is shown, the same every time.
    #[must_use]
    pub fn of_key(key: &str) -> Self {
        Self::Name(key.bytes().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte)))
    }

    fn code(self) -> &'static str {
        match self {
            Self::Name(number) => {
                NAME_COLORS.get(usize::from(number) % NAME_COLORS.len()).copied().unwrap_or_default()
            }
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Warn => "33",
            Self::Plain => "",
        }
    }

    /// `text` in this style, if colours are wanted.
    #[must_use]
    pub fn paint(self, text: &str, color: bool) -> String {
        if color && self != Self::Plain {
            format!("\u{1b}[{}m{text}\u{1b}[0m", self.code())
        } else {
            text.to_owned()
        }
    }
}

/// A table with these columns, and rows of texts; what is in them can't command the terminal. A row's cell in the
/// column `STATE` is coloured.
#[must_use]
pub fn table<const N: usize>(
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    color: bool,
) -> String {
    let state = columns.iter().position(|column| *column == "STATE");
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table.set_header(columns);
    let mut states = Vec::new();
    for row in rows {
        states.push(state.and_then(|state| row.get(state)).map(|text| Style::of_state(text)));
        table.add_row(row.map(|text| Cell::new(printable(&text))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let state_at = state.map(|state| {
        let before = table.column_max_content_widths();
        before.iter().take(state).map(|width| usize::from(*width) + 2).sum::<usize>()
    });
    let mut text = String::new();
    for (position, line) in table.lines().enumerate() {
        let line = line.trim_end();
        let style = position.checked_sub(1).and_then(|row| *states.get(row)?);
        match (style, state_at.filter(|_| color)) {
            (Some(style), Some(at)) => text.push_str(&paint_word(line, at, style)),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// `line` with the word that starts after so many columns in a style. Before it are only names, ids and paths: where
/// one has characters of another width, the line stays plain.
fn paint_word(line: &str, at: usize, style: Style) -> String {
    if !line.is_ascii() {
        return line.to_owned();
    }
    let (before, rest) = line.split_at(at.min(line.len()));
    let (word, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
    format!("{before}{}{after}", style.paint(word, true))
}

/// Lines `name: value`, the values below each other; what is in them can't command the terminal.
#[must_use]
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let mut text = String::new();
    for (name, value) in fields {
        let _ = writeln!(text, "{:width$} {}", format!("{name}:"), printable(value));
    }
    text
}

/// A line of a log for a terminal: tabs and colours stay, other control characters are escaped.
#[must_use]
pub fn printable_log(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let length = match color_length(rest) {
            Some(length) => {
                printable.push_str(rest.get(..length).unwrap_or_default());
                length
            }
            None if char.is_control() && char != '\t' => {
                printable.extend(char.escape_default());
                char.len_utf8()
            }
            None => {
                printable.push(char);
                char.len_utf8()
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    printable
}

/// How many bytes the sequence takes that sets a colour (ECMA-48, SGR) and that `text` starts with.
fn color_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|char: char| !matches!(char, '0'..='9' | ';' | ':'))?;
    parameters.get(end..)?.starts_with('m').then_some(end + 3)
}

/// A size for people, as `3.2 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = "";
    for next in UNITS {
        tenths = (tenths + 512) / 1024;
        unit = next;
        if tenths < 10_240 {
            break;
        }
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A duration for people, as `1h 02m` or `4.2s`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() < 1000 => format!("{}ms", duration.as_millis()),
        0..60 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A duration given in seconds by somebody else.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "-".to_owned(), duration)
}

/// A time for people: UTC, to the second.
#[must_use]
pub fn time(time: Timestamp) -> String {
    let text = time.to_string();
    text.split_once('.').map_or_else(|| text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

/// The value, or `-` where there is none.
#[must_use]
pub fn or_dash(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_for_people() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3_355_443, "3.2 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        let durations = [
            (0, "0ms"),
            (999, "999ms"),
            (4_250, "4.2s"),
            (62_000, "1m 02s"),
            (3_720_000, "1h 02m"),
            (90_000_000, "1d 01h"),
        ];
        for (millis, text) in durations {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!([seconds(1.5), seconds(-1.0), seconds(f64::NAN)], ["1.5s", "-", "-"]);
    }

    #[test]
    fn a_table_is_aligned_coloured_where_it_is_wanted_and_harmless() {
        let rows = || {
            [
                ["compile".to_owned(), "succeeded".to_owned(), "-".to_owned()],
                ["a".into(), "failed".into(), "x\u{1b}[2J".into()],
            ]
        };
        assert_eq!(
            table(["JOB", "STATE", "REASON"], rows(), false),
            "JOB      STATE      REASON\ncompile  succeeded  -\na        failed     x\\u{1b}[2J\n"
        );
        let colored = table(["JOB", "STATE", "REASON"], rows(), true);
        assert!(colored.contains("compile  \u{1b}[32msucceeded\u{1b}[0m  -"), "{colored:?}");
        assert!(colored.contains("a        \u{1b}[31mfailed\u{1b}[0m     x"), "{colored:?}");
    }

    #[test]
    fn a_log_line_keeps_its_colours_and_nothing_else() {
        assert_eq!(printable_log("a\tb \u{1b}[1;31mred\u{1b}[0m"), "a\tb \u{1b}[1;31mred\u{1b}[0m");
        assert_eq!(
            printable_log("\u{1b}[2J\u{1b}]0;t\u{7}\r\u{9b}1mé"),
            r"\u{1b}[2J\u{1b}]0;t\u{7}\r\u{9b}1mé"
        );
        assert_eq!(printable_log("\u{1b}[31"), r"\u{1b}[31");
    }
}
