//! What requests may say. A field that would change the answer and is not supported is refused.

use serde_json::{Map, Value, json};

use crate::server::app::App;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, is_nothing};
use crate::server::grammar::Grammar;
use crate::server::messages::{effort_variables, encode, form_variables, read_messages, splits_reasoning};
use crate::server::tools;
use crate::server::work::{How, Work, sampling_flags};
use crate::session::GenerateOptions;
use crate::text::{SamplingSettings, Tools};

/// A request for an answer.
pub(super) struct Asked {
    pub(super) work: Work,
    pub(super) is_streamed: bool,
    /// What the response repeats of the request.
    pub(super) echo: Map<String, Value>,
}

/// Fields that a response repeats.
const ECHOED: [&str; 11] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "text",
    "tool_choice",
    "tools",
    "user",
];

/// Fields that change no answer here: `store`, since nothing is.
const HARMLESS: [&str; 8] =
    ["metadata", "user", "store", "include", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// What a response says of a tool where the request said nothing.
const TOOL_DEFAULTS: [&str; 3] = ["description", "parameters", "strict"];

/// Reads `/v1/responses`.
pub(super) fn read(app: &App, fields: &mut Fields) -> Result<Asked, ApiError> {
    let mut echo = fields.copies(&ECHOED);
    let loras = app.read_loras(fields)?;
    app.read_model(fields)?;
    let instructions = fields.text("instructions")?.map(|text| json!({ "role": "system", "content": text }));
    let input = fields.value("input").ok_or_else(|| ApiError::field("input", "is missing"))?;
    let list: Vec<Value> = instructions.into_iter().chain(read_input(input)?).collect();
    let messages = read_messages(app, list)?;
    let tools = read_tools(app, fields)?;
    let grammar = read_text(app, fields)?;
    let mut variables = read_reasoning(fields)?;
    let is_demanded = tools.as_ref().is_some_and(Tools::is_demanded);
    let has_form = grammar.is_some() || is_demanded;
    if has_form {
        variables = form_variables(app, variables);
    }
    let flags = sampling_flags(app, fields)?;
    let max_tokens = fields.count("max_output_tokens")?.map(|most| most as usize);
    let is_streamed = fields.flag("stream")?.unwrap_or(false);
    for name in ["previous_response_id", "conversation", "prompt", "background", "top_logprobs", "max_tool_calls", "stream_options"] {
        fields.only(name, is_nothing, "is not supported; nothing is stored here")?;
    }
    fields.only("truncation", |how| how == "disabled", "is not supported")?;
    fields.ignore(&HARMLESS);
    let mut how = How::checked(app, 1, &flags, None, GenerateOptions { max_tokens, ..GenerateOptions::default() })?;
    complete(&mut echo, &how.sampling);
    how.grammar = grammar.map(|grammar| grammar.in_conversation(app, "text.format")).transpose()?;
    how.loras = loras;
    let splits_reasoning = splits_reasoning(app, has_form);
    let prompt = encode(app, &messages, variables, tools.as_ref())?;
    how.offer(app, tools)?;
    Ok(Asked { work: Work::new(app, vec![prompt], how, splits_reasoning)?, is_streamed, echo })
}

/// Adds to what is repeated how tokens are chosen, and what is missing in tools.
fn complete(echo: &mut Map<String, Value>, sampling: &SamplingSettings) {
    let numbers = [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ];
    // As decimals, not as what the nearest f32 is in f64.
    let decimal = |number: f32| number.to_string().parse().unwrap_or(f64::from(number));
    echo.extend(numbers.map(|(name, number)| (name.to_owned(), decimal(number).into())));
    let tools = echo.get_mut("tools").and_then(Value::as_array_mut).into_iter().flatten();
    for tool in tools.filter_map(Value::as_object_mut) {
        for name in TOOL_DEFAULTS {
            tool.entry(name).or_insert(Value::Null);
        }
    }
}

/// The messages of `input`, a text or items, in the form of chat completions.
fn read_input(input: Value) -> Result<Vec<Value>, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(vec![json!({ "role": "user", "content": text })]),
        Value::Array(items) => items,
        _ => return Err(ApiError::field("input", "must be a text or a list of items")),
    };
    let mut messages: Vec<Value> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("input[{index}]");
        let mut fields = Fields::of_value(item, &path)?;
        fields.ignore(&["id", "status"]);
        match fields.text("type")?.as_deref() {
            None | Some("message") => {
                let content = fields.value("content").ok_or_else(|| ApiError::field(&fields.name("content"), "is missing"))?;
                let role = fields.value("role").unwrap_or_default();
                fields.ignore(&["phase"]);
                messages.push(json!({ "role": role, "content": renamed_parts(content) }));
            }
            Some("function_call") => {
                let [name, arguments, id] = ["name", "arguments", "call_id"].map(|name| fields.value(name).unwrap_or_default());
                let call = json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
                // Calls that follow each other, or what was said before them, are of one message.
                match messages.last_mut().filter(|last| last["role"] == "assistant") {
                    Some(last) if last["tool_calls"].is_array() => {
                        last["tool_calls"].as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()))
                    }
                    Some(last) => last["tool_calls"] = json!([call]),
                    None => messages.push(json!({ "role": "assistant", "content": "", "tool_calls": [call] })),
                }
            }
            Some("function_call_output") => {
                let [id, output] = ["call_id", "output"].map(|name| fields.value(name).unwrap_or_default());
                messages.push(json!({ "role": "tool", "tool_call_id": id, "content": renamed_parts(output) }));
            }
            Some("reasoning") => fields.ignore(&["summary", "content", "encrypted_content"]),
            Some(_) => {
                return Err(ApiError::unsupported(
                    &fields.name("type"),
                    "must be message, function_call, function_call_output or reasoning",
                ));
            }
        }
        fields.finish()?;
    }
    Ok(messages)
}

