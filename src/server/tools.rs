//! Tools as requests offer them, and calls in what was said before.

use serde_json::{Map, Value, json};

use super::app::App;
use super::error::ApiError;
use super::fields::{Fields, is_nothing};
use super::grammar::fault_of;
use crate::text::{ToolChoice, Tools};

/// Reads `tool_choice` of OpenAI's API.
pub(super) fn read_choice(choice: Value) -> Result<ToolChoice, ApiError> {
    let wrong = || ApiError::field("tool_choice", "must be auto, none, required, or an object that names a function");
    ToolChoice::read(&choice).ok_or_else(wrong)
}

/// Most tools of a request, as OpenAI has it.
const MAX_TOOLS: usize = 128;

/// Reads `tools`, `tool_choice` and `parallel_tool_calls` of OpenAI's API; `None` where nothing is offered.
pub(super) fn read(app: &App, fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    let choice = fields.value("tool_choice").map(read_choice).transpose()?;
    let is_single = fields.flag("parallel_tool_calls")? == Some(false);
    offered(app, list, choice, is_single)
}

/// Checks what is offered. Without tools, nothing may be demanded.
pub(super) fn offered(app: &App, list: Vec<Value>, choice: Option<ToolChoice>, is_single: bool) -> Result<Option<Tools>, ApiError> {
    if list.len() > MAX_TOOLS {
        return Err(ApiError::field("tools", format!("may be {MAX_TOOLS} at most")));
    }
    let list =
        list.into_iter().enumerate().map(|(index, tool)| checked(tool, &format!("tools[{index}]"))).collect::<Result<Vec<_>, _>>()?;
    Tools::offered(list, choice, is_single, || app.engine.text().tool_format()).map_err(|(field, error)| fault_of(field)(error))
}

/// A tool in OpenAI's form, without what templates need not know.
fn checked(tool: Value, path: &str) -> Result<Value, ApiError> {
    let mut fields = Fields::of_value(tool, path)?;
    fields.only("type", |kind| kind == "function", "must be function; the server runs no tools itself")?;
    let function = fields.value("function").ok_or_else(|| ApiError::field(&fields.name("function"), "is missing"))?;
    fields.finish()?;
    let mut function = Fields::of_value(function, &format!("{path}.function"))?;
    let name = function.text("name")?.unwrap_or_default();
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)) {
        return Err(ApiError::field(&function.name("name"), "must be 1 to 64 letters, digits, underscores, hyphens or dots"));
    }
    let description = function.text("description")?.unwrap_or_default();
    let parameters = function.object("parameters")?.unwrap_or_else(no_parameters);
    function.only("strict", |strict| strict.is_boolean() || is_nothing(strict), "must be true or false")?;
    function.finish()?;
    Ok(json!({ "type": "function", "function": { "name": name, "description": description, "parameters": parameters } }))
}

fn no_parameters() -> Map<String, Value> {
    Map::from_iter([("type".to_owned(), "object".into()), ("properties".to_owned(), json!({}))])
}

/// The calls of an assistant's message for chat templates: arguments are objects there, and texts in OpenAI's API.
pub(super) fn read_calls(calls: Vec<Value>, path: &str) -> Result<Vec<Value>, ApiError> {
    let call = |(index, call): (usize, Value)| {
        let path = format!("{path}[{index}]");
        let mut fields = Fields::of_value(call, &path)?;
        fields.only("type", |kind| kind == "function", "must be function")?;
        let id = fields.text("id")?.unwrap_or_default();
        let function = fields.value("function").ok_or_else(|| ApiError::field(&fields.name("function"), "is missing"))?;
        fields.ignore(&["index"]);
        fields.finish()?;
        let mut function = Fields::of_value(function, &format!("{path}.function"))?;
        let name = function.text("name")?.ok_or_else(|| ApiError::field(&function.name("name"), "is missing"))?;
        let arguments = match function.value("arguments") {
            None => json!({}),
            Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            Some(object @ Value::Object(_)) => object,
            Some(_) => return Err(ApiError::field(&function.name("arguments"), "must be a text of JSON")),
        };
        function.ignore(&["index"]);
        function.finish()?;
        Ok(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }))
    };
    calls.into_iter().enumerate().map(call).collect()
}
