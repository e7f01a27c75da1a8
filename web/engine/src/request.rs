//! What is asked of a loaded model, and the prompt that it becomes.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tierflow::text::{
    Constraint, FormVocabulary, FormWish, ReasoningFormat, ReasoningSplitter, SamplingFlags, Special, TemplateInput, Tokenizer,
    ToolSplitter, Tools, Written, thinking_variables,
};
use tierflow::{ChatMessage, Engine, Error, SamplingSettings};

use crate::error::invalid;
use crate::fields::Fields;
use crate::held::{ToolWish, constraint_of_calls, constraint_of_form, take_form};

/// A mark that begins reasoning, with the white space behind it, has at most so many tokens.
const MARK_TOKENS: usize = 12;

/// What to answer, and how.
#[derive(Debug)]
pub struct Request {
    /// A conversation.
    messages: Option<Vec<ChatMessage>>,
    /// A message of the user, or with `raw` a text to continue.
    prompt: Option<String>,
    /// The prompt goes to the model as it is.
    raw: bool,
    /// The last message is the beginning of the answer.
    continue_final_message: bool,
    pub max_tokens: Option<usize>,
    flags: SamplingFlags,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    /// Tells how likely each token was, and so many others.
    pub logprobs: Option<usize>,
    form: Option<FormWish>,
    tools: ToolWish,
}

/// A prompt, and what tells reasoning, answer and calls apart in what follows it.
pub struct Asked {
    pub prompt: Vec<u32>,
    pub splitter: ReasoningSplitter,
    pub calls: Option<ToolSplitter>,
    /// The rules that the answer is held to.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl Request {
    pub fn read(text: &str) -> Result<Request, Error> {
        let mut fields = Fields::of("request", text)?;
        let (number, count) = ("a number", "a whole number from 0 on");
        let flags = SamplingFlags {
            temperature: fields.take("temperature", number)?,
            top_k: fields.take("top_k", count)?,
            top_p: fields.take("top_p", number)?,
            min_p: fields.take("min_p", number)?,
            repeat_penalty: fields.take("repeat_penalty", number)?,
            repeat_last_n: fields.take("repeat_last_n", count)?,
            presence_penalty: fields.take("presence_penalty", number)?,
            frequency_penalty: fields.take("frequency_penalty", number)?,
            logit_bias: fields.take::<BTreeMap<u32, f32>>("logit_bias", "numbers by token")?.unwrap_or_default(),
            ..SamplingFlags::default()
        };
        let request = Request {
            messages: fields.take("messages", "a list of messages, each with a role and a content")?,
            prompt: fields.take("prompt", "a text")?,
            raw: fields.take("raw", "true or false")?.unwrap_or_default(),
            continue_final_message: fields.take("continue_final_message", "true or false")?.unwrap_or_default(),
            max_tokens: fields.take("max_tokens", count)?,
            flags,
            seed: fields.take("seed", count)?,
            stop: fields.take("stop", "a list of texts")?.unwrap_or_default(),
            logprobs: fields.take("logprobs", count)?,
            form: take_form(&mut fields)?,
            tools: ToolWish::take(&mut fields)?,
        };
        fields.finish()?;
        // What the page makes of parts is one text.
        let is_text = |message: &ChatMessage| message.fields().get("content").is_some_and(Value::is_string);
        if !request.messages.iter().flatten().all(is_text) {
            return Err(invalid("messages", "give a list of messages, each with a role and a content that is a text"));
        }
        Ok(request)
    }

    /// The model's own settings, over them what the request says.
    pub fn sampling(&self, engine: &Engine) -> Result<SamplingSettings, Error> {
        SamplingSettings::merged(engine.defaults(), &self.flags)
    }

