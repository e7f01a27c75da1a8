//! What requests of Ollama's API may say. Fields and options that are not known are passed over, as in Ollama, whose clients send many that
//! are of no account; those that would change the answer, and are known, are refused.

use serde_json::Value;

use crate::server::app::App;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, is_nothing};
use crate::server::grammar::Grammar;
use crate::server::messages::{encode, form_variables, read_messages, splits_reasoning};
use crate::server::tools;
use crate::server::work::{How, Work, read_logprobs};
use crate::session::GenerateOptions;
use crate::text::{ChatMessage, SamplingFlags, Written, thinking_variables};

/// A request for an answer.
pub(super) struct Asked {
    /// `None` where there is nothing to answer.
    pub(super) work: Option<Work>,
    pub(super) is_streamed: bool,
    /// The model as it was asked for.
    pub(super) name: Option<String>,
}

/// Reads `/api/chat`.
pub(super) fn read_chat(app: &App, fields: &mut Fields) -> Result<Asked, ApiError> {
    let list = fields.list("messages")?.unwrap_or_default();
    let messages = list.into_iter().map(renamed).collect::<Result<Vec<Value>, ApiError>>()?;
    let messages = if messages.is_empty() { Vec::new() } else { read_messages(app, messages)? };
    let tools = tools::offered(app, fields.list("tools")?.unwrap_or_default(), None, false)?;
    let mut asked = read_rest(app, fields, false, |app, variables| match messages.as_slice() {
        [] => Ok(None),
        messages => encode(app, messages, variables, tools.as_ref()).map(Some),
    })?;
    if let Some(work) = &mut asked.work {
        work.how.offer(app, tools)?;
    }
    Ok(asked)
}

/// Reads `/api/generate`.
pub(super) fn read_generate(app: &App, fields: &mut Fields) -> Result<Asked, ApiError> {
    let prompt = fields.text("prompt")?.filter(|prompt| !prompt.is_empty());
    let system = fields.text("system")?.filter(|system| !system.is_empty());
    let is_raw = fields.flag("raw")?.unwrap_or(false);
    for name in ["suffix", "template", "context", "images"] {
        fields.only(name, is_nothing, "is not supported")?;
    }
    let is_raw = is_raw || app.engine.chat_template().is_none();
    read_rest(app, fields, is_raw, |app, variables| {
        let Some(prompt) = prompt else { return Ok(None) };
        if is_raw {
            return Ok(Some(app.engine.text().encode(&prompt, Written::Parsed)?));
        }
        let system = system.map(|system| ChatMessage::new("system", system));
        let messages: Vec<ChatMessage> = system.into_iter().chain([ChatMessage::new("user", prompt)]).collect();
        encode(app, &messages, variables, None).map(Some)
    })
}

/// A message with its fields under OpenAI's names.
fn renamed(mut message: Value) -> Result<Value, ApiError> {
    if let Some(fields) = message.as_object_mut() {
        if fields.shift_remove("images").is_some_and(|images| !is_nothing(&images)) {
            return Err(ApiError::unsupported("messages.images", "is not supported; the model reads text alone"));
        }
        for (own, other) in [("thinking", "reasoning_content"), ("tool_name", "name")] {
            if let Some(value) = fields.shift_remove(own) {
                fields.insert(other.to_owned(), value);
            }
        }
    }
    Ok(message)
}

/// What both kinds of requests may say. `encode` makes the prompt of it, with the variables of the chat template; what `is_raw` is no conversation.
fn read_rest(
    app: &App,
    fields: &mut Fields,
    is_raw: bool,
    encode: impl FnOnce(&App, serde_json::Map<String, Value>) -> Result<Option<Vec<u32>>, ApiError>,
) -> Result<Asked, ApiError> {
    let loras = app.read_loras(fields)?;
    let name = app.read_model(fields)?;
    let is_streamed = fields.flag("stream")?.unwrap_or(true);
    let think = fields.value("think");
    let variables = match &think {
        None => serde_json::Map::new(),
        Some(Value::Bool(is_on)) => thinking_variables(*is_on, None),
        Some(Value::String(effort)) if ["low", "medium", "high"].contains(&effort.as_str()) => thinking_variables(true, Some(effort)),
        Some(_) => return Err(ApiError::field("think", "must be true, false, low, medium or high")),
    };
    let grammar = match fields.value("format").filter(|format| !is_nothing(format)) {
        None => None,
        Some(Value::String(form)) if form == "json" => Some(Grammar::of_object(app, "format")?),
        Some(Value::String(_)) => return Err(ApiError::field("format", "must be json or a schema")),
        Some(schema) => Some(Grammar::of_schema(app, "format", schema)?),
    };
    let variables = if grammar.is_some() { form_variables(app, variables) } else { variables };
    let n_logprobs = read_logprobs(fields, "logprobs", "top_logprobs")?;
    let mut how = match fields.value("options") {
        Some(options) => read_options(app, Fields::of_value(options, "options")?)?,
        None => How::checked(app, 1, &SamplingFlags::default(), None, GenerateOptions::default())?,
    };
    let has_form = grammar.is_some();
    let splits_reasoning = if is_raw { !has_form } else { splits_reasoning(app, has_form) };
    how.grammar = match grammar {
        Some(grammar) if !is_raw => Some(grammar.in_conversation(app, "format")?),
        grammar => grammar,
    };
    how.loras = loras;
    how.options.n_logprobs = n_logprobs;
    fields.ignore_rest();
    let work = encode(app, variables)?.map(|prompt| Work::new(app, vec![prompt], how, splits_reasoning)).transpose()?;
    Ok(Asked { work, is_streamed, name })
}

fn read_options(app: &App, mut fields: Fields) -> Result<How, ApiError> {
    let n_ctx = app.engine.plan().ctx_size;
    if let Some(asked) = fields.count("num_ctx")?.filter(|asked| *asked as usize > n_ctx) {
        return Err(ApiError::field("options.num_ctx", format!("is {asked}, and the context of this server holds {n_ctx}")));
    }
    let max_tokens = match fields.integer("num_predict")? {
        None | Some(-2 | -1) => None,
        Some(most) => match usize::try_from(most) {
            Ok(most) => Some(most),
            Err(_) => return Err(ApiError::field("options.num_predict", "must be -1 or more")),
        },
    };
    let repeat_last_n = match fields.integer("repeat_last_n")? {
        None => None,
        Some(-1) => Some(u32::MAX),
        Some(last) => Some(u32::try_from(last).map_err(|_| ApiError::field("options.repeat_last_n", "must be -1 or more"))?),
    };
    let flags = SamplingFlags {
        temperature: fields.number("temperature")?,
        top_k: fields.integer("top_k")?.map(|top_k| u32::try_from(top_k).unwrap_or_default()),
        top_p: fields.number("top_p")?,
        min_p: fields.number("min_p")?,
        repeat_penalty: fields.number("repeat_penalty")?,
        presence_penalty: fields.number("presence_penalty")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        repeat_last_n,
        ..SamplingFlags::default()
    };
    fields.only("mirostat", is_nothing, "is not supported")?;
    for name in ["tfs_z", "typical_p"] {
        fields.only(name, |value| value.as_f64() == Some(1.0), "is not supported")?;
    }
    let options = GenerateOptions { max_tokens, stop: fields.texts("stop")?.unwrap_or_default(), ..GenerateOptions::default() };
    let seed = fields.integer("seed")?;
    How::checked(app, 1, &flags, seed, options)
}
