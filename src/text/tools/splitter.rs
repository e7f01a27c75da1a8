//! Tells calls from answer in a stream of text.

use serde_json::Value;

use super::parse::parse;
use super::pieces::{CallPiece, CallReader};
use super::{CallBody, PYTHON_TAG, ToolCall, ToolFormat};
use crate::text::Tokenizer;
use crate::text::reasoning::{MESSAGE, begun};

/// A part of what a model says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// Words for the user.
    Text(String),
    /// A call of a tool.
    Call(ToolCall),
    /// A part of a call ([`ToolSplitter::telling_pieces`]).
    Piece(CallPiece),
    /// A call all of whose parts came before.
    Told(ToolCall),
}

/// Tells calls from answer in a stream of text. What looks like a call and is none stays text; white space around calls is in neither.
/// However the text is cut, the parts put together are the same.
#[derive(Debug, Clone)]
pub struct ToolSplitter {
    format: ToolFormat,
    /// Tools that were offered, in OpenAI's form.
    tools: Vec<Value>,
    /// Marks that are special tokens, which have no text of their own.
    marks: Vec<(u32, &'static str)>,
    state: State,
    /// Text that is not told yet.
    pending: String,
    /// White space before the mark that began calls, which is text where they are none.
    gap: String,
    /// Whether a call was the latest thing.
    is_after_call: bool,
    /// Whether calls are told before they are whole, and the reader of those behind the latest mark.
    tells_pieces: bool,
    reader: Option<CallReader>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come.
    Begin,
    Text,
    /// Behind the mark that begins calls.
    Calls,
}

impl ToolSplitter {
    /// For what a model writes in `format`, which was offered `tools`.
    pub fn new(format: ToolFormat, tools: Vec<Value>, tokenizer: Option<&Tokenizer>) -> ToolSplitter {
        let special = |mark: &'static str| {
            let tokenizer = tokenizer?;
            Some((tokenizer.token_id(mark).filter(|id| tokenizer.is_special(*id))?, mark))
        };
        let marks = format.marks().into_iter().filter_map(special).collect();
        let (pending, gap) = (String::new(), String::new());
        ToolSplitter { format, tools, marks, state: State::Begin, pending, gap, is_after_call: false, tells_pieces: false, reader: None }
    }

    /// The same, telling calls before they are whole. It is for answers that are sure to have calls behind the marks of calls, and no more
    /// text in those: what was told is not taken back. Formats that are no JSON are told whole, and messages to functions that were not offered.
    #[must_use]
    pub fn telling_pieces(mut self) -> ToolSplitter {
        self.tells_pieces = matches!(self.format.body, CallBody::Object | CallBody::List | CallBody::Named | CallBody::Message);
        self
    }

