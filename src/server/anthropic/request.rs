//! What requests of Anthropic's API may say.

use serde_json::{Map, Value, json};

use crate::server::app::App;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, is_nothing};
use crate::server::messages::{self, encode, text_of_content, thinking_variables};
use crate::server::work::{How, Work};
use crate::session::GenerateOptions;
use crate::text::SamplingFlags;

/// Reads `/v1/messages`: the work, and whether it is streamed.
pub(super) fn read_messages(app: &App, fields: &mut Fields) -> Result<(Work, bool), ApiError> {
    let most = fields.count("max_tokens")?.ok_or_else(|| ApiError::field("max_tokens", "is missing"))?;
    let flags = SamplingFlags {
        temperature: fields.number("temperature")?,
        top_k: fields.count("top_k")?,
        top_p: fields.number("top_p")?,
        ..SamplingFlags::default()
    };
    let stop = fields.texts("stop_sequences")?.unwrap_or_default();
    let is_streamed = fields.flag("stream")?.unwrap_or(false);
    fields.ignore(&["metadata", "service_tier", "inference_geo", "diagnostics"]);
    let options = GenerateOptions { max_tokens: Some(most as usize), stop, ..GenerateOptions::default() };
    let how = How::checked(app, 1, &flags, None, options)?;
    let prompt = read_prompt(app, fields)?;
    Ok((Work::new(app, vec![prompt], how, true)?, is_streamed))
}

/// Reads what `/v1/messages` and `/v1/messages/count_tokens` both have: what makes the prompt.
pub(super) fn read_prompt(app: &App, fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    if let Some(name) = fields.text("model")? {
        app.check_model(&name)?;
    }
    let mut list = Vec::new();
    if let Some(system) = fields.value("system") {
        list.push(json!({ "role": "system", "content": text_of_content(system, "system")? }));
    }
    let said = fields.list("messages")?.ok_or_else(|| ApiError::field("messages", "is missing"))?;
    if said.last().is_none_or(|last| last["role"] != "user") {
        return Err(ApiError::field("messages", "must end with one of the role user"));
    }
    for (index, message) in said.into_iter().enumerate() {
        list.push(renamed(message, &format!("messages[{index}]"))?);
    }
    for name in ["tools", "mcp_servers", "container", "context_management", "output_config", "output_format"] {
        fields.only(name, is_nothing, "is not supported")?;
    }
    fields.only("tool_choice", |choice| choice["type"] == "none" || choice["type"] == "auto", "is not supported")?;
    fields.ignore(&["cache_control", "speed", "user_profile_id", "workspace_id"]);
    let variables = thinking(fields)?;
    encode(app, &messages::read_messages(app, list)?, variables)
}

/// A message in OpenAI's form: what was thought, in a field of its own.
fn renamed(message: Value, path: &str) -> Result<Value, ApiError> {
    let mut fields = Fields::of_value(message, path)?;
    let role = fields.text("role")?.unwrap_or_default();
    if role != "user" && role != "assistant" {
        return Err(ApiError::field(&fields.name("role"), "must be user or assistant"));
    }
    let content = fields.value("content").ok_or_else(|| ApiError::field(&fields.name("content"), "is missing"))?;
    let (mut thought, mut said) = (String::new(), Vec::new());
    match content {
        Value::Array(blocks) => {
            for block in blocks {
                match block["type"].as_str() {
                    Some("thinking") => thought.push_str(block["thinking"].as_str().unwrap_or_default()),
                    Some("redacted_thinking") => {}
                    _ => said.push(block),
                }
            }
        }
        text => said.push(json!({ "type": "text", "text": text })),
    }
    fields.finish()?;
    let mut renamed = json!({ "role": role, "content": said });
    if !thought.is_empty() {
        renamed["reasoning_content"] = thought.into();
    }
    Ok(renamed)
}

/// Whether the model thinks. A budget of tokens cannot be held to.
fn thinking(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let Some(thinking) = fields.value("thinking") else { return Ok(Map::new()) };
    let mut thinking = Fields::of_value(thinking, "thinking")?;
    let variables = match thinking.text("type")?.as_deref() {
        Some("enabled") => thinking_variables(true, None),
        Some("disabled") => thinking_variables(false, None),
        Some("adaptive") => Map::new(),
        _ => return Err(ApiError::field("thinking.type", "must be enabled, disabled or adaptive")),
    };
    thinking.ignore(&["budget_tokens", "display"]);
    thinking.finish()?;
    Ok(variables)
}
