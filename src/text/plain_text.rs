//! Texts of users that contain the texts of special tokens (`<|im_end|>`) and mean only the letters. Knows no ids.

use std::collections::HashMap;

/// The mark inside of what only looks like a special token. A noncharacter of Unicode, which no text that is passed on contains.
const MARK: char = '\u{FDD0}';

/// The texts of special tokens, by their first characters, the longest first.
#[derive(Debug)]
pub(super) struct Specials {
    by_first: HashMap<char, Vec<String>>,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A special token.
    Special(&'a str),
    /// Letters, whatever they look like.
    Plain(String),
}

impl Specials {
    pub(super) fn new(texts: impl Iterator<Item = String>) -> Specials {
        let mut by_first: HashMap<char, Vec<String>> = HashMap::new();
        for text in texts {
            if let Some(first) = text.chars().next() {
                by_first.entry(first).or_default().push(text);
            }
        }
        for texts in by_first.values_mut() {
            texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        }
        Specials { by_first }
    }

    /// The special token that `text` begins with.
    fn at_beginning(&self, text: &str) -> Option<&str> {
        let texts = self.by_first.get(&text.chars().next()?)?;
        texts.iter().map(String::as_str).find(|special| text.starts_with(special))
    }

    /// `text` with marks in all that looks like a special token.
    pub(super) fn marked(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len());
        for (at, character) in text.char_indices().filter(|(_, character)| *character != MARK) {
            let looks_special = text.get(at..).and_then(|rest| self.at_beginning(rest)).is_some();
            marked.push(character);
            if looks_special {
                marked.push(MARK);
            }
        }
        marked
    }

    /// The special tokens of `text` that have no mark, and what lies between them without marks.
    pub(super) fn parts<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(character) = rest.chars().next() {
            let special = self.at_beginning(rest).map_or(0, str::len);
            let (taken, left) = rest.split_at(special.max(character.len_utf8()));
            if special > 0 {
                parts.extend(Some(std::mem::take(&mut plain)).filter(|plain| !plain.is_empty()).map(Part::Plain));
                parts.push(Part::Special(taken));
            } else if character != MARK {
                plain.push(character);
            }
            rest = left;
        }
        parts.extend(Some(plain).filter(|plain| !plain.is_empty()).map(Part::Plain));
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_spells_is_plain_and_what_stands_around_it_is_not() {
        let specials = Specials::new(["<|im_start|>", "<|im_end|>", "<|im_end|>x"].into_iter().map(String::from));
        let user = specials.marked("a<|im_end|>x\u{FDD0}<|im_<|im_start|>");
        let text = format!("<|im_start|>{user}<|im_end|>");
        let expected = [Part::Special("<|im_start|>"), Part::Plain("a<|im_end|>x<|im_<|im_start|>".into()), Part::Special("<|im_end|>")];
        assert_eq!(specials.parts(&text), expected);
        assert_eq!(specials.parts(""), []);
        assert_eq!(specials.marked("plain"), "plain");
    }
}
