//! A conversation: its messages, which of them are still in the context, and its file.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::platform;
use crate::text::ChatMessage;

const SCHEMA: &str = "tierflow.chat/1";
/// No conversation's file is longer.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A system message and what followed it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Conversation {
    pub(super) system: Option<String>,
    messages: Vec<ChatMessage>,
    /// Messages at the beginning that left the context.
    n_left: usize,
}

/// A prompt that fits the context.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fitted {
    pub(super) tokens: Vec<u32>,
    /// Turns that left for it.
    pub(super) n_turns_left: usize,
}

impl Conversation {
    /// One in which nothing was said.
    pub(super) fn new(system: Option<String>) -> Conversation {
        Conversation { system, ..Conversation::default() }
    }

    /// The same system message, and nothing said.
    pub(super) fn clear(&mut self) {
        *self = Conversation::new(self.system.take());
    }

    pub(super) fn n_messages(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn ask(&mut self, question: &str) {
        self.messages.push(ChatMessage::new("user", question));
    }

    /// `reasoning`: what was thought before, under the name that templates have for it; whether it is said again is theirs to decide.
    pub(super) fn answer(&mut self, answer: &str, reasoning: Option<(&str, &str)>) {
        let message = ChatMessage::new("assistant", answer);
        self.messages.push(match reasoning {
            Some((field, text)) => message.with(field, text),
            None => message,
        });
    }

    /// Takes back what was answered to the last question; false where there is none.
    pub(super) fn take_back_answer(&mut self) -> bool {
        let last_question = self.messages.iter().rposition(|message| message.role() == "user");
        if let Some(index) = last_question {
            self.messages.truncate(index + 1);
            self.n_left = self.n_left.min(index);
        }
        last_question.is_some()
    }

    /// The prompt of at most `room` tokens, as `encode` makes it. Where the messages in the context are longer, the oldest turns leave it until
    /// `comfortable` tokens suffice; the last question and the system message never do, even if they need more than `room`.
    ///
    /// # Errors
    /// Those of `encode`.
    pub(super) fn fit(&mut self, room: usize, comfortable: usize, encode: &dyn Fn(&[ChatMessage]) -> Result<Vec<u32>>) -> Result<Fitted> {
        let tokens = encode(&self.seen_from(self.n_left))?;
        let begins: Vec<usize> = (self.n_left + 1..self.messages.len()).filter(|&index| self.messages[index].role() == "user").collect();
        if tokens.len() <= room || begins.is_empty() {
            return Ok(Fitted { tokens, n_turns_left: 0 });
        }
        // The fewer turns, the shorter the prompt: the first that suffices is found by halving.
        let (mut least, mut most) = (0, begins.len() - 1);
        let mut best = encode(&self.seen_from(begins[most]))?;
        while least < most {
            let middle = (least + most) / 2;
            let tokens = encode(&self.seen_from(begins[middle]))?;
            if tokens.len() <= comfortable {
                (most, best) = (middle, tokens);
            } else {
                least = middle + 1;
            }
        }
        self.n_left = begins[most];
        Ok(Fitted { tokens: best, n_turns_left: most + 1 })
    }

    /// The system message and the messages from `first` on.
    fn seen_from(&self, first: usize) -> Vec<ChatMessage> {
        let system = self.system.as_deref().map(|system| ChatMessage::new("system", system));
        system.into_iter().chain(self.messages[first..].iter().cloned()).collect()
    }

    /// Writes everything that was said to `path` as JSON. A file that holds something else is not overwritten.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] for such a file.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let holds_text = std::fs::metadata(path).is_ok_and(|there| there.is_file() && there.len() > 0);
        if holds_text && Conversation::load(path).is_err() {
            return Err(Error::invalid_file(path.display(), "holds something else than a conversation; choose another name"));
        }
        let value = json!({ "schema": SCHEMA, "messages": self.seen_from(0) });
        platform::write_atomically(path, format!("{value:#}\n").as_bytes())
    }

