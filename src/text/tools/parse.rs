//! The calls in the texts that models write for them.

use serde_json::{Deserializer, Map, Value};

use super::{CallBody, PYTHON_TAG, ToolCall, ToolFormat, python};
use crate::text::reasoning::MESSAGE;

/// The calls of `text`, which stood where `format` has them; `None` where it is none. `tools` are those that were offered, in OpenAI's form:
/// values that are written as bare text get their types of them.
pub(super) fn parse(format: &ToolFormat, text: &str, tools: &[Value]) -> Option<Vec<ToolCall>> {
    let calls = match format.body {
        CallBody::Object | CallBody::List => of_json(text.trim_start().trim_start_matches(PYTHON_TAG)),
        CallBody::Named => of_names(format.begin, text),
        CallBody::Functions => of_functions(text, tools),
        CallBody::Pairs => of_pairs(text, tools).map(|call| vec![call]),
        CallBody::Sections { begin, separator, end } => {
            text.split(begin).skip(1).map(|call| of_section(call.split(end).next()?, separator)).collect()
        }
        CallBody::Python => of_json(text).or_else(|| python::calls(text)),
        CallBody::Message => of_section(text, MESSAGE).map(|call| vec![call]),
    };
    calls.filter(|calls| !calls.is_empty())
}

/// Objects, lists of them, or several of either.
fn of_json(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = Deserializer::from_str(rest).into_iter::<Value>();
        match values.next()?.ok()? {
            Value::Array(list) => calls.extend(list.into_iter().map(of_object).collect::<Option<Vec<ToolCall>>>()?),
            object => calls.push(of_object(object)?),
        }
        rest = rest[values.byte_offset()..].trim_start_matches([';', ',']).trim_start();
    }
    Some(calls)
}

/// `{"name", "arguments"}`, under the names that families have for the two.
fn of_object(value: Value) -> Option<ToolCall> {
    let Value::Object(mut fields) = value else { return None };
    let mut take = |names: &[&str]| names.iter().find_map(|name| fields.shift_remove(*name));
    let arguments = arguments_of(take(&["arguments", "parameters"]).unwrap_or_default())?;
    match take(&["name", "tool_name", "function"])? {
        Value::String(name) if !name.is_empty() => Some(ToolCall { name, arguments }),
        _ => None,
    }
}

/// An object, or one that is written in a text.
fn arguments_of(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Null => Some(Map::new()),
        Value::Object(arguments) => Some(arguments),
        Value::String(text) if text.trim().is_empty() => Some(Map::new()),
        Value::String(text) => serde_json::from_str(&text).ok(),
        _ => None,
    }
}

fn of_names(begin: &str, text: &str) -> Option<Vec<ToolCall>> {
    if text.trim_start().starts_with(['[', '{']) {
        return of_json(text);
    }
    let call = |text: &str| {
        let (head, arguments) = text.split_once("[ARGS]").or_else(|| text.find('{').map(|at| text.split_at(at)))?;
        let name = head.split("[CALL_ID]").next().unwrap_or_default().trim();
        let arguments = arguments_of(Value::String(arguments.to_owned()))?;
        (!name.is_empty()).then(|| ToolCall { name: name.to_owned(), arguments })
    };
    text.split(begin).map(call).collect()
}

fn of_functions(text: &str, tools: &[Value]) -> Option<Vec<ToolCall>> {
    let call = |text: &str| {
        let (name, rest) = text.split_once('>')?;
        let body = rest.split("</function>").next()?;
        let mut arguments = Map::new();
        for parameter in body.split("<parameter=").skip(1) {
            let (key, value) = parameter.split_once('>')?;
            let value = value.split("</parameter>").next()?;
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            arguments.insert(key.trim().to_owned(), typed(tools, name, key.trim(), value));
        }
        Some(ToolCall { name: name.trim().to_owned(), arguments })
    };
    text.split("<function=").skip(1).map(call).collect()
}

fn of_pairs(text: &str, tools: &[Value]) -> Option<ToolCall> {
    let mut parts = text.split("<arg_key>");
    let name = parts.next()?.trim();
    let pair = |part: &str| {
        let (key, rest) = part.split_once("</arg_key>")?;
        let (_, value) = rest.split_once("<arg_value>")?;
        let value = value.split("</arg_value>").next()?;
        Some((key.trim().to_owned(), typed(tools, name, key.trim(), value)))
    };
    let arguments = parts.map(pair).collect::<Option<Map<String, Value>>>()?;
    (!name.is_empty() && !name.contains(char::is_whitespace)).then(|| ToolCall { name: name.to_owned(), arguments })
}