    /// What is asked: through the chat template, or as it is with `raw` or where the model has no template. `forms` is made of the engine's
    /// vocabulary once one is needed.
    pub fn asked(&self, forms: &OnceCell<FormVocabulary>, engine: &Engine) -> Result<Asked, Error> {
        let tools = self.tools.offered(engine)?;
        let vocabulary = || forms.get_or_init(|| FormVocabulary::new(engine.tokenizer().cloned()));
        // A prompt as it is has no channels.
        let is_raw = self.raw || engine.chat_template().is_none();
        let reasoning = engine.text().reasoning_format().filter(|_| !is_raw);
        let constraint = match (&self.form, &tools) {
            (None, None) => None,
            (Some(form), None) => Some(constraint_of_form(form, vocabulary(), reasoning)?),
            (None, Some(tools)) => constraint_of_calls(tools, vocabulary(), engine)?,
            (Some(_), Some(_)) => return Err(invalid("tools", "cannot be combined with a form of the answer")),
        };
        let calls = tools.as_ref().map(|tools| ToolSplitter::new(tools.format, tools.list.clone(), engine.tokenizer()));
        // What is held to the rules of calls is sure to become one.
        let calls = if constraint.is_some() { calls.map(ToolSplitter::telling_pieces) } else { calls };
        // What has a form is all answer, even where the template has opened the reasoning, unless the model thinks beside it, in a channel.
        let in_channels = reasoning == Some(ReasoningFormat::Channels);
        let is_held = !in_channels && (self.form.is_some() || tools.as_ref().is_some_and(Tools::is_demanded));
        let (prompt, splitter) = self.prompt(engine, tools.as_ref(), is_held)?;
        let splitter = if is_held { ReasoningSplitter::new(None) } else { splitter };
        let splitter = if tools.is_some() { splitter.telling_calls() } else { splitter };
        Ok(Asked { prompt, splitter, calls, constraint })
    }

    fn prompt(&self, engine: &Engine, tools: Option<&Tools>, is_held: bool) -> Result<(Vec<u32>, ReasoningSplitter), Error> {
        let messages = match (&self.messages, &self.prompt) {
            (Some(messages), None) => messages.clone(),
            (None, Some(prompt)) => vec![ChatMessage::new("user", prompt)],
            _ => return Err(invalid("request", "needs either messages or a prompt")),
        };
        if self.raw || engine.chat_template().is_none() {
            let texts: Vec<Cow<'_, str>> = messages.iter().map(ChatMessage::text).collect();
            return Ok((engine.encode(&texts.join("\n"))?, ReasoningSplitter::new(None)));
        }
        if self.continue_final_message {
            return continued(engine, &messages);
        }
        let (messages, tools) = match tools {
            Some(tools) if !tools.format.is_in_template => (tools.written_out(&messages), None),
            tools => (messages, tools.map(|tools| tools.list.clone())),
        };
        let variables = if is_held { thinking_variables(false, None) } else { Map::new() };
        let input = TemplateInput { tools, variables, ..TemplateInput::default() };
        let prompt = engine.encode_chat_with(&messages, &input, Written::Parsed)?;
        let splitter = engine.text().reasoning_splitter(&prompt);
        Ok((prompt, splitter))
    }
}

/// The conversation before its last message, and behind it what that has of the answer so far: what was thought, and what was said.
fn continued(engine: &Engine, messages: &[ChatMessage]) -> Result<(Vec<u32>, ReasoningSplitter), Error> {
    let refused = |reason: &str| Err(invalid("continue_final_message", reason));
    let Some((last, before)) = messages.split_last().filter(|(last, _)| last.role() == "assistant") else {
        return refused("the last message is not one of the assistant's");
    };
    let Some(tokenizer) = engine.text().tokenizer() else { return refused("the model has no tokenizer") };
    let thought = last.fields().get("reasoning_content").and_then(Value::as_str).unwrap_or_default();
    let said = last.text();
    let mut prompt = engine.encode_chat(before)?;
    let (mut text, mut splitter) = (String::new(), ReasoningSplitter::new(None));
    match engine.text().reasoning_format() {
        Some(ReasoningFormat::Tags { begin, end }) => {
            let is_open = has_opened(tokenizer, &prompt, begin);
            if !is_open && !thought.is_empty() {
                prompt.extend(tokenizer.encode(begin, Special::Leave)?);
            }
            if said.is_empty() {
                splitter = engine.text().reasoning_splitter(&prompt);
            }
            text.push_str(thought);
            if !said.is_empty() && (is_open || !thought.is_empty()) {
                text.push_str(&format!("\n{end}\n\n"));
            }
        }
        Some(ReasoningFormat::Channels) => return refused("an answer in channels cannot be gone on with; ask for it anew"),
        None => {}
    }
    text.push_str(&said);
    prompt.extend(tokenizer.encode(&text, Special::Leave)?);
    Ok((prompt, splitter))
}

/// Whether the chat template has begun the reasoning already, at the end of `prompt`.
fn has_opened(tokenizer: &Tokenizer, prompt: &[u32], begin: &str) -> bool {
    let tail = &prompt[prompt.len().saturating_sub(MARK_TOKENS)..];
    let is_token = tokenizer.token_id(begin).is_some_and(|mark| tail.contains(&mark));
    is_token || tokenizer.decode(tail).trim_end().ends_with(begin)
}
