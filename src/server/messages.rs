//! The messages of a conversation, as requests write them, checked and made those of chat templates.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::app::App;
use super::error::ApiError;
use super::fields::Fields;
use super::tools::read_calls;
use crate::text::{ChatMessage, ReasoningFormat, TemplateInput, Tools, Written, thinking_variables};

/// Reads OpenAI's messages.
pub(super) fn read_messages(app: &App, list: Vec<Value>) -> Result<Vec<ChatMessage>, ApiError> {
    if list.is_empty() {
        return Err(ApiError::field("messages", "is empty; there is nothing to answer"));
    }
    list.into_iter().enumerate().map(|(index, message)| read_message(app, message, &format!("messages[{index}]"))).collect()
}

fn read_message(app: &App, message: Value, path: &str) -> Result<ChatMessage, ApiError> {
    let mut fields = Fields::of_value(message, path)?;
    let role = fields.text("role")?.ok_or_else(|| ApiError::field(&fields.name("role"), "is missing"))?;
    let role = match role.as_str() {
        // Templates know the older name.
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => role.as_str(),
        _ => return Err(ApiError::field(&fields.name("role"), "must be system, developer, user, assistant or tool")),
    };
    let content = match fields.value("content") {
        Some(content) => text_of_content(content, &fields.name("content"))?,
        None if role == "assistant" => String::new(),
        None => return Err(ApiError::field(&fields.name("content"), "is missing")),
    };
    let mut read = ChatMessage::new(role, content);
    for name in ["name", "tool_call_id"] {
        if let Some(text) = fields.text(name)? {
            read = read.with(name, text);
        }
    }
    if let Some(reasoning) = fields.text("reasoning_content")?.or(fields.text("reasoning")?)
        && let Some(format) = app.engine.text().reasoning_format()
    {
        read = read.with(format.message_field(), reasoning);
    }
    if let Some(calls) = fields.list("tool_calls")?.filter(|calls| !calls.is_empty()) {
        read = read.with("tool_calls", read_calls(calls, &fields.name("tool_calls"))?);
    }
    fields.ignore(&["refusal", "annotations"]);
    fields.finish()?;
    Ok(read)
}

/// A text, or the texts of parts, one behind the other.
pub(super) fn text_of_content(content: Value, path: &str) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts.into_iter().enumerate().map(|(index, part)| text_of_part(part, &format!("{path}[{index}]"))).collect(),
        _ => Err(ApiError::field(path, "must be a text or a list of parts")),
    }
}

fn text_of_part(part: Value, path: &str) -> Result<String, ApiError> {
    let mut fields = Fields::of_value(part, path)?;
    let kind = fields.text("type")?.unwrap_or_default();
    if kind != "text" {
        let kind: String = kind.chars().take(50).collect();
        return Err(ApiError::unsupported(&fields.name("type"), format!("`{kind}` is not supported; the model reads text alone")));
    }
    let text = fields.text("text")?.ok_or_else(|| ApiError::field(&fields.name("text"), "is missing"))?;
    // Answers have these, and come back with a conversation.
    fields.ignore(&["annotations", "cache_control", "citations", "logprobs"]);
    fields.finish()?;
    Ok(text)
}

/// The tokens of a conversation in which `tools` may be called. What looks like a special token in a message is text: messages may come from anywhere.
pub(super) fn encode(
    app: &App,
    messages: &[ChatMessage],
    variables: Map<String, Value>,
    tools: Option<&Tools>,
) -> Result<Vec<u32>, ApiError> {
    if app.engine.chat_template().is_none() {
        return Err(ApiError::invalid("the model has no chat template; ask it by /v1/completions, with a prompt"));
    }
    let (messages, tools) = match tools {
        Some(tools) if !tools.format.is_in_template => (Cow::Owned(tools.written_out(messages)), None),
        tools => (Cow::Borrowed(messages), tools.map(|tools| tools.list.clone())),
    };
    let input = TemplateInput { tools, variables, ..TemplateInput::default() };
    Ok(app.engine.encode_chat_with(&messages, &input, Written::Plain)?)
}

/// The variables of an answer that has a form: the model does not think before it, unless it does so in a channel.
pub(super) fn form_variables(app: &App, variables: Map<String, Value>) -> Map<String, Value> {
    if thinks_beside_forms(app) {
        return variables;
    }
    variables.into_iter().chain(thinking_variables(false, None)).collect()
}

/// Whether reasoning is told apart from an answer: of what has a form, only where the model thinks beside it. Else it is all answer, even where the
/// template has opened the reasoning.
pub(super) fn splits_reasoning(app: &App, has_form: bool) -> bool {
    !has_form || thinks_beside_forms(app)
}

/// Whether the model answers in channels, of which a form holds one.
fn thinks_beside_forms(app: &App) -> bool {
    app.engine.text().reasoning_format() == Some(ReasoningFormat::Channels)
}

/// What chat templates are told of OpenAI's effort of reasoning, the field `name`.
pub(super) fn effort_variables(fields: &mut Fields, name: &str) -> Result<Map<String, Value>, ApiError> {
    match fields.text(name)?.as_deref() {
        None => Ok(Map::new()),
        Some("none" | "minimal") => Ok(thinking_variables(false, None)),
        Some(effort @ ("low" | "medium" | "high")) => Ok(thinking_variables(true, Some(effort))),
        Some(_) => Err(ApiError::field(&fields.name(name), "must be none, minimal, low, medium or high")),
    }
}
