//! What requests of OpenAI's API may say. A field that would change the answer and is not supported is refused; one that changes nothing here
//! is taken.

use serde_json::{Map, Value};

use crate::server::app::App;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, is_nothing};
use crate::server::grammar::Grammar;
use crate::server::messages::{self, effort_variables, encode, read_messages};
use crate::server::tools;
use crate::server::work::{How, MAX_ANSWERS, Work, checked_logprobs, read_logprobs, read_prompts};
use crate::text::{Tools, Written};

/// A request for answers.
pub(super) struct Asked {
    pub(super) work: Work,
    pub(super) is_streamed: bool,
    /// Whether a stream ends with what it took.
    pub(super) includes_usage: bool,
}

/// Fields for OpenAI's own bookkeeping and speed, which change no answer.
const HARMLESS: [&str; 9] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "prediction",
    "cache_prompt",
];

/// Reads `/v1/chat/completions`.
pub(super) fn read_chat(app: &App, fields: &mut Fields) -> Result<Asked, ApiError> {
    let list = fields.list("messages")?.ok_or_else(|| ApiError::field("messages", "is missing"))?;
    let messages = read_messages(app, list)?;
    let variables = template_variables(fields)?;
    let grammar = read_form(app, fields)?;
    let tools = tools::read(app, fields)?;
    for name in ["functions", "web_search_options", "audio"] {
        fields.only(name, is_nothing, "is not supported")?;
    }
    fields.only("function_call", |choice| choice == "none" || choice == "auto", "is not supported; tool_choice is")?;
    fields.only("modalities", |kinds| *kinds == serde_json::json!(["text"]), "only text is supported")?;
    fields.only("verbosity", |how| how == "medium", "is not supported")?;
    let n_logprobs = read_logprobs(fields, "logprobs", "top_logprobs")?;
    let mut common = Common::read(app, fields)?;
    common.how.options.n_logprobs = n_logprobs;
    let is_demanded = tools.as_ref().is_some_and(Tools::is_demanded);
    let has_form = grammar.is_some() || is_demanded;
    let variables = if has_form { messages::form_variables(app, variables) } else { variables };
    common.how.grammar = grammar.map(|grammar| grammar.in_conversation(app, "response_format or grammar")).transpose()?;
    let splits_reasoning = messages::splits_reasoning(app, has_form);
    let prompt = encode(app, &messages, variables, tools.as_ref())?;
    common.how.offer(app, tools)?;
    common.asked(app, vec![prompt], splits_reasoning)
}

/// The form that a request asks for.
fn read_form(app: &App, fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let format = fields.value("response_format").map(|format| read_format(app, format)).transpose()?.flatten();
    Grammar::one_of(format.into_iter().chain(Grammar::of_fields(app, fields)?).collect())
}

/// The form that `response_format` asks for.
fn read_format(app: &App, format: Value) -> Result<Option<Grammar>, ApiError> {
    let mut format = Fields::of_value(format, "response_format")?;
    let grammar = Grammar::of_format(app, &mut format, "response_format", |format| {
        let schema = format.value("json_schema").ok_or_else(|| ApiError::field("response_format.json_schema", "is missing"))?;
        let mut named = Fields::of_value(schema, "response_format.json_schema")?;
        let schema = named.value("schema").unwrap_or_else(|| serde_json::json!({ "type": "object" }));
        named.ignore(&["name", "description", "strict"]);
        named.finish()?;
        Ok(("response_format.json_schema.schema", schema))
    })?;
    format.finish()?;
    Ok(grammar)
}

/// Reads `/v1/completions`.
pub(super) fn read_completion(app: &App, fields: &mut Fields) -> Result<Asked, ApiError> {
    let encode = |text: &str| Ok(app.engine.text().encode(text, Written::Parsed)?);
    let prompts = read_prompts(fields, ("prompt", "prompts"), MAX_ANSWERS, encode)?;
    fields.only("suffix", is_nothing, "is not supported")?;
    fields.only("echo", is_nothing, "is not supported")?;
    let n_logprobs = fields.count("logprobs")?.map(|n_top| checked_logprobs("logprobs", n_top)).transpose()?;
    let grammar = read_form(app, fields)?;
    let mut common = Common::read(app, fields)?;
    common.how.options.n_logprobs = n_logprobs;
    common.how.grammar = grammar;
    common.asked(app, prompts, false)
}

/// What the chat template is told beside the messages: `reasoning_effort`, and vLLM's and llama.cpp's `chat_template_kwargs`.
fn template_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = effort_variables(fields, "reasoning_effort")?;
    variables.extend(fields.object("chat_template_kwargs")?.unwrap_or_default());
    for name in ["messages", "tools", "documents", "add_generation_prompt"] {
        variables.shift_remove(name);
    }
    Ok(variables)
}

/// What both kinds of requests may say.
struct Common {
    how: How,
    is_streamed: bool,
    includes_usage: bool,
}

impl Common {
    fn read(app: &App, fields: &mut Fields) -> Result<Common, ApiError> {
        let loras = app.read_loras(fields)?;
        app.read_model(fields)?;
        let is_streamed = fields.flag("stream")?.unwrap_or(false);
        let mut includes_usage = false;
        if let Some(options) = fields.value("stream_options") {
            let mut options = Fields::of_value(options, "stream_options")?;
            includes_usage = options.flag("include_usage")?.unwrap_or(false);
            options.ignore(&["include_obfuscation"]);
            options.finish()?;
        }
        fields.only("store", is_nothing, "nothing is stored here")?;
        let how = How { loras, ..How::read(app, fields)? };
        let n_answers = how.n_answers as u64;
        fields.only("best_of", |best_of| best_of.as_u64() == Some(n_answers), "must be n")?;
        fields.ignore(&HARMLESS);
        Ok(Common { how, is_streamed, includes_usage })
    }

    fn asked(self, app: &App, prompts: Vec<Vec<u32>>, splits_reasoning: bool) -> Result<Asked, ApiError> {
        let work = Work::new(app, prompts, self.how, splits_reasoning)?;
        Ok(Asked { work, is_streamed: self.is_streamed, includes_usage: self.includes_usage })
    }
}
