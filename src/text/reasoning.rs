//! Reasoning and answer, told apart in what a model writes, as it comes. Knows how models mark them, and computes nothing.

use super::chat_template::ChatTemplate;
use super::tokenizer::Tokenizer;

/// How a model sets its reasoning apart from its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// Between two marks, before the answer.
    Tags {
        /// Where it begins; a chat template may have written that already.
        begin: &'static str,
        /// Where it ends.
        end: &'static str,
    },
    /// In the channels of OpenAI's Harmony format (gpt-oss): `analysis` is reasoning, every other channel is answer.
    Channels,
}

/// A part of what a model writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// What it thinks.
    Reasoning(String),
    /// What it says.
    Answer(String),
}

/// Tells reasoning from answer in a stream of text. The marks themselves are in neither, nor is the white space between the two. However
/// the text is cut, the parts put together are the same.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter {
    format: Option<ReasoningFormat>,
    /// Marks that are special tokens, which have no text of their own.
    marks: Vec<(u32, &'static str)>,
    state: State,
    /// Text that may belong to a mark, or to the white space before one.
    pending: String,
    /// Whether there was reasoning, and whether there was answer.
    has: [bool; 2],
    /// A block begins: another one of its kind is set off by an empty line.
    is_new_block: bool,
    /// Whether messages to functions keep their marks.
    tells_calls: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing but white space came since the beginning, or since the last reasoning.
    Begin,
    Reasoning,
    Answer,
    /// Between two messages of channels, or in the header of one.
    Header(String),
    /// In a message to a function.
    Call,
}

/// The marks of tags: first those of Qwen, DeepSeek and most others, then Mistral's, ByteDance's and Cohere's.
const TAGS: [[&str; 2]; 4] =
    [["<think>", "</think>"], ["[THINK]", "[/THINK]"], ["<seed:think>", "</seed:think>"], ["<|START_THINKING|>", "<|END_THINKING|>"]];

/// The marks of channels: <https://github.com/openai/harmony>.
pub(super) const CHANNEL_MARKS: [&str; 7] = ["<|start|>", "<|channel|>", "<|constrain|>", MESSAGE, END, "<|return|>", END_OF_MESSAGE];

/// How a message to a function is told, whose name follows; then what stands before its arguments, and what ends them.
pub(super) const MESSAGE_TO_A_FUNCTION: &str = "<|start|>functions.";
pub(super) const MESSAGE: &str = "<|message|>";
/// What ends a message that another one follows.
pub(super) const END: &str = "<|end|>";
pub(super) const END_OF_MESSAGE: &str = "<|call|>";

/// Headers of channels are a few words; what is longer is none.
pub(super) const MAX_HEADER_BYTES: usize = 256;

/// Tokens at the end of a prompt in which reasoning may begin, or a header.
const N_TAIL_TOKENS: usize = 32;

impl ReasoningFormat {
    /// The format of a model, by the tokens that it has and the marks that its chat template writes; `None` where it has none that is known.
    pub fn of(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Option<ReasoningFormat> {
        let is_token = |mark: &str| tokenizer.token_id(mark).is_some();
        if is_token("<|channel|>") && is_token("<|message|>") {
            return Some(ReasoningFormat::Channels);
        }
        let is_written = |mark: &str| template.is_some_and(|template| template.source().contains(mark));
        let is_known = |[begin, end]: &[&'static str; 2]| (is_token(begin) && is_token(end)) || is_written(end);
        TAGS.into_iter().find(is_known).map(|[begin, end]| ReasoningFormat::Tags { begin, end })
    }

    /// The field of an assistant's message in which chat templates look for its reasoning.
    pub fn message_field(self) -> &'static str {
        match self {
            ReasoningFormat::Tags { .. } => "reasoning_content",
            ReasoningFormat::Channels => "thinking",
        }
    }

    fn marks(self) -> Vec<&'static str> {
        match self {
            ReasoningFormat::Tags { begin, end } => vec![begin, end],
            ReasoningFormat::Channels => CHANNEL_MARKS.to_vec(),
        }
    }
}

impl ReasoningSplitter {
    /// For texts that have their marks in them. Of `None`, all is answer.
    pub fn new(format: Option<ReasoningFormat>) -> ReasoningSplitter {
        let state = match format {
            Some(ReasoningFormat::Tags { .. }) => State::Begin,
            Some(ReasoningFormat::Channels) => State::Header(String::new()),
            None => State::Answer,
        };
        ReasoningSplitter {
            format,
            marks: Vec::new(),
            state,
            pending: String::new(),
            has: [false; 2],
            is_new_block: false,
            tells_calls: false,
        }
    }

