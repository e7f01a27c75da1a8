//! Tools that a model is offered for an answer, how it is told of them, and when it must call one.

use serde_json::{Map, Value};

use super::ToolFormat;
use crate::text::{ChatMessage, FormError};

/// Tools for an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// How the model writes calls.
    pub format: ToolFormat,
    /// In OpenAI's form, each with a name, a description and parameters.
    pub list: Vec<Value>,
    /// Whether the model calls.
    pub choice: ToolChoice,
    /// Whether one call is the most.
    pub is_single: bool,
}

/// Whether the model calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// Where it finds that it helps.
    Auto,
    /// Not at all.
    Never,
    /// It must call one.
    Required,
    /// It must call that one.
    Named(String),
}

impl ToolChoice {
    /// Reads `tool_choice` of OpenAI's API; `None` for what it is not.
    pub fn read(choice: &Value) -> Option<ToolChoice> {
        match choice.as_str() {
            Some("auto") => Some(ToolChoice::Auto),
            Some("none") => Some(ToolChoice::Never),
            Some("required") => Some(ToolChoice::Required),
            _ => match (choice["type"].as_str(), choice["function"]["name"].as_str()) {
                (Some("function"), Some(name)) => Some(ToolChoice::Named(name.to_owned())),
                _ => None,
            },
        }
    }
}

impl Tools {
    /// What a request offers: `list` in OpenAI's form, and whether the model calls (where it finds that it helps, unless something is said).
    /// `None` where nothing may be called.
    ///
    /// # Errors
    /// The field of a request and what is wrong with it: a call is demanded that cannot be, or `format` says that the model writes none.
    pub fn offered(
        list: Vec<Value>,
        choice: Option<ToolChoice>,
        is_single: bool,
        format: impl FnOnce() -> Result<ToolFormat, FormError>,
    ) -> Result<Option<Tools>, (&'static str, FormError)> {
        let choice = choice.unwrap_or(ToolChoice::Auto);
        let wrong = |reason: &str| Err(("tool_choice", FormError::Wrong(reason.to_owned())));
        match &choice {
            ToolChoice::Never => return Ok(None),
            ToolChoice::Auto if list.is_empty() => return Ok(None),
            ToolChoice::Required if list.is_empty() => return wrong("asks for a call, and there are no tools"),
            ToolChoice::Named(name) if !list.iter().any(|tool| tool["function"]["name"] == *name) => {
                return wrong("names a tool that is not among `tools`");
            }
            _ => {}
        }
        let format = format().map_err(|error| ("tools", error))?;
        Ok(Some(Tools { format, list, choice, is_single }))
    }

    /// Whether there must be a call.
    pub fn is_demanded(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// The functions of the tools that may be called.
    pub fn allowed(&self) -> impl Iterator<Item = &Map<String, Value>> {
        let is_allowed = |name: &Value| if let ToolChoice::Named(only) = &self.choice { name == only } else { true };
        self.list.iter().filter_map(|tool| tool["function"].as_object()).filter(move |function| is_allowed(&function["name"]))
    }

    /// A conversation for a template that knows no tools: what it does not write, messages say.
    pub fn written_out(&self, messages: &[ChatMessage]) -> Vec<ChatMessage> {
        let list: String = self.list.iter().map(|tool| format!("{}\n", tool["function"])).collect();
        let ToolFormat { begin, lead, end, .. } = self.format;
        let end = end.unwrap_or_default();
        let told = format!(
            "You can call these functions:\n{list}To call one, answer with this and nothing else, with the function's name and an object of \
             arguments:\n{begin}{lead}{{\"name\": \"...\", \"arguments\": {{}}}}{lead}{end}\nThe results come in the next message. Call none \
             where you can answer without."
        );
        let mut written: Vec<ChatMessage> = Vec::with_capacity(messages.len() + 1);
        let mut rest = messages;
        match messages.split_first() {
            Some((system, others)) if system.role() == "system" => {
                written.push(ChatMessage::new("system", format!("{}\n\n{told}", system.text())));
                rest = others;
            }
            _ => written.push(ChatMessage::new("system", told)),
        }
        let plain = |message: &ChatMessage| {
            let calls = message.fields().get("tool_calls").and_then(Value::as_array);
            let calls = calls.into_iter().flatten().map(|call| format!("{begin}{lead}{}{lead}{end}", call["function"]));
            match message.role() {
                "tool" => ChatMessage::new("user", format!("<tool_response>\n{}\n</tool_response>", message.text())),
                "assistant" => ChatMessage::new("assistant", [message.text().into_owned()].into_iter().chain(calls).collect::<String>()),
                _ => message.clone(),
            }
        };
        written.extend(rest.iter().map(plain));
        written
    }
}
