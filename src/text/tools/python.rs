//! Calls as Python writes them: `[name(key="value", other=1), next()]` (LFM2).

use serde_json::{Map, Number, Value};

use super::ToolCall;

/// Lists and objects in each other, at most.
const MAX_DEPTH: usize = 64;

/// The calls of a list, with or without its brackets; `None` where it is none. Arguments have names.
pub(super) fn calls(text: &str) -> Option<Vec<ToolCall>> {
    let mut reader = Reader { rest: text.trim() };
    let is_bracketed = reader.take('[');
    let mut calls = Vec::new();
    loop {
        calls.push(reader.call()?);
        if !reader.take(',') {
            break;
        }
    }
    (reader.take(']') == is_bracketed && reader.rest.trim().is_empty()).then_some(calls)
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    /// Passes over white space and then `mark`, if it is there.
    fn take(&mut self, mark: char) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(mark);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// A name; that of a function may have dots and hyphens in it.
    fn name(&mut self) -> Option<&'a str> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || "_-.".contains(c))).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then_some(name)
    }

    fn call(&mut self) -> Option<ToolCall> {
        let name = self.name()?.to_owned();
        let mut arguments = Map::new();
        if !self.take('(') {
            return None;
        }
        while !self.take(')') {
            let key = self.name()?.to_owned();
            if !self.take('=') {
                return None;
            }
            arguments.insert(key, self.value(0)?);
            if !self.take(',') && !self.rest.trim_start().starts_with(')') {
                return None;
            }
        }
        Some(ToolCall { name, arguments })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            _ if depth > MAX_DEPTH => None,
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            '[' => self.list(depth).map(Value::Array),
            '{' => self.object(depth).map(Value::Object),
            _ => match self.word() {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                number => number.parse::<Number>().ok().map(Value::Number),
            },
        }
    }

    /// What stands before the next mark between values.
    fn word(&mut self) -> &'a str {
        let end = self.rest.find([',', ')', ']', '}']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.trim()
    }

    fn list(&mut self, depth: usize) -> Option<Vec<Value>> {
        let mut values = Vec::new();
        self.take('[');
        while !self.take(']') {
            values.push(self.value(depth + 1)?);
            if !self.take(',') && !self.rest.starts_with(']') {
                return None;
            }
        }
        Some(values)
    }

    fn object(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut fields = Map::new();
        self.take('{');
        while !self.take('}') {
            let Value::String(key) = self.value(depth + 1)? else { return None };
            if !self.take(':') {
                return None;
            }
            fields.insert(key, self.value(depth + 1)?);
            if !self.take(',') && !self.rest.starts_with('}') {
                return None;
            }
        }
        Some(fields)
    }

    /// A text. Templates put quotes around texts as they are, so a quote ends one only where something else can follow.
    fn string(&mut self, quote: char) -> Option<String> {
        let (body, mut text) = (&self.rest[1..], String::new());
        let mut chars = body.char_indices();
        while let Some((at, char)) = chars.next() {
            if char == '\\' {
                match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    escaped @ ('\\' | '"' | '\'') => text.push(escaped),
                    other => text.extend(['\\', other]),
                }
            } else if char == quote && ends_a_text(&body[at + 1..]) {
                self.rest = &body[at + 1..];
                return Some(text);
            } else {
                text.push(char);
            }
        }
        None
    }
}

/// Whether what stands behind a quote can stand behind a text.
fn ends_a_text(rest: &str) -> bool {
    rest.trim_start().chars().next().is_none_or(|next| ",)]}:".contains(next))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Option<Value> {
        Some(calls(text)?.into_iter().map(|call| json!([call.name, call.arguments])).collect())
    }

    #[test]
    fn calls_are_read_with_their_arguments() {
        for (text, expected) in [
            ("[f()]", json!([["f", {}]])),
            ("f(a=1)", json!([["f", { "a": 1 }]])),
            (
                "[get.it-now(s=\"x, y)\", n=-2.5, t=True, u=None), g(l=[1, 'a'], o={'k': {\"b\": false}})]",
                json!([["get.it-now", { "s": "x, y)", "n": -2.5, "t": true, "u": null }], ["g", { "l": [1, "a"], "o": { "k": { "b": false } } }]]),
            ),
            ("[f(a='it's', b=\"say \\\"hi\\\"\\n\", c='C:\\\\d',)]", json!([["f", { "a": "it's", "b": "say \"hi\"\n", "c": "C:\\d" }]])),
            (" [ f ( a = 'é' ) , f ( ) ] ", json!([["f", { "a": "é" }], ["f", {}]])),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_of_calls_is_none() {
        let deep = format!("f(a={})", "[".repeat(100_000));
        for text in
            ["", "[]", "f", "[f()", "f()]", "f(1)", "f(a=)", "f(a=b)", "f(a='x)", "f(a=1 b=2)", "(a=1)", "f(a={1: 2})", "[f() g()]", &deep]
        {
            assert_eq!(read(text), None, "{:?}", &text[..text.len().min(20)]);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\](){}a=,:'\"\\\\ 1é.-]{0,40}") {
            read(&text);
        }
    }
}