    /// The same, for an answer in which functions may be called: messages to them, which channels have in the midst of others, are answer, between
    /// the marks that a [`ToolSplitter`](super::ToolSplitter) tells them by. Other formats know no such messages.
    #[must_use]
    pub fn telling_calls(mut self) -> ReasoningSplitter {
        self.tells_calls = true;
        self
    }

    /// For what a model writes after `prompt`, whose end may have opened the reasoning already.
    pub fn after_prompt(format: Option<ReasoningFormat>, tokenizer: &Tokenizer, prompt: &[u32]) -> ReasoningSplitter {
        let mut splitter = ReasoningSplitter::new(format);
        let Some(format) = format else { return splitter };
        let special = |mark: &'static str| Some((tokenizer.token_id(mark).filter(|id| tokenizer.is_special(*id))?, mark));
        splitter.marks = format.marks().into_iter().filter_map(special).collect();
        let tail = splitter.spelled(tokenizer, &prompt[prompt.len().saturating_sub(N_TAIL_TOKENS)..]);
        match format {
            ReasoningFormat::Tags { begin, .. } if tail.trim_end().ends_with(begin) => splitter.open(State::Reasoning),
            ReasoningFormat::Tags { .. } => {}
            ReasoningFormat::Channels => {
                // What the template began of a message counts, its text does not.
                let begin = tail.rfind("<|start|>").unwrap_or(tail.len());
                splitter.push(&tail[begin..]);
                splitter.has = [false; 2];
            }
        }
        splitter
    }

    /// The text of tokens with their marks.
    fn spelled(&self, tokenizer: &Tokenizer, tokens: &[u32]) -> String {
        let mut detokenizer = tokenizer.detokenizer();
        let spelled = |&token: &u32| {
            let text = detokenizer.push(token);
            text + self.mark(token).unwrap_or_default()
        };
        tokens.iter().map(spelled).collect()
    }

