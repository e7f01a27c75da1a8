//! OpenAI's API of responses: items of output, whole and in events.

use serde_json::{Value, json};

use super::client::Server;
use super::{hello, with};
use crate::common::program::Home;

/// The text of a response's only message.
#[track_caller]
fn text(response: &Value) -> &str {
    let [item] = response["output"].as_array().unwrap().as_slice() else { panic!("{response}") };
    assert_eq!(
        (&item["type"], &item["role"], &item["content"][0]["type"]),
        (&json!("message"), &json!("assistant"), &json!("output_text"))
    );
    item["content"][0]["text"].as_str().unwrap()
}

/// The events of a stream; their numbers count up.
#[track_caller]
fn events(server: &Server, asked: &Value) -> Vec<Value> {
    let reply = server.post("/v1/responses", asked);
    let events: Vec<Value> = reply.events().into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(events.iter().zip(0..).all(|(event, number)| event["sequence_number"] == number), "{events:?}");
    events
}

#[test]
fn a_response_is_the_chats_answer() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &[]);
    let chat = server.json("/v1/chat/completions", &hello(12));
    let expected = chat["choices"][0]["message"]["content"].as_str().unwrap();
    let asked = json!({ "input": "hello", "temperature": 0, "max_output_tokens": 12, "metadata": { "a": "b" }, "store": true });
    let response = server.json("/v1/responses", &asked);
    assert_eq!(text(&response), expected);
    assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!((&response["temperature"], &response["metadata"]["a"], &response["store"]), (&json!(0.0), &json!("b"), &json!(false)));
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(response["usage"]["output_tokens"], 12);
    // The same as items, with instructions in place of a system message.
    let items = json!([{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "hello" }] }]);
    assert_eq!(text(&server.json("/v1/responses", &with(asked.clone(), &json!({ "input": items })))), expected);
    let told = with(hello(12), &json!({ "messages": [{ "role": "system", "content": "Short." }, { "role": "user", "content": "hello" }] }));
    let told = server.json("/v1/chat/completions", &told)["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&server.json("/v1/responses", &with(asked.clone(), &json!({ "instructions": "Short." })))), told);

    let events = events(&server, &with(asked, &json!({ "stream": true })));
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..4], ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]);
    let end = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"];
    assert_eq!(kinds[kinds.len() - 4..], end);
    let said: String =
        events.iter().filter(|event| event["type"] == "response.output_text.delta").map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(said, expected);
    assert_eq!(text(&events.last().unwrap()["response"]), expected);
}

#[test]
fn calls_are_items_and_their_results_come_back() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "1024"]);
    let parameters =
        json!({ "type": "object", "properties": { "on": { "type": "boolean" } }, "required": ["on"], "additionalProperties": false });
    let tool = json!({ "type": "function", "name": "switch", "description": "Switches.", "parameters": parameters, "strict": true });
    let named = json!({ "type": "function", "name": "switch" });
    let asked = json!({ "input": "hello", "tools": [tool], "tool_choice": named, "parallel_tool_calls": false, "max_output_tokens": 300 });
    let response = server.json("/v1/responses", &asked);
    assert_eq!((&response["status"], &response["tools"][0]["name"]), (&json!("completed"), &json!("switch")));
    let [call] = response["output"].as_array().unwrap().as_slice() else { panic!("{response}") };
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("switch")));
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["on"].is_boolean(), "{call}");
    let events = events(&server, &with(asked.clone(), &json!({ "stream": true })));
    let done = events.iter().find(|event| event["type"] == "response.function_call_arguments.done").unwrap_or_else(|| panic!("{events:?}"));
    assert!(serde_json::from_str::<Value>(done["arguments"].as_str().unwrap()).unwrap()["on"].is_boolean(), "{done}");
    assert_eq!(events.last().unwrap()["type"], "response.completed");
    let items = json!([
        { "role": "user", "content": "hello" },
        call,
        { "type": "function_call_output", "call_id": call["call_id"], "output": "done" },
    ]);
    let after = json!({ "input": items, "tools": [tool], "max_output_tokens": 2 });
    assert_eq!(server.json("/v1/responses", &after)["usage"]["output_tokens"], 2);
}

#[test]
fn a_form_is_kept_and_what_is_not_supported_refused() {
    let home = Home::new();
    let server = Server::start(&home, &home.folder_model(), &["-c", "512"]);
    let schema =
        json!({ "type": "object", "properties": { "on": { "type": "boolean" } }, "required": ["on"], "additionalProperties": false });
    let format = json!({ "format": { "type": "json_schema", "name": "form", "schema": schema, "strict": true } });
    let response = server.json("/v1/responses", &json!({ "input": "hello", "text": format, "max_output_tokens": 200 }));
    assert!(serde_json::from_str::<Value>(text(&response)).unwrap()["on"].is_boolean(), "{response}");
    for (more, words) in [
        (json!({ "input": null }), "input"),
        (json!({ "input": 1 }), "input"),
        (json!({ "input": [{ "type": "image" }] }), "input[0].type"),
        (json!({ "input": [{ "role": "user" }] }), "input[0].content"),
        (json!({ "previous_response_id": "resp_1" }), "previous_response_id"),
        (json!({ "background": true }), "background"),
        (json!({ "truncation": "auto" }), "truncation"),
        (json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type"),
        (json!({ "text": { "format": { "type": "xml" } } }), "text.format.type"),
        (json!({ "reasoning": { "effort": "most" } }), "reasoning.effort"),
        (json!({ "no_such_field": 1 }), "no_such_field"),
    ] {
        let reply = server.post("/v1/responses", &with(json!({ "input": "hello", "max_output_tokens": 2 }), &more));
        assert!(reply.status == 400 && reply.json()["error"]["message"].as_str().unwrap().contains(words), "{words}: {reply:?}");
    }
}
