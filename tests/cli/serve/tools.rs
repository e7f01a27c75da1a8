//! Tools: what the model is told of them, when it must call, and how calls come back in each API.

use serde_json::{Value, json};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

/// A tool of which every call ends, even a random model's.
fn tool() -> Value {
    json!({
        "type": "function",
        "function": { "name": "paint", "description": "Paints.", "parameters": parameters() },
    })
}

fn parameters() -> Value {
    json!({
        "type": "object",
        "properties": { "colour": { "$ref": "#/$defs/colour" }, "twice": { "type": "boolean" } },
        "required": ["colour", "twice"],
        "additionalProperties": false,
        "$defs": { "colour": { "enum": ["red", "green"] } },
    })
}

#[track_caller]
fn assert_painted(arguments: &Value) {
    let fields = arguments.as_object().unwrap_or_else(|| panic!("{arguments}"));
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["colour", "twice"]);
    assert!((arguments["colour"] == "red" || arguments["colour"] == "green") && arguments["twice"].is_boolean(), "{arguments}");
}

/// The calls of a message in OpenAI's form.
#[track_caller]
fn calls(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().unwrap_or_else(|| panic!("{message}"));
    calls
        .iter()
        .map(|call| {
            assert!(call["type"] == "function" && call["id"].as_str().is_some_and(|id| id.len() == 9), "{call}");
            let arguments = call["function"]["arguments"].as_str().unwrap();
            (call["function"]["name"].as_str().unwrap().to_owned(), serde_json::from_str(arguments).unwrap())
        })
        .collect()
}

