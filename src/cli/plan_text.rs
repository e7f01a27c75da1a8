//! The text of a plan in a terminal: colours for bars and names, and lines no longer than the terminal is wide. Knows only the text of a
//! plan, not plans.

use std::borrow::Cow;

use crate::cli::terminal::{Stream, note_styled, print};
use crate::error::Result;

const BOLD: &str = "\u{1b}[1m";
const BAR: &str = "\u{1b}[36m";
const FULL: &str = "\u{1b}[33m";
const PLAIN: &str = "\u{1b}[0m";

/// What the text says of whatever takes the most time.
const BOUND: &str = "the bound";

/// Prints a plan's text on stdout.
///
/// # Errors
/// As of [`print()`].
pub(super) fn print_plan(text: &str) -> Result<()> {
    print(&for_stream(text, Stream::Stdout))
}

/// Writes a plan's text to stderr.
pub(super) fn note_plan(text: &str) {
    note_styled(&for_stream(text, Stream::Stderr));
}

fn for_stream(text: &str, stream: Stream) -> Cow<'_, str> {
    let text = stream.shown(text);
    if stream.has_colour() { Cow::Owned(painted(&text)) } else { text }
}

/// The first line and the names in front of others bold, bars coloured, full ones and what bounds the rate in another colour.
fn painted(text: &str) -> String {
    let mut painted = String::with_capacity(text.len() * 2);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let content = line.trim_end_matches('\n');
        let name_end = if index == 0 { content.len() } else { end_of_name(content) };
        let (name, rest) = content.split_at(name_end);
        if name.is_empty() {
            painted.push_str(&with_colours(rest));
        } else {
            painted.push_str(&format!("{BOLD}{name}{PLAIN}{}", with_colours(rest)));
        }
        painted.push_str(&line[content.len()..]);
    }
    painted
}

/// Where the name ends that stands two columns from the margin, with a gap behind it.
fn end_of_name(line: &str) -> usize {
    let is_named = line.starts_with("  ") && !line[2..].starts_with(' ');
    let end = line.get(2..).and_then(|rest| rest.find("  ")).map(|end| end + 2);
    if is_named { end.unwrap_or(0) } else { 0 }
}

fn with_colours(text: &str) -> String {
    let ends_of_bar = text.find(['█', '░']).zip(text.rfind(['█', '░']));
    match ends_of_bar {
        Some((start, last)) => {
            let end = last + '█'.len_utf8();
            let bar = &text[start..end];
            let colour = if bar.contains('░') { BAR } else { FULL };
            format!("{}{colour}{bar}{PLAIN}{}", &text[..start], &text[end..])
        }
        None => text.replace(BOUND, &format!("{FULL}{BOUND}{PLAIN}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_add_nothing_but_colours() {
        let text = "model  1 GiB\ncpu computes · context 4\n  cpu    ██░░  1 of 2  name\n         computes 1 layer\n  \
                    gpu:0  ████  2 of 2\n  per token    computing 1 ms, the bound\n";
        let painted = painted(text);
        assert!(painted.starts_with("\u{1b}[1mmodel  1 GiB\u{1b}[0m\ncpu computes"), "{painted:?}");
        assert!(painted.contains("\u{1b}[1m  cpu\u{1b}[0m    \u{1b}[36m██░░\u{1b}[0m  1 of 2"), "{painted:?}");
        assert!(painted.contains("\u{1b}[33m████\u{1b}[0m  2 of 2") && painted.contains(", \u{1b}[33mthe bound\u{1b}[0m\n"), "{painted:?}");
        let plain = [BOLD, BAR, FULL, PLAIN].iter().fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(plain, text);
    }
}