    /// The text of a token that is a mark and has none by itself; empty for all others.
    pub fn mark(&self, token: u32) -> &'static str {
        self.marks.iter().find(|(id, _)| *id == token).map_or("", |(_, mark)| *mark)
    }

    /// What is certain with further text.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.pending.push_str(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// The rest, once no more text comes.
    pub fn finish(mut self) -> Vec<Said> {
        let mut said = Vec::new();
        match self.state {
            State::Calls => self.end_calls(self.pending.len(), self.pending.len(), &mut said),
            State::Begin | State::Text if self.is_after_call && self.pending.trim().is_empty() => {}
            State::Begin | State::Text => self.say(self.pending.len(), &mut said),
        }
        said
    }

    /// Takes what is certain out of `pending`; whether more may be.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match self.state {
            State::Begin if self.format.begin.is_empty() => {
                let text = self.pending.trim_start();
                match text {
                    "" => return false,
                    _ if text.starts_with('{') || text.starts_with(PYTHON_TAG) => self.state = State::Calls,
                    _ if PYTHON_TAG.starts_with(text) => return false,
                    _ => self.state = State::Text,
                }
                true
            }
            State::Begin => {
                self.state = State::Text;
                true
            }
            State::Text if self.format.begin.is_empty() => {
                self.say(self.pending.len(), said);
                false
            }
            State::Text => self.step_in_text(said),
            State::Calls => {
                let mut n_told = 0;
                if self.reader.is_none() && self.tells_pieces {
                    self.reader = self.reader_of_calls();
                }
                if let Some(reader) = &mut self.reader {
                    said.extend(reader.read(&self.pending).into_iter().map(Said::Piece));
                    // A mark inside arguments ends nothing.
                    if reader.n_begun > 0 {
                        if !reader.is_over {
                            return false;
                        }
                        n_told = reader.n_read;
                    }
                }
                let found = self.format.end.and_then(|end| Some((n_told + self.pending[n_told..].find(end)?, end)));
                let Some((at, end)) = found else { return false };
                self.end_calls(at, at + end.len(), said);
                true
            }
        }
    }

    /// What reads the calls that `pending` begins with; `None` where it is not known yet how they begin, and where they begin otherwise than they
    /// should, or go to a function that was not offered: these are told whole.
    fn reader_of_calls(&self) -> Option<CallReader> {
        if self.format.body == CallBody::Message {
            let (name, arguments) = self.pending.split_once(MESSAGE)?;
            let is_offered = self.tools.iter().any(|tool| tool["function"]["name"] == name);
            return (is_offered && arguments.starts_with('{'))
                .then(|| CallReader::of_arguments(name, self.pending.len() - arguments.len()));
        }
        let is_list = self.format.body != CallBody::Object;
        let begins = self.pending.strip_prefix(self.format.lead).is_some_and(|calls| calls.starts_with(['{', '[']));
        begins.then(|| CallReader::new(self.format.keys(), is_list))
    }

    fn step_in_text(&mut self, said: &mut Vec<Said>) -> bool {
        if self.is_after_call {
            self.pending = self.pending.trim_start().to_owned();
        }
        let begin = self.format.begin;
        if let Some(at) = self.pending.find(begin) {
            let n_text = self.pending[..at].trim_end().len();
            self.say(n_text, said);
            self.gap = self.pending.drain(..at - n_text).collect();
            self.pending.drain(..begin.len());
            self.state = State::Calls;
            return true;
        }
        let certain = self.pending.len() - begun(&self.pending, &[begin]);
        self.say(self.pending[..certain].trim_end().len(), said);
        false
    }

    /// The first `n_body` bytes of `pending` are calls; with the mark behind them they are `n_bytes`.
    fn end_calls(&mut self, n_body: usize, n_bytes: usize, said: &mut Vec<Said>) {
        let calls = parse(&self.format, &self.pending[..n_body], &self.tools);
        let reader = self.reader.take();
        let n_told = reader.as_ref().map_or(0, |reader| reader.n_whole);
        match calls {
            None if reader.is_some_and(|reader| reader.n_begun > 0) => {
                // What was told of it cannot be taken back.
                self.pending.drain(..n_bytes);
                self.is_after_call = true;
            }
            Some(calls) => {
                let told = |(index, call)| if index < n_told { Said::Told(call) } else { Said::Call(call) };
                said.extend(calls.into_iter().enumerate().map(told));
                self.pending.drain(..n_bytes);
                self.is_after_call = true;
            }
            None => {
                let before = std::mem::take(&mut self.gap) + self.format.begin;
                self.pending.insert_str(0, &before);
                self.say(before.len() + n_bytes, said);
            }
        }
        self.state = State::Text;
    }

    /// Takes the first `n_bytes` of `pending` as text.
    fn say(&mut self, n_bytes: usize, said: &mut Vec<Said>) {
        if n_bytes > 0 {
            self.is_after_call = false;
            said.push(Said::Text(self.pending.drain(..n_bytes).collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::tools::{FORMATS, HERMES};

    /// What is said by a text that comes in parts of `n` characters.
    fn said(mut splitter: ToolSplitter, text: &str, n: usize) -> Vec<Said> {
        let chars: Vec<char> = text.chars().collect();
        let mut said: Vec<Said> = chars.chunks(n).flat_map(|part| splitter.push(&part.iter().collect::<String>())).collect();
        said.extend(splitter.finish());
        said
    }

    /// Text and names of calls of what comes in parts of `n` characters.
    fn split(format: ToolFormat, text: &str, n: usize) -> (String, Vec<String>) {
        let said = said(ToolSplitter::new(format, Vec::new(), None), text, n);
        let (mut text, mut names) = (String::new(), Vec::new());
        for part in said {
            match part {
                Said::Text(part) => text.push_str(&part),
                Said::Call(call) | Said::Told(call) => names.push(call.name),
                Said::Piece(_) => {}
            }
        }
        (text, names)
    }

    #[test]
    fn calls_are_told_from_text() {
        let (mistral, llama) = (FORMATS[3].1, FORMATS[11].1);
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        for (format, text, expected, names) in [
            (HERMES, "No call.\n", "No call.\n", &[][..]),
            (HERMES, call, "", &["f"]),
            (HERMES, &format!("I look.\n\n{call}\n{call}\n"), "I look.", &["f", "f"]),
            (HERMES, &format!("{call} Done. "), "Done. ", &["f"]),
            (HERMES, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}", "", &["f"]),
            (HERMES, "So:\n<tool_call>words</tool_call> <tool_c", "So:\n<tool_call>words</tool_call> <tool_c", &[]),
            (mistral, "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}", "", &["f", "g"]),
            (llama, " {\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", &["f"]),
            (llama, "{\"answer\": 4}", "{\"answer\": 4}", &[]),
            (llama, "It is {\"name\": \"f\"}", "It is {\"name\": \"f\"}", &[]),
        ] {
            for n in [1, 2, 5, 1000] {
                assert_eq!(
                    split(format, text, n),
                    (expected.to_owned(), names.iter().map(|name| (*name).to_owned()).collect()),
                    "{text:?} by {n}"
                );
            }
        }
    }

    #[test]
    fn calls_are_told_before_they_are_whole() {
        let call = |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"a\": \"</tool_call>\"}}}}\n</tool_call>");
        let text = format!("So: {}\n{} Done", call("f"), call("g"));
        for n in [1, 3, 1000] {
            let said = said(ToolSplitter::new(HERMES, Vec::new(), None).telling_pieces(), &text, n);
            let mut told = String::new();
            for part in &said {
                match part {
                    Said::Text(text) => told.push_str(text),
                    Said::Piece(CallPiece { name: Some(name), arguments }) => told.push_str(&format!("[{name} {arguments}")),
                    Said::Piece(piece) => told.push_str(&piece.arguments),
                    Said::Told(call) => told.push_str(&format!(" {}]", call.arguments.len())),
                    Said::Call(call) => panic!("{call:?} was told before"),
                }
            }
            assert_eq!(told, "So:[f {\"a\": \"</tool_call>\"} 1][g {\"a\": \"</tool_call>\"} 1]Done", "by {n}");
            assert!(n > 1 || said.iter().filter(|part| matches!(part, Said::Piece(_))).count() > 20);
        }
        // What ends in the midst of a call is no text.
        let mut splitter = ToolSplitter::new(HERMES, Vec::new(), None).telling_pieces();
        assert_eq!(splitter.push("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"").len(), 2);
        assert_eq!(splitter.finish(), []);
    }

    #[test]
    fn arguments_of_messages_are_told_as_they_come_where_the_function_was_offered() {
        let offered = vec![serde_json::json!({"type": "function", "function": {"name": "f"}})];
        let splitter = ToolSplitter::new(FORMATS[10].1, offered, None).telling_pieces();
        let message = |name: &str| format!("So: <|start|>functions.{name}<|message|>{{\"a\": \"<|call|>\"}}<|call|>Done");
        for n in [1, 3, 1000] {
            let (mut told, mut n_whole) = (String::new(), 0);
            for part in said(splitter.clone(), &message("f"), n) {
                match part {
                    Said::Text(text) => told.push_str(&text),
                    Said::Piece(CallPiece { name, arguments }) => told.extend([name.unwrap_or_default(), arguments]),
                    Said::Told(call) => n_whole += usize::from(call.name == "f" && call.arguments["a"] == "<|call|>"),
                    Said::Call(call) => panic!("{call:?} was told before"),
                }
            }
            assert_eq!((told.as_str(), n_whole), ("So:f{\"a\": \"<|call|>\"}Done", 1), "by {n}");
            let is_told = |part: &Said| matches!(part, Said::Piece(_) | Said::Told(_));
            assert!(!said(splitter.clone(), &message("g"), n).iter().any(is_told), "what was not offered may be no call");
        }
    }

    proptest! {
        #[test]
        fn parts_make_no_difference(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("<tool_call>"), Just("</tool_call>"), Just("{\"name\": \"f\"}"), Just("<tool"), Just("{"), Just("\n"), Just(" "), Just("é"),
                    Just("[TOOL_CALLS]"), Just("f[ARGS]{}"), Just("a b"), Just("<function=f>"), Just("</function>"), Just("<parameter=a>"),
                    Just("<arg_key>"), Just("</arg_key>"), Just("<arg_value>"), Just("<|tool_call|>"), Just("[")
                ],
                0..20,
            ),
            format in 0..FORMATS.len(),
        ) {
            let (text, format) = (words.concat(), FORMATS[format].1);
            let whole = split(format, &text, usize::MAX);
            for n in 1..5 {
                prop_assert_eq!(&split(format, &text, n), &whole);
            }
            prop_assert!(whole.0.len() <= text.len(), "nothing is written twice");
        }
    }
}
