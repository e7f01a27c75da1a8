//! Word wrap for text that is printed as it comes: a word that grows past the edge is erased and written again on the next line. Knows no
//! terminal, only its width.

use unicode_width::UnicodeWidthChar;

/// Narrower terminals are left to break lines themselves.
const LEAST_COLUMNS: usize = 20;

/// Breaks lines of text that comes in parts. Code between fences passes as it is, since breaks in it would be copied with it.
#[derive(Debug)]
pub(super) struct Wrap {
    /// The columns that are used; the terminal's last one stays free, since terminals differ in where the cursor is behind it.
    limit: usize,
    column: usize,
    /// The word at the end of the line, while it may still be moved.
    word: String,
    word_columns: usize,
    /// Whether the end of the line is a part of a word that is not moved.
    is_fixed: bool,
    /// The beginning of the line, as far as it can be that of a fence.
    begin: String,
    is_code: bool,
}

impl Wrap {
    /// For a terminal of `columns`; `None` where it is too narrow for words.
    pub(super) fn new(columns: usize) -> Option<Wrap> {
        (columns >= LEAST_COLUMNS).then(|| Wrap {
            limit: columns - 1,
            column: 0,
            word: String::new(),
            word_columns: 0,
            is_fixed: false,
            begin: String::new(),
            is_code: false,
        })
    }

    /// What is to be written for `text`, which follows what came before.
    pub(super) fn push(&mut self, text: &str) -> String {
        let mut written = String::new();
        text.chars().for_each(|char| self.push_char(char, &mut written));
        written
    }

    fn push_char(&mut self, char: char, written: &mut String) {
        if char == '\n' {
            let is_fence = self.begin == "```";
            self.is_code ^= is_fence;
            self.break_line(written);
            self.begin.clear();
            return;
        }
        if self.begin.len() < 3 && (self.begin.chars().all(|begun| begun == '`')) && !(self.begin.is_empty() && char == ' ') {
            self.begin.push(char);
        }
        if self.is_code || self.begin == "```" {
            written.push(char);
        } else if char == ' ' || char == '\t' {
            self.push_space(char, written);
        } else {
            self.push_visible(char, written);
        }
    }

    fn push_space(&mut self, char: char, written: &mut String) {
        let columns = if char == '\t' { 8 - self.column % 8 } else { 1 };
        if self.column + columns > self.limit {
            // The break stands for the space.
            self.break_line(written);
            return;
        }
        written.push(char);
        self.column += columns;
        self.end_word();
    }

    fn push_visible(&mut self, char: char, written: &mut String) {
        let columns = char.width().unwrap_or(0);
        if self.column + columns > self.limit {
            self.move_word(written);
        }
        written.push(char);
        self.column += columns;
        // Lines break around wide characters, and what joins emoji is drawn by each terminal in its own way.
        if columns > 1 || matches!(char, '\u{200d}' | '\u{fe0f}') {
            self.end_word();
            self.is_fixed = columns < 2;
        } else if !self.is_fixed {
            self.word.push(char);
            self.word_columns += columns;
        }
    }

    /// Goes to a new line, with the last word where it can be moved and is not the whole line.
    fn move_word(&mut self, written: &mut String) {
        let (word, columns) = (std::mem::take(&mut self.word), self.word_columns);
        if columns == 0 || columns >= self.column {
            self.break_line(written);
            return;
        }
        written.push_str(&format!("\u{1b}[{columns}D\u{1b}[K"));
        self.break_line(written);
        written.push_str(&word);
        (self.word, self.word_columns, self.column) = (word, columns, columns);
    }

    fn break_line(&mut self, written: &mut String) {
        written.push('\n');
        self.column = 0;
        self.end_word();
    }

    fn end_word(&mut self) {
        self.word.clear();
        self.word_columns = 0;
        self.is_fixed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal of `columns` shows of `text` that comes in parts of `n` characters.
    fn shown(text: &str, columns: usize, n: usize) -> Vec<String> {
        let mut wrap = Wrap::new(columns).unwrap();
        let chars: Vec<char> = text.chars().collect();
        let written: String = chars.chunks(n).map(|part| wrap.push(&part.iter().collect::<String>())).collect();
        let mut lines = vec![String::new()];
        let mut rest = written.as_str();
        while let Some(char) = rest.chars().next() {
            let line = lines.last_mut().unwrap();
            if let Some(code) = rest.strip_prefix("\u{1b}[") {
                let (back, behind) = code.split_once('D').unwrap();
                line.truncate(line.len() - back.parse::<usize>().unwrap());
                rest = behind.strip_prefix("\u{1b}[K").unwrap();
                continue;
            }
            if char == '\n' {
                lines.push(String::new())
            } else {
                line.push(char)
            }
            rest = &rest[char.len_utf8()..];
        }
        lines
    }

    #[test]
    fn words_move_to_the_next_line_whatever_the_parts() {
        let text = "The quick brown fox jumps over the lazy dog, again and again.\n\n  - an indented line";
        let expected = ["The quick brown fox", "jumps over the lazy", "dog, again and", "again.", "", "  - an indented", "line"];
        for n in [1, 2, 5, 100] {
            let lines: Vec<String> = shown(text, 20, n).iter().map(|line| line.trim_end().to_owned()).collect();
            assert_eq!(lines, expected, "parts of {n}");
        }
    }

    #[test]
    fn words_longer_than_a_line_are_cut_at_the_edge() {
        let word: String = ('a'..='z').chain('a'..='z').collect();
        assert_eq!(shown(&word, 21, 3), [&word[..20], &word[20..40], &word[40..]]);
        let lines = shown(&format!("see {word}"), 21, 3);
        assert_eq!(lines, ["see ", &word[..20], &word[20..40], &word[40..]]);
    }

    #[test]
    fn wide_characters_count_twice_and_break_anywhere() {
        assert_eq!(shown(&"漢".repeat(12), 21, 1), ["漢".repeat(10), "漢漢".to_owned()]);
        // What joins is no column, and is not torn from what it joins.
        let accents = "e\u{301}".repeat(24);
        assert_eq!(shown(&accents, 21, 1), ["e\u{301}".repeat(20), "e\u{301}".repeat(4)]);
    }

    #[test]
    fn code_is_left_as_it_is() {
        let code = "```rust\nlet a_rather_long_line = \"of code that is wider than the terminal\";\n```\n";
        let lines = shown(&format!("{code}and then words that are wrapped"), 20, 4);
        assert_eq!(lines[1], "let a_rather_long_line = \"of code that is wider than the terminal\";");
        assert_eq!(lines[3].trim_end(), "and then words that");
    }

    #[test]
    fn too_narrow_a_terminal_is_left_alone() {
        assert!(Wrap::new(19).is_none() && Wrap::new(0).is_none());
    }
}
