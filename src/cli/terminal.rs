//! What terminals need: progress bars on stderr, aligned tables, output that may end early. Knows no model.

use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use textwrap::core::display_width;

use crate::cli::words::text_of;
use crate::error::{Error, Result};
use crate::units::Bytes;

/// A bar on stderr that shows `done` of `total` as `template` has it, in indicatif's words.
pub fn progress_bar(visibility: Visibility, template: &str, total: u64, done: u64) -> ProgressBar {
    let target = match visibility {
        // indicatif itself draws nothing where stderr is no terminal.
        Visibility::Auto => ProgressDrawTarget::stderr(),
        Visibility::Hidden => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("██ ")),
        Err(_) => bar,
    }
}

/// A bar of bytes on stderr: drawn on a terminal, silent on a pipe.
pub struct Progress {
    visibility: Visibility,
    bar: Mutex<ProgressBar>,
}

impl Progress {
    /// A bar that is not shown before the first [`Progress::update`].
    pub fn new(visibility: Visibility) -> Progress {
        Progress { visibility, bar: Mutex::new(ProgressBar::hidden()) }
    }

    /// A bar with all that its first frame shows: each setter of one that is shown draws it.
    fn bar(&self, name: &str, done: Bytes, total: Bytes) -> ProgressBar {
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        progress_bar(self.visibility, template, total.0, done.0).with_message(name.to_owned())
    }

    /// Shows that `done` of `total` bytes of `name` are there.
    pub fn update(&self, name: &str, done: Bytes, total: Bytes) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if bar.message() != name {
            bar.finish_and_clear();
            *bar = self.bar(name, done, total);
            bar.tick();
            return;
        }
        bar.set_length(total.0);
        bar.set_position(done.0);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner).finish_and_clear();
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

/// The side to which the cells of a column are aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Aligned columns without lines, on a terminal headings in bold and cells broken where a row would be wider than it. Elsewhere plain
/// text that `cut` and `awk` can read.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    table_styled(columns, rows, has_colour(&io::stdout()), Stream::Stdout.width())
}

/// Whether stdout has room for the rows of a table as they are; everything has that is no terminal.
pub fn fits(columns: &[(&str, Align)], rows: &[Vec<String>]) -> bool {
    Stream::Stdout.width().is_none_or(|width| table_styled(columns, rows, false, None).lines().all(|line| display_width(line) <= width))
}

fn table_styled(columns: &[(&str, Align)], rows: &[Vec<String>], styled: bool, width: Option<usize>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = width.and_then(|width| u16::try_from(width).ok()) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    if styled {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(columns.iter().map(|(heading, _)| Cell::new(heading).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row.iter().map(|cell| if width.is_some() { harmless(cell) } else { Cow::Borrowed(&**cell) }));
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

/// Where text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Answers.
    Stdout,
    /// Everything else.
    Stderr,
}

impl Stream {
    /// Columns of the terminal behind it; `None` where there is none.
    pub fn width(self) -> Option<usize> {
        let mut table = Table::new();
        if self == Stream::Stderr {
            table.use_stderr();
        }
        // One of no columns does not know.
        table.width().map(usize::from).filter(|width| *width > 0)
    }

    /// `text` as it looks there: on a terminal [harmless] and in lines that fit, elsewhere as it is.
    pub fn shown(self, text: &str) -> Cow<'_, str> {
        match self.width() {
            Some(width) => Cow::Owned(wrapped(&harmless(text), Some(width))),
            None => Cow::Borrowed(text),
        }
    }

    /// As [`has_colour`].
    pub fn has_colour(self) -> bool {
        match self {
            Stream::Stdout => has_colour(&io::stdout()),
            Stream::Stderr => has_colour(&io::stderr()),
        }
    }
}

/// Columns that are left for text beside its indent, at least: below, a line is not broken.
const LEAST_WIDTH: usize = 20;

/// Breaks lines that are longer than `width` between words; what is broken off stands below the text of its line, which begins behind
/// the line's indent and the name before it. A number stays with the word that follows it, and so does an option. As it is where there is
/// no width.
pub fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_owned() };
    text.split_inclusive('\n').map(|line| wrapped_line(line, width)).collect()
}

