//! The calls of an answer as its reader gets them: numbered and with ids, in parts as they come and whole.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::{CallPiece, Said, ToolCall, new_call_id};

/// A call in an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Nine letters and digits: Mistral's templates want so many.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// What it is called with.
    pub arguments: Map<String, Value>,
}

impl Call {
    fn new(id: String, call: ToolCall) -> Call {
        Call { id, name: call.name, arguments: call.arguments }
    }

    /// Its arguments as a text of JSON.
    pub fn arguments_text(&self) -> String {
        Value::Object(self.arguments.clone()).to_string()
    }

    /// As OpenAI writes it.
    pub fn to_json(&self) -> Value {
        json!({ "id": self.id, "type": "function", "function": { "name": self.name, "arguments": self.arguments_text() } })
    }
}

/// A part of a call in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallPart {
    /// Which call of the answer, from 0.
    pub index: usize,
    /// Its id and its function's name, where it begins.
    pub begin: Option<(String, String)>,
    /// Text of its arguments, which all together are an object.
    pub arguments: String,
}

impl CallPart {
    /// As OpenAI streams it.
    pub fn to_json(&self) -> Value {
        let CallPart { index, begin, arguments } = self;
        match begin {
            Some((id, name)) => {
                json!({ "index": index, "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
            }
            None => json!({ "index": index, "function": { "arguments": arguments } }),
        }
    }
}

/// What a step of an answer told.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    /// Words for the user.
    pub text: String,
    /// What came of calls, in parts that are all there with the end of a call.
    pub parts: Vec<CallPart>,
    /// Calls that are whole.
    pub calls: Vec<Call>,
}

/// Gives the calls of one answer their numbers and ids.
#[derive(Debug, Default)]
pub struct CallTeller {
    n_calls: usize,
    /// Ids of those that have begun and are not whole.
    open: VecDeque<String>,
}

impl CallTeller {
    /// Calls that have begun.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// What was said, in the order in which [`ToolSplitter`](super::ToolSplitter) told it.
    pub fn tell(&mut self, said: impl IntoIterator<Item = Said>) -> Told {
        let mut told = Told::default();
        for said in said {
            match said {
                Said::Text(text) => told.text.push_str(&text),
                Said::Call(call) => {
                    let call = Call::new(new_call_id(), call);
                    told.parts.push(self.part(Some((call.id.clone(), call.name.clone())), call.arguments_text()));
                    told.calls.push(call);
                }
                Said::Piece(CallPiece { name, arguments }) => {
                    let begin = name.map(|name| (new_call_id(), name));
                    self.open.extend(begin.iter().map(|(id, _)| id.clone()));
                    told.parts.push(self.part(begin, arguments));
                }
                Said::Told(call) => {
                    let id = self.open.pop_front().unwrap_or_else(new_call_id);
                    told.calls.push(Call::new(id, call));
                }
            }
        }
        told
    }

    fn part(&mut self, begin: Option<(String, String)>, arguments: String) -> CallPart {
        self.n_calls += usize::from(begin.is_some());
        CallPart { index: self.n_calls.saturating_sub(1), begin, arguments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str) -> ToolCall {
        ToolCall { name: name.to_owned(), arguments: Map::from_iter([("at".to_owned(), 1.into())]) }
    }

    fn piece(name: Option<&str>, arguments: &str) -> Said {
        Said::Piece(CallPiece { name: name.map(str::to_owned), arguments: arguments.to_owned() })
    }

    #[test]
    fn the_parts_of_a_call_and_the_whole_one_have_its_id_and_its_number() {
        let mut teller = CallTeller::default();
        let begun = teller.tell([Said::Text("So: ".into()), piece(Some("dig"), "{\"at\""), piece(None, ":1}"), piece(Some("fill"), "{")]);
        assert_eq!((begun.text.as_str(), begun.calls.len(), teller.n_calls()), ("So: ", 0, 2));
        let told = teller.tell([Said::Told(call("dig")), piece(None, "\"at\":1}"), Said::Told(call("fill")), Said::Call(call("rest"))]);
        let parts: Vec<Value> = begun.parts.iter().chain(&told.parts).map(CallPart::to_json).collect();
        assert_eq!(parts.iter().map(|part| part["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 0, 1, 1, 2]);
        assert_eq!(parts[1], json!({ "index": 0, "function": { "arguments": ":1}" } }));
        for (index, call) in told.calls.iter().enumerate() {
            let own = || parts.iter().filter(|part| part["index"] == index);
            let first = own().next().unwrap();
            assert_eq!((&first["id"], &first["function"]["name"]), (&json!(call.id), &json!(call.name)));
            let arguments: String = own().map(|part| part["function"]["arguments"].as_str().unwrap()).collect();
            assert_eq!(arguments, call.to_json()["function"]["arguments"].as_str().unwrap());
        }
    }
}