/// Parts of text under the name that chat completions have for them.
fn renamed_parts(mut content: Value) -> Value {
    for part in content.as_array_mut().into_iter().flatten() {
        if let Some(fields) = part.as_object_mut()
            && matches!(fields.get("type").and_then(Value::as_str), Some("input_text" | "output_text"))
        {
            fields.insert("type".to_owned(), "text".into());
            fields.retain(|name, _| name == "type" || name == "text");
        }
    }
    content
}

fn read_tools(app: &App, fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default().into_iter().map(|mut tool| {
        let kind = tool.as_object_mut().and_then(|fields| fields.shift_remove("type")).unwrap_or_default();
        json!({ "type": kind, "function": tool })
    });
    let choice = match fields.value("tool_choice") {
        Some(Value::Object(named)) => Some(json!({ "type": named.get("type"), "function": { "name": named.get("name") } })),
        choice => choice,
    };
    let choice = choice.map(tools::read_choice).transpose()?;
    let is_single = fields.flag("parallel_tool_calls")? == Some(false);
    tools::offered(app, list.collect(), choice, is_single)
}

/// The form that `text.format` asks for.
fn read_text(app: &App, fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let Some(text) = fields.value("text") else { return Ok(None) };
    let mut text = Fields::of_value(text, "text")?;
    text.only("verbosity", |how| how == "medium", "is not supported")?;
    let format = text.value("format");
    text.finish()?;
    let Some(format) = format else { return Ok(None) };
    let mut format = Fields::of_value(format, "text.format")?;
    format.ignore(&["name", "description", "strict"]);
    let grammar = Grammar::of_format(app, &mut format, "text.format", |format| {
        let schema = format.value("schema").ok_or_else(|| ApiError::field("text.format.schema", "is missing"))?;
        Ok(("text.format.schema", schema))
    })?;
    format.finish()?;
    Ok(grammar)
}

fn read_reasoning(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let Some(reasoning) = fields.value("reasoning") else { return Ok(Map::new()) };
    let mut reasoning = Fields::of_value(reasoning, "reasoning")?;
    let variables = effort_variables(&mut reasoning, "effort")?;
    reasoning.ignore(&["summary", "generate_summary"]);
    reasoning.finish()?;
    Ok(variables)
}