    fn mark(&self, token: u32) -> Option<&'static str> {
        self.marks.iter().find(|(id, _)| *id == token).map(|(_, mark)| *mark)
    }

    /// What is certain with a further token and the text that it added.
    pub fn push_token(&mut self, token: u32, text: &str) -> Vec<Segment> {
        let mut segments = self.push(text);
        if let Some(mark) = self.mark(token) {
            segments.extend(self.push(mark));
        }
        segments
    }

    /// What is certain with further text.
    pub fn push(&mut self, text: &str) -> Vec<Segment> {
        self.pending.push_str(text);
        let mut segments = Vec::new();
        match self.format {
            None => self.emit_pending(self.pending.len(), &mut segments),
            Some(ReasoningFormat::Tags { begin, end }) => while self.step_in_tags(begin, end, &mut segments) {},
            Some(ReasoningFormat::Channels) => while self.step_in_channels(&mut segments) {},
        }
        segments
    }

    /// The rest, once no more text comes.
    pub fn finish(mut self) -> Vec<Segment> {
        let mut segments = Vec::new();
        match &mut self.state {
            // White space alone is an answer where there is nothing else.
            State::Begin if self.has == [false; 2] => self.state = State::Answer,
            State::Begin | State::Reasoning => self.pending.truncate(self.pending.trim_end().len()),
            State::Answer | State::Call => {}
            // A header that never ended was none.
            State::Header(header) => {
                let is_header = self.has != [false; 2] || CHANNEL_MARKS.iter().any(|mark| header.contains(mark));
                let text = std::mem::take(header) + &self.pending;
                self.pending = if is_header { String::new() } else { text };
                self.state = State::Answer;
            }
        }
        self.emit_pending(self.pending.len(), &mut segments);
        segments
    }

    /// Takes what is certain out of `pending`; whether more may be.
    fn step_in_tags(&mut self, begin: &str, end: &str, segments: &mut Vec<Segment>) -> bool {
        match self.state {
            State::Begin => {
                let text = self.pending.trim_start();
                if let Some(rest) = text.strip_prefix(begin) {
                    self.pending = rest.to_owned();
                    self.open(State::Reasoning);
                    return true;
                }
                if begin.starts_with(text) {
                    return false;
                }
                if self.has[0] {
                    self.pending = text.to_owned();
                }
                self.open(State::Answer);
                true
            }
            State::Reasoning => {
                if self.is_new_block {
                    self.pending = self.pending.trim_start().to_owned();
                }
                if let Some(at) = self.pending.find(end) {
                    let rest = self.pending.split_off(at + end.len());
                    self.emit_pending(self.pending[..at].trim_end().len(), segments);
                    self.pending = rest;
                    // Reasoning of no words is reasoning, too: the answer begins behind its white space.
                    (self.has[0], self.state) = (true, State::Begin);
                    return true;
                }
                let certain = self.pending.len() - begun(&self.pending, &[end]);
                self.emit_pending(self.pending[..certain].trim_end().len(), segments);
                false
            }
            State::Answer | State::Header(_) | State::Call => {
                self.emit_pending(self.pending.len(), segments);
                false
            }
        }
    }

    /// As [`ReasoningSplitter::step_in_tags`].
    fn step_in_channels(&mut self, segments: &mut Vec<Segment>) -> bool {
        let first = CHANNEL_MARKS.iter().filter_map(|mark| Some((self.pending.find(mark)?, *mark))).min();
        let n_text = first.map_or_else(|| self.pending.len() - begun(&self.pending, &CHANNEL_MARKS), |(at, _)| at);
        match &mut self.state {
            State::Header(header) => {
                header.push_str(&self.pending[..n_text]);
                self.pending.drain(..n_text);
                if header.len() > MAX_HEADER_BYTES {
                    self.pending.insert_str(0, &std::mem::take(header));
                    self.open(State::Answer);
                    return true;
                }
            }
            _ => self.emit_pending(n_text, segments),
        }
        let Some((_, mark)) = first else { return false };
        self.pending.drain(..mark.len());
        if self.state == State::Call && mark != MESSAGE {
            segments.push(Segment::Answer(END_OF_MESSAGE.to_owned()));
        }
        let next = match (&mut self.state, mark) {
            (State::Header(header), "<|message|>") => match called(header).filter(|_| self.tells_calls) {
                Some(name) => {
                    segments.push(Segment::Answer(format!("{MESSAGE_TO_A_FUNCTION}{name}{MESSAGE}")));
                    self.has[1] = true;
                    State::Call
                }
                None => of_channel(header),
            },
            (_, "<|message|>") => return true,
            (State::Header(header), "<|channel|>" | "<|constrain|>") => {
                header.push_str(mark);
                return true;
            }
            (_, "<|channel|>" | "<|constrain|>") => State::Header(mark.to_owned()),
            _ => State::Header(String::new()),
        };
        self.open(next);
        true
    }

    fn open(&mut self, state: State) {
        (self.state, self.is_new_block) = (state, true);
    }

    /// Takes the first `n_bytes` of `pending` as a part of the block that is open.
    fn emit_pending(&mut self, n_bytes: usize, segments: &mut Vec<Segment>) {
        if n_bytes == 0 {
            return;
        }
        let mut text: String = self.pending.drain(..n_bytes).collect();
        if self.state == State::Call {
            segments.push(Segment::Answer(text));
            return;
        }
        let is_answer = self.state != State::Reasoning;
        let has = &mut self.has[usize::from(is_answer)];
        if std::mem::take(&mut self.is_new_block) && *has {
            text.insert_str(0, "\n\n");
        }
        *has = true;
        segments.push(if is_answer { Segment::Answer(text) } else { Segment::Reasoning(text) });
    }
}

/// What a message is, by its header: the channel is the word behind its mark.
fn of_channel(header: &str) -> State {
    let channel = header.rsplit_once("<|channel|>").and_then(|(_, rest)| rest.split(|c: char| c.is_whitespace() || c == '<').next());
    if channel == Some("analysis") { State::Reasoning } else { State::Answer }
}

/// The function that a message with this header calls.
pub(super) fn called(header: &str) -> Option<&str> {
    let (_, rest) = header.split_once("to=functions.")?;
    rest.split(|c: char| c.is_whitespace() || c == '<').next().filter(|name| !name.is_empty())
}