#[test]
fn a_call_that_is_demanded_comes_and_keeps_to_its_schema() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "1024"]);
    let other = json!({ "type": "function", "function": { "name": "other" } });
    let asked =
        with(hello(300), &json!({ "tools": [tool(), other], "parallel_tool_calls": false, "temperature": 1.5, "top_k": 0, "seed": 3 }));
    let named = json!({ "tool_choice": { "type": "function", "function": { "name": "paint" } } });
    let answer = server.json("/v1/chat/completions", &with(asked.clone(), &named));
    let choice = &answer["choices"][0];
    assert_eq!((choice["finish_reason"].as_str(), &choice["message"]["content"]), (Some("tool_calls"), &Value::Null));
    let called = calls(&choice["message"]);
    assert_eq!(called.len(), 1);
    assert_eq!(called[0].0, "paint");
    assert_painted(&called[0].1);
    // The same in a stream.
    let chunks = server.post("/v1/chat/completions", &with(with(asked.clone(), &named), &json!({ "stream": true }))).chunks();
    let streamed: Vec<&Value> = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    assert_eq!((&streamed[0]["index"], &streamed[0]["function"]["name"]), (&json!(0), &json!("paint")));
    // Its arguments come as they are generated.
    assert!(streamed.len() > 3 && streamed[1..].iter().all(|part| part["index"] == 0 && part.get("id").is_none()), "{streamed:?}");
    let arguments: String = streamed.iter().map(|part| part["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), called[0].1);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    // Of several tools, any.
    let any = server.json("/v1/chat/completions", &with(asked, &json!({ "tool_choice": "required" })));
    let name = &calls(&any["choices"][0]["message"])[0].0;
    assert!(name == "paint" || name == "other", "{any}");
}

#[test]
fn every_api_tells_calls_in_its_own_form() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "1024"]);
    let message = json!([{ "role": "user", "content": "hello" }]);
    let anthropic = json!({
        "messages": message, "max_tokens": 300, "tools": [{ "name": "paint", "description": "Paints.", "input_schema": parameters() }],
        "tool_choice": { "type": "tool", "name": "paint", "disable_parallel_tool_use": true },
    });
    let answer = server.json("/v1/messages", &anthropic);
    assert_eq!(answer["stop_reason"], "tool_use");
    let [block] = answer["content"].as_array().unwrap().as_slice() else { panic!("{answer}") };
    assert!(block["type"] == "tool_use" && block["name"] == "paint" && block["id"].is_string(), "{block}");
    assert_painted(&block["input"]);
    let reply = server.post("/v1/messages", &with(anthropic.clone(), &json!({ "stream": true })));
    let events: Vec<Value> = reply.events().into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let of = |kind: &str| events.iter().find(|event| event["type"] == kind).unwrap_or_else(|| panic!("{kind}: {events:?}"));
    assert_eq!(of("content_block_start")["content_block"]["name"], "paint");
    assert_eq!(of("message_delta")["delta"]["stop_reason"], "tool_use");
    let parts: Vec<&str> = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert!(parts.len() > 3, "{parts:?}");
    assert_painted(&serde_json::from_str(&parts.concat()).unwrap());
    // What is cut in the midst of a call is no text.
    let cut = server.post("/v1/messages", &with(anthropic.clone(), &json!({ "stream": true, "max_tokens": 64 })));
    let events: Vec<Value> = cut.events().into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(events.iter().all(|event| event["delta"].get("text").is_none()), "{events:?}");
    assert!(events.iter().any(|event| event["delta"]["stop_reason"] == "max_tokens"), "{events:?}");
    assert!(
        server.json("/v1/messages/count_tokens", &json!({ "messages": message, "tools": anthropic["tools"] }))["input_tokens"].as_u64()
            > Some(50)
    );
    // The result goes back.
    let result = json!([
        { "role": "user", "content": "hello" },
        { "role": "assistant", "content": answer["content"] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": block["id"], "content": [{ "type": "text", "text": "done" }] }] },
    ]);
    let after = json!({ "messages": result, "max_tokens": 2, "tools": anthropic["tools"] });
    assert_eq!(server.json("/v1/messages", &after)["usage"]["output_tokens"], 2);
    let ollama = json!({
        "messages": [
            { "role": "user", "content": "hello" },
            { "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "paint", "arguments": { "colour": "red" } } }] },
            { "role": "tool", "content": "done", "tool_name": "paint" },
        ],
        "tools": [tool()], "stream": false, "options": { "num_predict": 2 },
    });
    assert_eq!(server.json("/api/chat", &ollama)["eval_count"], 2);
}

#[test]
fn the_model_is_told_of_tools_and_of_what_they_gave() {
    let home = Home::new();
    let model = home.folder_model();
    // A template that writes tools, calls and results, in Qwen's form; the tokens of a prompt tell what it wrote.
    let template = "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}{% for m in messages %}[{{ m.role }}]\
                    {{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments.colour }}</tool_call>{% endfor %}{% endfor %}[assistant]";
    std::fs::write(std::path::Path::new(&model).join("chat_template.jinja"), template).unwrap();
    let server = Server::start(&home, &model, &["-c", "1024"]);
    let messages = json!([
        { "role": "user", "content": "hello" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "paint", "arguments": "{\"colour\": \"red\"}" } },
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "done" },
    ]);
    let n_prompt = |more: Value| {
        let asked = with(json!({ "messages": messages, "max_tokens": 1, "temperature": 0 }), &more);
        server.json("/v1/chat/completions", &asked)["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let n_tokens = |text: &str| {
        server.json("/tokenize", &json!({ "content": text, "parse_special": false }))["tokens"].as_array().unwrap().len() as u64
    };
    let conversation = "[user]hello[assistant]<tool_call>paint red</tool_call>[tool]done[assistant]";
    let plain = n_prompt(json!({}));
    assert!(plain.abs_diff(n_tokens(conversation)) <= 1, "{plain}");
    let tools = json!([tool()]);
    assert!(n_prompt(json!({ "tools": tools })) > plain + 100);
    assert_eq!(n_prompt(json!({ "tools": tools, "tool_choice": "none" })), plain);
}

#[test]
fn what_is_no_tool_is_refused_by_name() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let named = |name: &str| json!([{ "type": "function", "function": { "name": name } }]);
    for (more, words) in [
        (json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type"),
        (json!({ "tools": [{ "type": "function" }] }), "tools[0].function"),
        (json!({ "tools": named("no spaces") }), "tools[0].function.name"),
        (json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": [] } }] }), "tools[0].function.parameters"),
        (json!({ "tools": vec![named("f")[0].clone(); 129] }), "128"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "tools": named("f"), "tool_choice": "always" }), "tool_choice"),
        (json!({ "tools": named("f"), "tool_choice": { "type": "function", "function": { "name": "g" } } }), "tool_choice"),
        (json!({ "tools": named("f"), "response_format": { "type": "json_object" } }), "tools"),
        (json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "type": "function" }] }] }), "messages[0].tool_calls[0].function"),
    ] {
        let reply = server.post("/v1/chat/completions", &with(hello(2), &more));
        assert!(reply.status == 400 && reply.json()["error"]["message"].as_str().unwrap().contains(words), "{words}: {reply:?}");
    }
}