fn wrapped_line(line: &str, width: usize) -> String {
    const TOGETHER: char = '\u{a0}';
    let content = line.trim_end_matches('\n');
    let indent = indent_of(content);
    if display_width(content) <= width || indent + LEAST_WIDTH > width {
        return line.to_owned();
    }
    let mut kept = String::with_capacity(content.len());
    for letter in content.chars() {
        if letter == ' ' && wants_next(kept.rsplit([' ', TOGETHER]).next().unwrap_or_default()) {
            kept.push(TOGETHER);
        } else {
            kept.push(letter);
        }
    }
    let indent = " ".repeat(indent);
    let options = textwrap::Options::new(width).subsequent_indent(&indent).break_words(false);
    let options = options.word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::wrap(&kept, options).join("\n").replace(TOGETHER, " ") + &line[content.len()..]
}

/// Whether a word is a number, whose unit follows, or an option, whose value does.
fn wants_next(word: &str) -> bool {
    let is_option = word.trim_start_matches(['(', '`', '-']).len() < word.trim_start_matches(['(', '`']).len();
    word.ends_with(|last: char| last.is_ascii_digit()) || (is_option && word.ends_with(|last: char| last.is_ascii_alphanumeric()))
}

/// The column in which the text of a line begins: behind its indent, and behind a short name with a gap of two columns or more.
fn indent_of(line: &str) -> usize {
    const LONGEST_NAME: usize = 14;
    let text = line.trim_start_matches(' ');
    let indent = line.len() - text.len();
    let behind_name = text.find("  ").filter(|end| *end <= LONGEST_NAME).map(|end| &text[end..]);
    let rest = behind_name.map_or(text, |gap| gap.trim_start_matches(' '));
    if rest.is_empty() { indent } else { indent + display_width(&text[..text.len() - rest.len()]) }
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

/// Writes a report to stdout, on a terminal with lines that fit it.
///
/// # Errors
/// As [`print()`].
pub fn print_report(text: &str) -> Result<()> {
    print(&wrapped(text, Stream::Stdout.width()))
}

/// Writes `text` to stderr, on a terminal with lines that fit it and with control characters made visible. It is no error if nobody reads it.
pub fn note(text: &str) {
    note_styled(&Stream::Stderr.shown(text));
}

/// As [`note`], of text that is fit for the stream and may have colours.
pub fn note_styled(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// `text` with control characters made visible, so that the terminal does not obey them: names in files and answers of models may hold any
/// character. Carriage returns and other invisible controls become pictures (U+2400 and on) or U+FFFD; line breaks and tabs stay.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let picture = |letter: char| match letter as u32 {
        code @ 0..0x20 => char::from_u32(0x2400 + code),
        0x7f => Some('\u{2421}'),
        _ => None,
    };
    let shown = |letter: char| if is_harmful(letter) { picture(letter).unwrap_or(char::REPLACEMENT_CHARACTER) } else { letter };
    // A line may end as on Windows.
    Cow::Owned(text.replace("\r\n", "\n").chars().map(shown).collect())
}

/// Prints the error that ends the program on stderr, in the style of errors of the command line.
pub fn tell_error(error: &Error) {
    let plain = format!("error: {}\n", text_of(error));
    let text = Stream::Stderr.shown(&plain);
    match text.strip_prefix("error:").filter(|_| Stream::Stderr.has_colour()) {
        Some(rest) => note_styled(&format!("\u{1b}[1;31merror:\u{1b}[0m{rest}")),
        None => note_styled(&text),
    }
}