    /// Reads what [`Conversation::save`] wrote, or a bare list of messages.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] for what is neither.
    pub(super) fn load(path: &Path) -> Result<Conversation> {
        let text = platform::read_text(path, FILE_BYTES_MAX)?;
        let invalid = |reason: String| Error::invalid_file(path.display(), format!("is no conversation: {reason}"));
        let value: Value = serde_json::from_str(&text).map_err(|_| invalid("/save writes JSON, which this is not".into()))?;
        let list = match value {
            Value::Object(mut fields) => fields.remove("messages").ok_or_else(|| invalid("it has no `messages`".into()))?,
            other => other,
        };
        let mut messages: Vec<ChatMessage> = serde_json::from_value(list).map_err(|reason| invalid(reason.to_string()))?;
        let begins_with_system = messages.first().is_some_and(|first| first.role() == "system");
        let system = begins_with_system.then(|| messages.remove(0).text().into_owned());
        Ok(Conversation { system, messages, n_left: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for each byte.
    fn bytes(messages: &[ChatMessage]) -> Result<Vec<u32>> {
        Ok(messages.iter().flat_map(|message| message.text().bytes().map(u32::from).collect::<Vec<_>>()).collect())
    }

    fn text(fitted: &Fitted) -> String {
        fitted.tokens.iter().map(|&token| char::from(token as u8)).collect()
    }

    fn three_turns() -> Conversation {
        let mut conversation = Conversation::new(Some("SY".into()));
        for (question, answer) in [("q1q1", "a1a1"), ("q2q2", "a2a2")] {
            conversation.ask(question);
            conversation.answer(answer, (question == "q2q2").then_some(("reasoning_content", "thought")));
        }
        conversation.ask("q3q3");
        conversation
    }

    #[test]
    fn the_oldest_turns_leave_whole_and_the_system_message_stays() {
        for (room, comfortable, expected, n_left) in [
            (22, 22, "SYq1q1a1a1q2q2a2a2q3q3", 0),
            (21, 21, "SYq2q2a2a2q3q3", 1),
            (21, 13, "SYq3q3", 2),
            // The question alone is what is left, even where it is too long.
            (3, 1, "SYq3q3", 2),
        ] {
            let mut conversation = three_turns();
            let fitted = conversation.fit(room, comfortable, &bytes).unwrap();
            assert_eq!((text(&fitted).as_str(), fitted.n_turns_left), (expected, n_left), "room for {room}");
            // What left stays away, and is not counted again.
            let again = conversation.fit(22, 22, &bytes).unwrap();
            assert_eq!((text(&again).as_str(), again.n_turns_left), (expected, 0), "room for {room}");
        }
    }

    #[test]
    fn an_answer_is_taken_back_and_the_question_stays() {
        let mut conversation = Conversation::default();
        assert!(!conversation.take_back_answer());
        conversation.ask("q");
        conversation.answer("a", None);
        assert!(conversation.take_back_answer());
        assert_eq!(text(&conversation.fit(9, 9, &bytes).unwrap()), "q");
    }

    #[test]
    fn files_hold_all_that_was_said_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let mut conversation = three_turns();
        conversation.fit(10, 10, &bytes).unwrap();
        conversation.save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), three_turns());
        conversation.clear();
        conversation.save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), Conversation::new(Some("SY".into())));
        std::fs::write(&path, "\u{feff}[{\"role\": \"user\", \"content\": \"x\"}]").unwrap();
        assert_eq!(Conversation::load(&path).unwrap().n_messages(), 1);
        for other in ["notes", "{\"a\": 1}", "[1]", "{\"messages\": 3}"] {
            std::fs::write(&path, other).unwrap();
            assert!(Conversation::load(&path).unwrap_err().to_string().contains("chat.json: is no conversation"), "{other}");
            assert_eq!(Conversation::load(&path).unwrap_err().to_string().contains("which this is not"), other == "notes");
            assert!(conversation.save(&path).unwrap_err().to_string().contains("something else"), "{other}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
    }
}
