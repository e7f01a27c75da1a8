//! Models that answer in channels (gpt-oss): forms hold the message that answers, or the one that calls, and reasoning stays free.

use std::path::Path;

use serde_json::{Value, json};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

/// Ids that the tiny model's vocabulary leaves unused, from the first on.
const MARKS: [&str; 7] = ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"];
const FIRST_MARK: usize = 271;
/// Writes tools, messages and channels in the form of harmony, as far as forms need it.
const TEMPLATE: &str = "{% for tool in tools or [] %}<|start|>developer<|message|>namespace functions.{{ tool.function.name }}<|end|>{% endfor %}\
    {% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}\
    <|start|>assistant";

fn id_of(mark: &str) -> usize {
    FIRST_MARK + MARKS.iter().position(|own| *own == mark).unwrap()
}

/// The tiny model with the tokens and the template of harmony.
fn harmony_model(home: &Home) -> String {
    let model = home.folder_model();
    let edit = |name: &str, edit: &dyn Fn(&mut Value)| {
        let file = Path::new(&model).join(name);
        let mut content: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        edit(&mut content);
        std::fs::write(&file, content.to_string()).unwrap();
    };
    edit("tokenizer.json", &|tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        for mark in MARKS {
            let fields = json!({ "id": id_of(mark), "content": mark });
            added.push(with(added[0].clone(), &fields));
        }
    });
    edit("generation_config.json", &|settings| settings["eos_token_id"] = json!([id_of("<|return|>"), id_of("<|call|>")]));
    std::fs::write(Path::new(&model).join("chat_template.jinja"), TEMPLATE).unwrap();
    model
}

/// What makes a random model end its reasoning soon, and write some: it likes the end of a message, and the channel's first letters.
fn thinking(server: &Server) -> Value {
    let first = server.json("/tokenize", &json!({ "content": "analysis" }))["tokens"][0].as_u64().unwrap();
    let mut biases = json!({});
    biases[first.to_string()] = json!(2);
    biases[id_of("<|end|>").to_string()] = json!(6);
    json!({ "logit_bias": biases, "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 1 })
}

fn parameters() -> Value {
    json!({
        "type": "object", "properties": { "colour": { "enum": ["red", "green"] } }, "required": ["colour"], "additionalProperties": false,
    })
}

fn tools() -> Value {
    let tool =
        |name: &str| json!({ "type": "function", "function": { "name": name, "description": "Paints.", "parameters": parameters() } });
    json!([tool("paint"), tool("paint_twice")])
}

#[track_caller]
fn assert_painted(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(value == json!({ "colour": "red" }) || value == json!({ "colour": "green" }), "{text}");
}

/// Whether a message has reasoning, which has no marks.
#[track_caller]
fn has_thought(message: &Value) -> bool {
    let thought = message["reasoning_content"].as_str().unwrap_or_default();
    assert!(!thought.contains("<|"), "{message}");
    !thought.is_empty()
}

#[test]
fn forms_hold_the_final_message_beside_free_reasoning() {
    let home = Home::new();
    let server = Server::start(&home, &harmony_model(&home), &["-c", "512"]);
    let asked = with(with(hello(300), &thinking(&server)), &json!({ "n": 8 }));
    for form in [
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "form", "schema": parameters() } } }),
        json!({ "grammar": "root ::= \"{\\\"colour\\\": \\\"\" (\"red\" | \"green\") \"\\\"}\"" }),
    ] {
        let answer = server.json("/v1/chat/completions", &with(asked.clone(), &form));
        let choices = answer["choices"].as_array().unwrap();
        for choice in choices {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            assert_painted(choice["message"]["content"].as_str().unwrap());
        }
        let n_thought = choices.iter().filter(|choice| has_thought(&choice["message"])).count();
        assert!(n_thought > 0, "{answer}");
    }
    // Any object may be without end, and reasoning may take all the tokens.
    let objects = server.json("/v1/chat/completions", &with(asked, &json!({ "response_format": { "type": "json_object" } })));
    let texts: Vec<&str> =
        objects["choices"].as_array().unwrap().iter().filter_map(|choice| choice["message"]["content"].as_str()).collect();
    assert!(texts.iter().all(|text| text.is_empty() || text.starts_with('{')), "{objects}");
    assert!(texts.iter().any(|text| text.starts_with('{')), "{objects}");
    // In the other APIs, whose answers begin where the form does.
    let message = json!([{ "role": "user", "content": "hello" }]);
    let options = json!({ "temperature": 1.5, "top_k": 0, "seed": 5, "num_predict": 300 });
    let ollama = json!({ "messages": message, "format": parameters(), "stream": false, "options": options });
    let answer = server.json("/api/chat", &ollama);
    if answer["done_reason"] == "stop" {
        assert_painted(answer["message"]["content"].as_str().unwrap());
    }
    // A prompt as it is has no channels: all that follows has the form.
    let raw = json!({ "prompt": "hello", "json_schema": parameters() });
    assert_painted(server.json("/completion", &raw)["content"].as_str().unwrap());
    let raw = json!({ "prompt": "hello", "raw": true, "format": parameters(), "stream": false });
    assert_painted(server.json("/api/generate", &raw)["response"].as_str().unwrap());
}

#[test]
fn a_call_that_is_demanded_comes_in_its_channel_and_keeps_to_its_schema() {
    let home = Home::new();
    let server = Server::start(&home, &harmony_model(&home), &["-c", "512"]);
    let asked = with(with(hello(300), &thinking(&server)), &json!({ "tools": tools(), "n": 8 }));
    let named = json!({ "tool_choice": { "type": "function", "function": { "name": "paint_twice" } } });
    for (choice, names) in [(named.clone(), &["paint_twice"][..]), (json!({ "tool_choice": "required" }), &["paint", "paint_twice"])] {
        let answer = server.json("/v1/chat/completions", &with(asked.clone(), &choice));
        let mut n_thought = 0;
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!((choice["finish_reason"].as_str(), &choice["message"]["content"]), (Some("tool_calls"), &Value::Null), "{choice}");
            let [call] = choice["message"]["tool_calls"].as_array().unwrap().as_slice() else { panic!("{choice}") };
            assert!(names.contains(&call["function"]["name"].as_str().unwrap()), "{call}");
            assert_painted(call["function"]["arguments"].as_str().unwrap());
            n_thought += usize::from(has_thought(&choice["message"]));
        }
        assert!(n_thought > 0, "{answer}");
    }
    let chunks = server.post("/v1/chat/completions", &with(with(asked, &named), &json!({ "n": 1, "stream": true }))).chunks();
    let called: Vec<&Value> = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    let arguments: String = called.iter().filter_map(|part| part["function"]["arguments"].as_str()).collect();
    assert_eq!(called[0]["function"]["name"], "paint_twice");
    assert!(called.len() > 3, "arguments are told as they come: {called:?}");
    assert_painted(&arguments);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    let anthropic = json!({
        "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 400, "temperature": 1,
        "tools": [{ "name": "paint", "input_schema": parameters() }], "tool_choice": { "type": "tool", "name": "paint" },
    });
    let answer = server.json("/v1/messages", &anthropic);
    if answer["stop_reason"] == "tool_use" {
        let block = answer["content"].as_array().unwrap().last().unwrap();
        assert_painted(&block["input"].to_string());
    }
}
