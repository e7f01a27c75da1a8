//! Chat templates: messages become the text that the model was trained on. Knows no tokens but the texts of those that have names.

use std::time::Duration;

use minijinja::value::Value as JinjaValue;
use serde_json::Value;

use super::chat_message::{ChatMessage, TemplateInput};
use super::files::{self, MAX_TOKENIZER_CONFIG_BYTES, text_error};
use super::template_environment::{self, Limits};
use super::template_json::Capped;
use super::template_source::{self, MAX_SOURCE_BYTES};
use super::tokenizer::{TemplateTokens, Tokenizer};
use crate::error::{Error, Remedy, Result};
use crate::model::{Checkpoint, Format};
use crate::platform::Folder;
use crate::platform::limited::{Unfinished, run_limited};
use crate::weights::Metadata;

/// A model's chat template. It is untrusted input: rendering is limited in time, memory and length.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    /// Where it came from, for messages.
    path: String,
    source: String,
    /// The one called `tool_use`, which takes the place of the other where tools are given.
    with_tools: Option<String>,
    tokens: TemplateTokens,
}

/// Whether the text ends with the words that make the model answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model's turn is next.
    Add,
    /// It does not.
    Leave,
}

/// Where transformers keeps templates that have names.
const ADDITIONAL: &str = "additional_chat_templates";
/// What it calls the one for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// Enough for the deepest syntax tree that the limits on sources allow; only what is used of it is real memory.
const STACK_BYTES: usize = 64 << 20;

impl ChatTemplate {
    /// The template of `checkpoint`, if it has one: `chat_template.jinja`, `chat_template` of `tokenizer_config.json` or of
    /// `chat_template.json`, or `tokenizer.chat_template` of a GGUF file. Refuses one that does not compile.
    pub fn open(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        match (&checkpoint.format, &checkpoint.metadata) {
            (Format::HuggingFace { folder }, _) => ChatTemplate::from_folder(folder, tokenizer),
            (Format::Gguf, Some(metadata)) => ChatTemplate::from_metadata(metadata, tokenizer),
            (Format::Gguf, None) => Ok(None),
        }
    }