/// Writes `value` to stdout as indented JSON with a line break at its end.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|reason| Error::io("write to", "stdout", reason.into()))?;
    print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_carry_no_codes_off_a_terminal() {
        let rows = [vec!["org/name".to_owned(), "1.5 GiB".to_owned()], vec!["x".to_owned(), "10 B".to_owned()]];
        let text = table_styled(&[("NAME", Align::Left), ("SIZE", Align::Right)], &rows, false, None);
        assert_eq!(text, "NAME         SIZE\norg/name  1.5 GiB\nx            10 B\n");
    }

    #[test]
    fn headings_are_bold_on_a_terminal() {
        assert!(table_styled(&[("NAME", Align::Left)], &[], true, None).contains("\u{1b}[1m"));
    }

    #[test]
    fn tables_are_no_wider_than_a_terminal() {
        let rows = [vec!["a name of many words that is long".to_owned(), "1.5 GiB".to_owned()]];
        let columns = [("NAME", Align::Left), ("SIZE", Align::Right)];
        let wide = |width: Option<usize>| table_styled(&columns, &rows, false, width);
        let broken = wide(Some(30));
        assert!(broken.lines().count() == 3 && broken.lines().all(|line| line.chars().count() <= 30), "{broken}");
        assert_eq!((wide(Some(80)).lines().count(), wide(None).lines().count()), (2, 2));
    }

    #[test]
    fn long_lines_go_on_below_their_text() {
        let long = "  gpu:0  ████  6.9 GiB of 7.0 GiB  a name\n         weights 6.3 GiB · KV cache 94.5 MiB · slots 403.4 MiB\n";
        let narrow = "  gpu:0  ████  6.9 GiB of 7.0 GiB  a\n         name\n         weights 6.3 GiB · KV cache\n         94.5 MiB · slots 403.4 MiB\n";
        assert_eq!(wrapped(long, Some(38)), narrow);
        assert_eq!(wrapped(long, Some(80)), long);
        assert_eq!(wrapped(long, None), long);
        assert_eq!(wrapped("no end", Some(4)), "no end", "narrower than any text");
        let path = format!("see {}/file now", "/folder".repeat(8));
        assert_eq!(wrapped(&path, Some(30)), format!("see\n{}/file\nnow", "/folder".repeat(8)), "a path stays whole");
        let words = ["word"; 40].join(" ");
        let broken = wrapped(&words, Some(33));
        assert!(broken.lines().all(|line| line.len() <= 33) && broken.split_whitespace().eq(words.split(' ')), "{broken}");
    }

    #[test]
    fn options_stay_with_their_values() {
        let text = "cut off: the context of 64 positions is full; -c N makes it longer (--ctx-size N)\n";
        for width in 20..80 {
            let broken = wrapped(text, Some(width));
            assert!(broken.lines().all(|line| !line.ends_with("-c") && !line.ends_with("size") && !line.ends_with("64")), "{broken}");
            assert_eq!(broken.replace('\n', " ").trim_end(), text.trim_end());
        }
        assert_eq!(wrapped("one - two, and -- three or four\n", Some(21)), "one - two, and --\nthree or four\n", "a dash is no option");
    }

    #[test]
    fn terminals_show_what_they_would_obey() {
        assert_eq!(harmless("caf\u{e9}\t\u{1f600}\n"), "caf\u{e9}\t\u{1f600}\n");
        assert_eq!(harmless("\u{1b}[2J\u{7}a\r\nb\rc\u{7f}\u{9b}31m"), "\u{241b}[2J\u{2407}a\nb\u{240d}c\u{2421}\u{fffd}31m");
    }

    #[test]
    fn a_bar_off_a_terminal_counts_and_does_not_draw() {
        let progress = Progress::new(Visibility::Hidden);
        progress.update("a", Bytes(3), Bytes(7));
        progress.update("b", Bytes(1), Bytes(2));
        let bar = progress.bar.lock().unwrap().clone();
        assert_eq!((bar.position(), bar.length(), bar.message().as_str()), (1, Some(2), "b"));
        progress.finish();
    }
}
