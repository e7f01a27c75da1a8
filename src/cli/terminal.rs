//! What terminals need: progress bars on stderr, aligned tables, output that may end early. Knows no model.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Result};
use crate::units::Bytes;

/// A bar of bytes on stderr: drawn on a terminal, silent on a pipe.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar that is not shown before the first [`Progress::update`].
    pub fn new(visibility: Visibility) -> Progress {
        let target = match visibility {
            // indicatif itself draws nothing where stderr is no terminal.
            Visibility::Auto => ProgressDrawTarget::stderr(),
            Visibility::Hidden => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("██ "));
        }
        Progress { bar }
    }

    /// Shows that `done` of `total` bytes of `name` are there.
    pub fn update(&self, name: &str, done: Bytes, total: Bytes) {
        if self.bar.message() != name {
            self.bar.reset();
            self.bar.set_message(name.to_owned());
        }
        self.bar.set_length(total.0);
        self.bar.set_position(done.0);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Whether a bar may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// On a terminal.
    Auto,
    /// Never.
    Hidden,
}

/// The side on which the cells of a column meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Aligned columns without lines, headings in bold on a terminal: plain text that `cut` and `awk` can read.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    table_styled(columns, rows, has_colour(&io::stdout()))
}

fn table_styled(columns: &[(&str, Align)], rows: &[Vec<String>], styled: bool) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    if styled {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(columns.iter().map(|(heading, _)| Cell::new(heading).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row);
    }
    for (column, (_, align)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Whether `stream` is a terminal whose user has not set `NO_COLOR` (no-color.org: set and not empty).
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes `text` to stdout. A reader that has gone away (`| head`) is no error.
///
/// # Errors
/// [`Error::Io`] where stdout cannot be written, as on a full disk.
pub fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes `path` to stdout as the system has it, UTF-8 or not, with a line break at its end.
///
/// # Errors
/// As [`print()`].
pub fn print_path(path: &Path) -> Result<()> {
    print_bytes(&[path.as_os_str().as_encoded_bytes(), b"\n"].concat())
}

fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(Error::io("write to", "stdout", source)),
        _ => Ok(()),
    }
}

/// Whether `error` is of a reader of stdout that has gone away, which ends the work and is no failure.
pub fn is_closed_stdout(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. } if path == "stdout" && source.kind() == ErrorKind::BrokenPipe)
}

/// Writes `text` to stderr. That nobody reads it is no error.
pub fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes `value` to stdout as indented JSON with a line break at its end.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|fault| Error::io("write to", "stdout", fault.into()))?;
    print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_carry_no_codes_off_a_terminal() {
        let rows = [vec!["org/name".to_owned(), "1.5 GiB".to_owned()], vec!["x".to_owned(), "10 B".to_owned()]];
        let text = table_styled(&[("NAME", Align::Left), ("SIZE", Align::Right)], &rows, false);
        assert_eq!(text, "NAME         SIZE\norg/name  1.5 GiB\nx            10 B\n");
    }

    #[test]
    fn headings_are_bold_on_a_terminal() {
        assert!(table_styled(&[("NAME", Align::Left)], &[], true).contains("\u{1b}[1m"));
    }

    #[test]
    fn a_bar_off_a_terminal_counts_and_does_not_draw() {
        let progress = Progress::new(Visibility::Hidden);
        progress.update("a", Bytes(3), Bytes(7));
        progress.update("b", Bytes(1), Bytes(2));
        assert_eq!((progress.bar.position(), progress.bar.length(), progress.bar.message().as_str()), (1, Some(2), "b"));
        progress.finish();
    }
}
