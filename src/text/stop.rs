//! Stop strings: text that may be the beginning of one is held back until it is known. Knows no tokens.

use crate::error::{Error, Result, Setting};

/// Watches a stream of text for strings that end it. The text ends before the stop string that is complete first
/// (of several complete at once, before the longest), however the text is cut into pieces.
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    stopped: bool,
}

/// What [`StopStrings::push`] answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certain to be part of the answer; possibly empty.
    pub text: String,
    /// A stop string came up: `text` is the last of the answer.
    pub stopped: bool,
}

impl StopStrings {
    /// Watches for `strings`; none is allowed to be empty.
    pub fn new(strings: Vec<String>) -> Result<StopStrings> {
        if strings.iter().any(String::is_empty) {
            let reason = "an empty stop string would end every answer at once; leave the option out".to_owned();
            return Err(Error::InvalidArgument { option: Setting::Stop.into(), reason });
        }
        Ok(StopStrings { strings, held: String::new(), stopped: false })
    }

    /// Takes the next text of the stream. After a stop everything is swallowed.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome { text: String::new(), stopped: true };
        }
        self.held.push_str(text);
        if let Some(start) = self.first_stop() {
            self.stopped = true;
            self.held.truncate(start);
            return StopOutcome { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.undecided();
        let certain = self.held.len() - keep;
        let rest = self.held.split_off(certain);
        StopOutcome { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The stream ended: what was held back is part of the answer after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string that is complete first begins.
    fn first_stop(&self) -> Option<usize> {
        let found = self.strings.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)));
        found.min().map(|(_, start)| start)
    }

    /// Bytes at the end of `held` that may be the beginning of a stop string.
    fn undecided(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&len| held.ends_with(&stop.as_bytes()[..len])).unwrap_or(0)
        };
        // Both are UTF-8 and a stop string begins with a whole character, so what matches begins with one, too.
        self.strings.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_back_what_may_become_a_stop_string() {
        let mut stops = StopStrings::new(vec!["</s>".into(), "\n\n".into()]).unwrap();
        assert_eq!(stops.push("one <"), StopOutcome { text: "one ".into(), stopped: false });
        assert_eq!(stops.push("/b>\n"), StopOutcome { text: "</b>".into(), stopped: false });
        assert_eq!(stops.push("two\n"), StopOutcome { text: "\ntwo".into(), stopped: false });
        assert_eq!(stops.push("\nthree"), StopOutcome { text: "".into(), stopped: true });
        assert_eq!(stops.push("four"), StopOutcome { text: "".into(), stopped: true });
    }

    #[test]
    fn what_was_held_back_comes_at_the_end() {
        let mut stops = StopStrings::new(vec!["STOP".into()]).unwrap();
        assert_eq!(stops.push("a STO").text, "a ");
        assert_eq!(stops.finish(), "STO");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new(vec!["x".into(), String::new()]).is_err());
    }
}
