//! What requests of Anthropic's API may say.

use serde_json::{Map, Value, json};

use crate::server::app::App;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, is_nothing};
use crate::server::messages::{self, encode, text_of_content};
use crate::server::tools;
use crate::server::work::{How, Work};
use crate::session::GenerateOptions;
use crate::text::{SamplingFlags, ToolChoice, Tools, thinking_variables};

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
    let mut how = How::checked(app, 1, &flags, None, options)?;
    how.loras = app.read_loras(fields)?;
    let (prompt, tools) = read_prompt(app, fields)?;
    let is_demanded = tools.as_ref().is_some_and(Tools::is_demanded);
    how.offer(app, tools)?;
    let splits_reasoning = messages::splits_reasoning(app, is_demanded);
    Ok((Work::new(app, vec![prompt], how, splits_reasoning)?, is_streamed))
}

/// Reads what `/v1/messages` and `/v1/messages/count_tokens` both have: what makes the prompt, and the tools in it.
pub(super) fn read_prompt(app: &App, fields: &mut Fields) -> Result<(Vec<u32>, Option<Tools>), ApiError> {
    app.read_model(fields)?;
    let mut list = Vec::new();
    if let Some(system) = fields.value("system") {
        list.push(json!({ "role": "system", "content": text_of_content(system, "system")? }));
    }
    let said = fields.list("messages")?.ok_or_else(|| ApiError::field("messages", "is missing"))?;
    if said.last().is_none_or(|last| last["role"] != "user") {
        return Err(ApiError::field("messages", "must end with one of the role user"));
    }
    for (index, message) in said.into_iter().enumerate() {
        list.extend(renamed(message, &format!("messages[{index}]"))?);
    }
    for name in ["mcp_servers", "container", "context_management", "output_config", "output_format"] {
        fields.only(name, is_nothing, "is not supported")?;
    }
    let tools = read_tools(app, fields)?;
    fields.ignore(&["cache_control", "speed", "user_profile_id", "workspace_id"]);
    let variables = thinking(fields)?;
    let is_demanded = tools.as_ref().is_some_and(Tools::is_demanded);
    let variables = if is_demanded { messages::form_variables(app, variables) } else { variables };
    let prompt = encode(app, &messages::read_messages(app, list)?, variables, tools.as_ref())?;
    Ok((prompt, tools))
}

/// Reads `tools` and `tool_choice`.
fn read_tools(app: &App, fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    let renamed = |(index, tool): (usize, Value)| {
        let mut fields = Fields::of_value(tool, &format!("tools[{index}]"))?;
        fields.only("type", |kind| kind == "custom", "is not supported; the server runs no tools itself")?;
        let [name, description, schema] = ["name", "description", "input_schema"].map(|name| fields.value(name).unwrap_or_default());
        fields.ignore(&["cache_control", "strict", "input_examples"]);
        fields.finish()?;
        Ok(json!({ "type": "function", "function": { "name": name, "description": description, "parameters": schema } }))
    };
    let list = list.into_iter().enumerate().map(renamed).collect::<Result<Vec<Value>, ApiError>>()?;
    let Some(choice) = fields.value("tool_choice") else { return tools::offered(app, list, None, false) };
    let mut choice = Fields::of_value(choice, "tool_choice")?;
    let is_single = choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
    let name = choice.text("name")?;
    let read = match (choice.text("type")?.as_deref(), name) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("none"), _) => ToolChoice::Never,
        (Some("any"), _) => ToolChoice::Required,
        (Some("tool"), Some(name)) => ToolChoice::Named(name),
        _ => return Err(ApiError::field("tool_choice.type", "must be auto, any, none, or tool with a name")),
    };
    choice.finish()?;
    tools::offered(app, list, Some(read), is_single)
}

/// A message in OpenAI's form: what was thought and what was called, in fields of their own; results of tools, in messages of their own.
fn renamed(message: Value, path: &str) -> Result<Vec<Value>, ApiError> {
    let mut fields = Fields::of_value(message, path)?;
    let role = fields.text("role")?.unwrap_or_default();
    if role != "user" && role != "assistant" {
        return Err(ApiError::field(&fields.name("role"), "must be user or assistant"));
    }
    let content = fields.value("content").ok_or_else(|| ApiError::field(&fields.name("content"), "is missing"))?;
    fields.finish()?;
    let blocks = match content {
        Value::Array(blocks) => blocks,
        text => vec![json!({ "type": "text", "text": text })],
    };
    let (mut thought, mut said, mut calls, mut messages) = (String::new(), Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        match block["type"].as_str() {
            Some("thinking") => thought.push_str(block["thinking"].as_str().unwrap_or_default()),
            Some("redacted_thinking") => {}
            Some("tool_use") => {
                let function = json!({ "name": block["name"], "arguments": block["input"] });
                calls.push(json!({ "id": block["id"], "type": "function", "function": function }));
            }
            Some("tool_result") => {
                let content = if block["content"].is_null() { "".into() } else { block["content"].clone() };
                messages.push(json!({ "role": "tool", "tool_call_id": block["tool_use_id"], "content": content }));
            }
            _ => said.push(block),
        }
    }
    if messages.is_empty() || !said.is_empty() {
        let mut renamed = json!({ "role": role, "content": said });
        if !thought.is_empty() {
            renamed["reasoning_content"] = thought.into();
        }
        if !calls.is_empty() {
            renamed["tool_calls"] = calls.into();
        }
        messages.push(renamed);
    }
    Ok(messages)
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