/// A call between its marks: a name, or the word `function` with the name on the next line; then the arguments, which may be fenced.
fn of_section(text: &str, separator: &str) -> Option<ToolCall> {
    let (head, rest) = text.split_once(separator)?;
    let (name, arguments) = if head.trim() == "function" { rest.split_once('\n')? } else { (head, rest) };
    let arguments = arguments.trim().trim_start_matches("```json").trim_matches('`');
    // Kimi counts calls: `functions.name:0`.
    let name = name.trim().trim_start_matches("functions.").split(':').next()?;
    let arguments = arguments_of(Value::String(arguments.to_owned()))?;
    (!name.is_empty()).then(|| ToolCall { name: name.to_owned(), arguments })
}

/// A value that is written as bare text: a text where the parameter is one, else JSON where it is.
fn typed(tools: &[Value], name: &str, key: &str, text: &str) -> Value {
    let tool = tools.iter().map(|tool| &tool["function"]).find(|function| function["name"] == name);
    let is_text = tool.is_some_and(|function| function["parameters"]["properties"][key]["type"] == "string");
    let text_value = || Value::from(text);
    if is_text { text_value() } else { serde_json::from_str(text).unwrap_or_else(|_| text_value()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::tools::FORMATS;

    fn calls(format: usize, text: &str) -> Option<Value> {
        let tools =
            [json!({ "type": "function", "function": { "name": "f", "parameters": { "properties": { "s": { "type": "string" } } } } })];
        let calls = parse(&FORMATS[format].1, text, &tools)?;
        Some(calls.into_iter().map(|call| json!([call.name, call.arguments])).collect())
    }

    #[test]
    fn every_format_is_read() {
        let one = Some(json!([["f", { "s": "1", "n": 2 }]]));
        let two = Some(json!([["f", { "n": 1 }], ["g", {}]]));
        for (format, text, expected) in [
            (0, "\n<function=f>\n<parameter=s>\n1\n</parameter>\n<parameter=n>\n2\n</parameter>\n</function>\n", &one),
            (1, "f\n<arg_key>s</arg_key>\n<arg_value>1</arg_value>\n<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n", &one),
            (2, "\n{\"name\": \"f\", \"arguments\": {\"s\": \"1\", \"n\": 2}}\n", &one),
            (2, "{\"arguments\": \"{\\\"s\\\": \\\"1\\\", \\\"n\\\": 2}\", \"name\": \"f\"}", &one),
            (3, "[{\"name\": \"f\", \"arguments\": {\"n\": 1}}, {\"name\": \"g\", \"arguments\": {}}]", &two),
            (3, "f[ARGS]{\"n\": 1}[TOOL_CALLS]g[CALL_ID]ab12[ARGS]{}", &two),
            (
                4,
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"n\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
                &two,
            ),
            (
                5,
                "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"n\": 1}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>",
                &two,
            ),
            (6, "[{\"tool_call_id\": \"0\", \"tool_name\": \"f\", \"parameters\": {\"n\": 1}}, {\"tool_name\": \"g\"}]", &two),
            (9, "[f(n=1), g()]", &two),
            (9, "[{\"name\": \"f\", \"arguments\": {\"n\": 1}}, {\"name\": \"g\", \"arguments\": {}, \"id\": \"1\"}]", &two),
            (10, "f<|message|>{\"s\": \"1\", \"n\": 2}", &one),
            (11, "{\"name\": \"f\", \"parameters\": {\"n\": 1}}; {\"name\": \"g\", \"parameters\": {}}", &two),
            (11, "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"n\": 1}}\n{\"name\": \"g\"}", &two),
        ] {
            assert_eq!(&calls(format, text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_call_is_none() {
        for (format, text) in [
            (0, "<function=f"),
            (0, "words"),
            (1, "two words"),
            (1, "f<arg_key>a"),
            (2, "{\"name\": \"f\", \"arguments\": 3}"),
            (2, "{\"name\": \"\"}"),
            (2, "{\"name\": \"f\""),
            (2, ""),
            (3, "f"),
            (4, "<｜tool▁call▁begin｜>f"),
            (6, "[1]"),
            (9, "[f]"),
            (10, "f"),
            (10, "f<|message|>{"),
            (11, "{\"answer\": 4}"),
        ] {
            assert_eq!(calls(format, text), None, "{text}");
        }
    }
}
