//! The messages of a conversation, and what else a chat template is given. Knows no template.

use std::borrow::Cow;

use minijinja::value::{Serde, Value as JinjaValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a conversation: an object with a `role`, mostly a `content`, and whatever else a template may know, in the order in
/// which it is written. `content` may be a text, null, a list of parts or absent; an assistant's `tool_calls`, a tool's `tool_call_id`
/// and `name`, `reasoning_content` and others are further fields. Templates see all of them as they are, as transformers'
/// `apply_chat_template` passes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct ChatMessage {
    fields: Map<String, Value>,
}

impl ChatMessage {
    /// A message of `role`: `system`, `user` or `assistant`; templates may know more.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> ChatMessage {
        let fields = [("role", role.into()), ("content", content.into())];
        ChatMessage { fields: fields.map(|(name, text)| (name.to_owned(), Value::String(text))).into_iter().collect() }
    }

    /// The same message with the field `name`, in place of the one that it had, or behind the others. `role` stays what it is.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> ChatMessage {
        let name = name.into();
        if name != "role" {
            self.fields.insert(name, value.into());
        }
        self
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What was said: the content, or the texts of its parts one behind the other; empty where there is none.
    pub fn text(&self) -> Cow<'_, str> {
        match self.fields.get("content") {
            Some(Value::String(text)) => Cow::Borrowed(text),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part.as_str().or_else(|| part.get("text").and_then(Value::as_str))).collect()
            }
            _ => Cow::Borrowed(""),
        }
    }

    /// All that the message is.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The same message with every text but the role as `change` makes it.
    pub(crate) fn map_texts(&self, change: &impl Fn(&str) -> String) -> ChatMessage {
        let changed = |(name, value): (&String, &Value)| match name.as_str() {
            "role" => (name.clone(), value.clone()),
            _ => (name.clone(), map_texts(value, change)),
        };
        ChatMessage { fields: self.fields.iter().map(changed).collect() }
    }
}

impl TryFrom<Map<String, Value>> for ChatMessage {
    type Error = &'static str;

    /// Refuses a message whose `role` is no text.
    fn try_from(fields: Map<String, Value>) -> Result<ChatMessage, &'static str> {
        match fields.get("role") {
            Some(Value::String(_)) => Ok(ChatMessage { fields }),
            _ => Err("a message needs a `role` that is a text"),
        }
    }
}

impl From<ChatMessage> for Map<String, Value> {
    fn from(message: ChatMessage) -> Map<String, Value> {
        message.fields
    }
}

/// What a chat template is given beside the messages, as transformers' `apply_chat_template` passes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateInput {
    /// Tools that the model may call, mostly `{"type": "function", "function": {"name", "description", "parameters"}}`; `None` and an
    /// empty list are different things to templates.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from.
    pub documents: Option<Vec<Value>>,
    /// Further variables, as `enable_thinking`. Names that have a meaning of their own (`messages`, `tools`, …) are not among them.
    pub variables: Map<String, Value>,
}

/// What chat templates know of thinking: `enable_thinking` with most, `thinking` with DeepSeek and Granite, `reasoning_effort` with gpt-oss.
pub fn thinking_variables(is_on: bool, effort: Option<&str>) -> Map<String, Value> {
    let switches = ["enable_thinking", "thinking"].map(|name| (name.to_owned(), Value::from(is_on)));
    switches.into_iter().chain(effort.map(|effort| ("reasoning_effort".to_owned(), effort.into()))).collect()
}

impl TemplateInput {
    /// The same with every text as `change` makes it.
    pub(crate) fn map_texts(&self, change: &impl Fn(&str) -> String) -> TemplateInput {
        let list = |list: &Option<Vec<Value>>| list.as_ref().map(|list| list.iter().map(|value| map_texts(value, change)).collect());
        TemplateInput {
            tools: list(&self.tools),
            documents: list(&self.documents),
            variables: self.variables.iter().map(|(name, value)| (name.clone(), map_texts(value, change))).collect(),
        }
    }

    /// The variables of a rendering by their names.
    pub(super) fn to_values(&self) -> Vec<(String, JinjaValue)> {
        let mut values: Vec<(String, JinjaValue)> =
            self.variables.iter().map(|(name, value)| (name.clone(), JinjaValue::from(Serde(value)))).collect();
        // transformers passes these always, and templates ask whether they are none.
        values.push(("tools".to_owned(), JinjaValue::from(Serde(&self.tools))));
        values.push(("documents".to_owned(), JinjaValue::from(Serde(&self.documents))));
        values
    }

    /// Bytes of all texts, about.
    pub(super) fn n_bytes(&self) -> usize {
        let lists = [&self.tools, &self.documents].into_iter().flatten().flatten();
        lists.chain(self.variables.values()).map(n_bytes).sum()
    }
}

impl ChatMessage {
    pub(super) fn to_value(&self) -> JinjaValue {
        JinjaValue::from(Serde(&self.fields))
    }

    /// Bytes of all texts, about.
    pub(super) fn n_bytes(&self) -> usize {
        self.fields.values().map(n_bytes).sum()
    }
}

fn n_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(n_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + n_bytes(value)).sum(),
        _ => 0,
    }
}

/// `value` with every text in it as `change` makes it. Names of fields are texts, too: templates print them.
fn map_texts(value: &Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(list) => list.iter().map(|value| map_texts(value, change)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (change(name), map_texts(value, change))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_keep_every_field_in_its_order() {
        let text = r#"{"tool_calls":[{"id":"a"}],"role":"assistant","content":null,"x":1}"#;
        let message: ChatMessage = serde_json::from_str(text).unwrap();
        assert_eq!((message.role(), message.text().as_ref()), ("assistant", ""));
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        let made =
            ChatMessage::new("tool", "4").with("tool_call_id", "a").with("role", "user").with("content", json!([{"text": "4"}, "5"]));
        assert_eq!(serde_json::to_string(&made).unwrap(), r#"{"role":"tool","content":[{"text":"4"},"5"],"tool_call_id":"a"}"#);
        assert_eq!(made.text(), "45");
    }

    #[test]
    fn a_message_without_a_role_is_none() {
        for text in ["{}", r#"{"role": 1, "content": "x"}"#, "[]", "\"x\""] {
            assert!(serde_json::from_str::<ChatMessage>(text).is_err(), "{text}");
        }
    }
}
