//! Calls of tools, told apart from the answer in what a model writes. Knows how models write them, and calls nothing.

#[cfg(feature = "forms")]
mod call_grammar;
mod offered;
mod parse;
mod pieces;
mod python;
mod splitter;
mod told;

use serde_json::{Map, Value};

use super::chat_template::ChatTemplate;
use super::reasoning::{END_OF_MESSAGE, MESSAGE_TO_A_FUNCTION};
use super::sampling::fresh_seed;
#[cfg(feature = "forms")]
pub use call_grammar::CallGrammar;
pub use offered::{ToolChoice, Tools};
pub use pieces::CallPiece;
pub use splitter::{Said, ToolSplitter};
pub use told::{Call, CallPart, CallTeller, Told};

/// A call that a model asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// The function's name, as the model wrote it.
    pub name: String,
    /// What it is called with.
    pub arguments: Map<String, Value>,
}

/// An id for a call: nine letters and digits, as Mistral's templates want them.
fn new_call_id() -> String {
    format!("{:08x}{:x}", fresh_seed(), fresh_seed() % 16)
}

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolFormat {
    /// What stands before calls; empty where an answer that begins with `{` is one.
    pub begin: &'static str,
    /// What stands between that and the first call.
    pub lead: &'static str,
    /// What stands behind them; `None` where they end the answer.
    pub end: Option<&'static str>,
    /// What is between the two.
    pub body: CallBody,
    /// Whether the chat template writes tools, calls and results; if not, messages have to say it.
    pub is_in_template: bool,
}

/// What calls look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallBody {
    /// An object with a name and arguments.
    Object,
    /// A list of such objects.
    List,
    /// `name[ARGS]{…}` (Mistral), or a list of objects.
    Named,
    /// `<function=name><parameter=key>value</parameter></function>` (Qwen3-Coder).
    Functions,
    /// The name, then `<arg_key>key</arg_key><arg_value>value</arg_value>` (GLM).
    Pairs,
    /// Each call between marks of its own, a mark between name and arguments (DeepSeek, Kimi).
    Sections {
        /// Before a call.
        begin: &'static str,
        /// Between its name and its arguments.
        separator: &'static str,
        /// Behind it.
        end: &'static str,
    },
    /// A list as Python writes it, `[name(key="value")]`, or one of objects (LFM2).
    Python,
    /// A message of its own to the function, as [`ReasoningSplitter::telling_calls`](super::ReasoningSplitter::telling_calls) tells it (gpt-oss).
    Message,
}

/// Formats by what is written in the chat templates that have them; the first that is found counts.
const FORMATS: [(&[&str], ToolFormat); 12] = [
    (&["<tool_call>", "<function="], between("<tool_call>", "\n", "</tool_call>", CallBody::Functions)),
    (&["<tool_call>", "<arg_key>"], between("<tool_call>", "", "</tool_call>", CallBody::Pairs)),
    (&["<tool_call>"], HERMES),
    (&["[TOOL_CALLS]"], to_the_end("[TOOL_CALLS]", CallBody::Named)),
    (&["<｜tool▁calls▁begin｜>"], between("<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>", DEEPSEEK)),
    (&["<|tool_calls_section_begin|>"], between("<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>", KIMI)),
    (&["<|START_ACTION|>"], between("<|START_ACTION|>", "", "<|END_ACTION|>", CallBody::List)),
    (&["<|tool_call|>", "<|/tool_call|>"], between("<|tool_call|>", "", "<|/tool_call|>", CallBody::List)),
    (&["<|tool_call|>"], to_the_end("<|tool_call|>", CallBody::List)),
    (&["<|tool_call_start|>"], between("<|tool_call_start|>", "", "<|tool_call_end|>", CallBody::Python)),
    (&["<|channel|>", "functions."], between(MESSAGE_TO_A_FUNCTION, "", END_OF_MESSAGE, CallBody::Message)),
    (&["tools", "\"parameters\""], to_the_end("", CallBody::Object)),
];

const DEEPSEEK: CallBody =
    CallBody::Sections { begin: "<｜tool▁call▁begin｜>", separator: "<｜tool▁sep｜>", end: "<｜tool▁call▁end｜>" };
const KIMI: CallBody =
    CallBody::Sections { begin: "<|tool_call_begin|>", separator: "<|tool_call_argument_begin|>", end: "<|tool_call_end|>" };

/// The form of Hermes and Qwen, which is also asked of models whose templates know no tools.
const HERMES: ToolFormat = between("<tool_call>", "\n", "</tool_call>", CallBody::Object);

const fn between(begin: &'static str, lead: &'static str, end: &'static str, body: CallBody) -> ToolFormat {
    ToolFormat { begin, lead, end: Some(end), body, is_in_template: true }
}

const fn to_the_end(begin: &'static str, body: CallBody) -> ToolFormat {
    ToolFormat { begin, lead: "", end: None, body, is_in_template: true }
}

impl ToolFormat {
    /// The format of a model with that chat template; `None` where the template writes tools in a way that is not known.
    pub fn of(template: &ChatTemplate) -> Option<ToolFormat> {
        let has = |mark: &&str| template.mentions(mark);
        match FORMATS.iter().find(|(marks, _)| marks.iter().all(has)) {
            Some((_, format)) => Some(*format),
            None if template.mentions("tools") => None,
            None => Some(ToolFormat { is_in_template: false, ..HERMES }),
        }
    }

    /// What an object calls the function's name and its arguments.
    pub fn keys(&self) -> [&'static str; 2] {
        match self.begin {
            "" => ["name", "parameters"],
            "<|START_ACTION|>" => ["tool_name", "parameters"],
            _ => ["name", "arguments"],
        }
    }

    /// All texts that set calls apart, which may be special tokens.
    fn marks(&self) -> Vec<&'static str> {
        let inner = match self.body {
            CallBody::Object if self.begin.is_empty() => vec![PYTHON_TAG],
            CallBody::Object | CallBody::List | CallBody::Python => Vec::new(),
            // What splits channels spells these.
            CallBody::Message => return Vec::new(),
            CallBody::Named => vec!["[ARGS]", "[CALL_ID]"],
            CallBody::Functions => vec!["</function>", "</parameter>"],
            CallBody::Pairs => vec!["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
            CallBody::Sections { begin, separator, end } => vec![begin, separator, end],
        };
        [self.begin].into_iter().chain(self.end).chain(inner).filter(|mark| !mark.is_empty()).collect()
    }
}

/// What Llama may write before a call.
const PYTHON_TAG: &str = "<|python_tag|>";