/// Bytes at the end of `text` with which one of the marks may begin.
pub(super) fn begun(text: &str, marks: &[&str]) -> usize {
    let longest = |mark: &&str| (1..mark.len()).rev().find(|n| mark.is_char_boundary(*n) && text.ends_with(&mark[..*n]));
    marks.iter().filter_map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THINK: ReasoningFormat = ReasoningFormat::Tags { begin: TAGS[0][0], end: TAGS[0][1] };

    /// Reasoning and answer of a text that comes in parts of `n` characters.
    fn split(mut splitter: ReasoningSplitter, text: &str, n: usize) -> [String; 2] {
        let chars: Vec<char> = text.chars().collect();
        let mut segments: Vec<Segment> = chars.chunks(n).flat_map(|part| splitter.push(&part.iter().collect::<String>())).collect();
        segments.extend(splitter.finish());
        let mut both = [String::new(), String::new()];
        for segment in segments {
            match segment {
                Segment::Reasoning(text) => both[0].push_str(&text),
                Segment::Answer(text) => both[1].push_str(&text),
            }
        }
        both
    }

    #[track_caller]
    fn check(splitter: &ReasoningSplitter, text: &str, expected: [&str; 2]) {
        for n in [1, 2, 3, 7, 1000] {
            assert_eq!(split(splitter.clone(), text, n), expected, "{text:?} in parts of {n}");
        }
    }

    #[test]
    fn what_stands_between_the_tags_is_reasoning() {
        let splitter = ReasoningSplitter::new(Some(THINK));
        for (text, expected) in [
            ("<think>\nTwo and two.\n\nFour.\n</think>\n\nIt is 4.\n", ["Two and two.\n\nFour.", "It is 4.\n"]),
            ("\n <think>a</think>b", ["a", "b"]),
            ("<think>\n\n</think>\n\nAt once.", ["", "At once."]),
            ("<think>a</think>\n<think>b</think> c", ["a\n\nb", "c"]),
            ("<think>a < b </ c </think", ["a < b </ c </think", ""]),
            ("<think>never ends \n", ["never ends", ""]),
            ("<think>only</think>\n", ["only", ""]),
            // Tags inside an answer are text, and so is white space before one without reasoning.
            ("\n\nNo <think>thought</think>.", ["", "\n\nNo <think>thought</think>."]),
            ("</think>x", ["", "</think>x"]),
            ("<thin", ["", "<thin"]),
            ("  ", ["", "  "]),
            ("", ["", ""]),
        ] {
            check(&splitter, text, expected);
        }
        let mut opened = splitter;
        opened.open(State::Reasoning);
        check(&opened, "\nThe template began it.\n</think>\nYes.", ["The template began it.", "Yes."]);
    }

    #[test]
    fn messages_to_functions_are_told_between_marks_where_some_may_be_called() {
        let splitter = ReasoningSplitter::new(Some(ReasoningFormat::Channels)).telling_calls();
        for (text, expected) in [
            (
                "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>",
                ["Look.", "<|start|>functions.f<|message|>{\"a\": 1}<|call|>"],
            ),
            (" to=functions.get-it<|channel|>analysis json<|message|>{}", ["", "<|start|>functions.get-it<|message|>{}"]),
            (
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
                ["", "I look.<|start|>functions.f<|message|>{}<|call|>"],
            ),
            ("<|channel|>commentary to=browser.open<|message|>{}<|call|>", ["", "{}"]),
        ] {
            check(&splitter, text, expected);
        }
    }

    #[test]
    fn channels_are_told_by_their_names() {
        let splitter = ReasoningSplitter::new(Some(ReasoningFormat::Channels));
        for (text, expected) in [
            ("<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>", ["Easy.", "4"]),
            ("<|start|>assistant<|channel|>final<|message|>a <| b <|end", ["", "a <| b <|end"]),
            (
                "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>\
                 <|start|>assistant<|channel|>analysis<|message|>B<|end|><|start|>assistant<|channel|>final<|message|>C",
                ["A\n\nB", "I look.\n\nC"],
            ),
            ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", ["", "{}"]),
            ("It knows no channels.", ["", "It knows no channels."]),
            ("<|channel|>analysis<|message|>cut off", ["cut off", ""]),
            ("<|channel|>anal", ["", ""]),
        ] {
            check(&splitter, text, expected);
        }
        let long = "words ".repeat(100);
        check(&splitter, &long, ["", &long]);
    }

    #[test]
    fn without_a_format_all_is_answer() {
        check(&ReasoningSplitter::new(None), "<think>a</think> b", ["", "<think>a</think> b"]);
    }

    proptest! {
        #[test]
        fn parts_make_no_difference(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("<think>"), Just("</think>"), Just("<"), Just("</"), Just("think>"), Just("\n"), Just(" "), Just("é"), Just("a b"),
                    Just("<|start|>"), Just("<|channel|>"), Just("analysis"), Just("final"), Just("<|message|>"), Just("<|end|>"), Just("<|")
                ],
                0..24,
            ),
            channels: bool,
        ) {
            let text = words.concat();
            let splitter = ReasoningSplitter::new(Some(if channels { ReasoningFormat::Channels } else { THINK }));
            let whole = split(splitter.clone(), &text, usize::MAX);
            for n in 1..5 {
                prop_assert_eq!(&split(splitter.clone(), &text, n), &whole);
            }
            let n_bytes: usize = whole.iter().map(String::len).sum();
            prop_assert!(n_bytes <= text.len() + 2 * words.len(), "nothing is written twice");
        }
    }
}