    /// The template in a Hugging Face folder, and beside it the one called `tool_use`.
    pub fn from_folder(folder: impl Into<Folder>, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let folder = folder.into();
        let read = |name: &str| {
            let bytes = files::read_optional(&folder, name, MAX_SOURCE_BYTES as u64)?;
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| text_error(folder.path_of(name), "is not UTF-8"));
            bytes.map(text).transpose()
        };
        if let Some(source) = read("chat_template.jinja")? {
            let template = ChatTemplate::new(folder.path_of("chat_template.jinja"), source, tokenizer)?;
            return Ok(Some(ChatTemplate { with_tools: read(&format!("{ADDITIONAL}/{TOOL_USE}.jinja"))?, ..template }));
        }
        // The second is what older processors of transformers wrote.
        let entry = |name: &str| {
            let fields = files::read_fields(&folder, name, MAX_TOKENIZER_CONFIG_BYTES)?;
            let entry = fields.and_then(|mut fields| fields.remove("chat_template")).filter(|entry| !entry.is_null());
            Ok::<_, Error>(entry.map(|entry| (folder.path_of(name), entry)))
        };
        let of_config = entry("tokenizer_config.json")?;
        let Some((path, entry)) = of_config.map_or_else(|| entry("chat_template.json"), |found| Ok(Some(found)))? else {
            let names = additional_templates(&folder);
            if !names.is_empty() {
                warn_of_no_default(&folder.path_of(ADDITIONAL), &names);
            }
            return Ok(None);
        };
        let Some(source) = default_template(&path, &entry) else { return Ok(None) };
        let template = ChatTemplate::new(path, source, tokenizer)?;
        Ok(Some(ChatTemplate { with_tools: named_template(&entry, TOOL_USE), ..template }))
    }

    /// The template in a GGUF file's metadata, and beside it the one called `tool_use`.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let Some(source) = metadata.string("tokenizer.chat_template")? else { return Ok(None) };
        let template = ChatTemplate::new(metadata.path.clone(), source.to_owned(), tokenizer)?;
        let with_tools = metadata.string(&format!("tokenizer.chat_template.{TOOL_USE}"))?.map(str::to_owned);
        Ok(Some(ChatTemplate { with_tools, ..template }))
    }

    /// A template given as text; `path` says in messages where it came from. Refuses one that does not compile.
    pub fn new(path: String, source: String, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let template = ChatTemplate { path, source, with_tools: None, tokens: tokenizer.template_tokens().clone() };
        let source = template.source.clone();
        let limits = Limits::new(0);
        template
            .limited(limits.time, move || template_source::prepare(&source).and_then(|prepared| compile(prepared, limits).map(|_| ())))?;
        Ok(template)
    }

    /// The text of `messages`. It carries BOS where the template has one: encode it with [`super::Special::Leave`].
    ///
    /// # Errors
    /// [`Error::Text`] where the template refuses the messages or fails, [`Error::InvalidArgument`] where they are too long.
    pub fn render(&self, messages: &[ChatMessage], prompt: GenerationPrompt) -> Result<String> {
        self.render_with(messages, &TemplateInput::default(), prompt)
    }

    /// As [`ChatTemplate::render`], with tools and whatever else the template may know.
    ///
    /// # Errors
    /// As of [`ChatTemplate::render`].
    pub fn render_with(&self, messages: &[ChatMessage], input: &TemplateInput, prompt: GenerationPrompt) -> Result<String> {
        let tokens = self.tokens.0.iter().map(|(name, text)| (name.clone(), JinjaValue::from(text.as_str())));
        let given = [
            ("messages", messages.iter().map(ChatMessage::to_value).collect()),
            ("add_generation_prompt", JinjaValue::from(prompt == GenerationPrompt::Add)),
        ];
        let given = given.map(|(name, value)| (name.to_owned(), value));
        let context = JinjaValue::from_pairs(tokens.chain(input.to_values()).chain(given));
        let bytes = messages.iter().map(ChatMessage::n_bytes).sum::<usize>() + input.n_bytes();
        let limits = Limits::new(bytes);
        if bytes > limits.output {
            let reason = format!(
                "the conversation has {bytes} bytes, more than the {} that a chat template may print; shorten the prompt",
                limits.output
            );
            return Err(Error::InvalidArgument { option: "the prompt".into(), reason });
        }
        // As transformers' `get_chat_template` chooses.
        let source = self.with_tools.as_ref().filter(|_| input.tools.is_some()).unwrap_or(&self.source).clone();
        self.limited(limits.time, move || {
            let environment = compile(template_source::prepare(&source)?, limits)?;
            let template = environment.get_template("chat").map_err(|error| describe(&error))?;
            let mut output = Capped::new(limits.output);
            template.render_captured_to(context, &mut output).map_err(|error| describe(&error))?;
            String::from_utf8(output.bytes).map_err(|error| error.to_string())
        })
    }

    /// Whether `mark` is written in it, or in the one for conversations with tools.
    pub fn mentions(&self, mark: &str) -> bool {
        [Some(&self.source), self.with_tools.as_ref()].into_iter().flatten().any(|source| source.contains(mark))
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Does `work` on a thread with limits.
    fn limited<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
    ) -> Result<T> {
        // The rendering ends itself at its limit; this is for what it cannot interrupt.
        let done = run_limited("the chat template", STACK_BYTES, time * 2, work);
        let reason = match done {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(reason)) => reason,
            Err(Unfinished::TimedOut) => "it takes too long".to_owned(),
            Err(Unfinished::Panicked) => "the template engine panicked".to_owned(),
            Err(Unfinished::NotStarted(error)) => return Err(error),
        };
        Err(self.error(&reason))
    }

    fn error(&self, reason: &str) -> Error {
        let reason = format!("its chat template cannot be used: {reason}");
        Error::Text { path: self.path.clone(), reason, advice: [Remedy::raw_prompt()].into() }
    }
}

fn compile(prepared: template_source::Prepared, limits: Limits) -> std::result::Result<minijinja::Environment<'static>, String> {
    template_environment::environment(prepared, limits).map_err(|error| describe(&error))
}

/// The engine's error on one line, with what caused it.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// The template that `entry` is: itself, or the one called `default` of a list or an object of them.
fn default_template(path: &str, entry: &Value) -> Option<String> {
    if let Value::String(source) = entry {
        return Some(source.clone());
    }
    let source = named_template(entry, "default");
    if source.is_none() {
        let names: Vec<&str> = match entry {
            Value::Object(named) => named.keys().map(String::as_str).collect(),
            Value::Array(list) => list.iter().filter_map(|entry| entry.get("name").and_then(Value::as_str)).collect(),
            _ => Vec::new(),
        };
        warn_of_no_default(path, &names);
    }
    source
}

/// The template called `name` of a list or an object of them.
fn named_template(entry: &Value, name: &str) -> Option<String> {
    let found = match entry {
        Value::Object(named) => named.get(name),
        Value::Array(list) => {
            list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name)).and_then(|entry| entry.get("template"))
        }
        _ => None,
    };
    found.and_then(Value::as_str).map(str::to_owned)
}

fn warn_of_no_default(path: &str, names: &[impl AsRef<str>]) {
    let names = names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    tracing::warn!("{path}: none of its chat templates ({names}) is called default, so that none is used");
}

/// The names of the templates that transformers keeps beside the default one.
fn additional_templates(folder: &Folder) -> Vec<String> {
    let files = match folder {
        Folder::Path(path) => Folder::Path(path.join(ADDITIONAL)).names_with("jinja"),
        Folder::Sources(_) => folder.names_with("jinja"),
    };
    let prefix = format!("{ADDITIONAL}/");
    let is_there = |name: &String| matches!(folder, Folder::Path(_)) || name.starts_with(&prefix);
    let files = files.unwrap_or_default().into_iter().filter(is_there);
    files.map(|name| name.trim_start_matches(&prefix).trim_end_matches(".jinja").to_owned()).collect()
}
