//! Every path that takes a request, and every field that it may have: what hostile values are put into.

use serde_json::{Value, json};

use super::values::Kind::{
    self, Biases, Count, Duration, Flag, Gbnf, Loras, Model, Number, Prompts, Regex, Schema, Text, Texts, Tokens, Word,
};

/// A path with its fields.
pub struct Endpoint {
    pub path: &'static str,
    /// A request that is answered with the same bytes each time, but for ids and times.
    pub plain: Value,
    pub fields: Vec<Field>,
}

/// A field of a request.
pub struct Field {
    /// Its name in the request; empty where it is the request.
    pub name: &'static str,
    /// Its value, in which [`HERE`] stands for the hostile one.
    pub around: Value,
    pub kind: Kind,
}

/// What a hostile value takes the place of.
pub const HERE: &str = "@";

fn is(name: &'static str, kind: Kind) -> Field {
    Field { name, around: json!(HERE), kind }
}

/// A place inside the field `name`.
fn inside(name: &'static str, around: Value, kind: Kind) -> Field {
    Field { name, around, kind }
}

/// Those of servers that generate.
pub fn of_text() -> Vec<Endpoint> {
    let hello = json!([{ "role": "user", "content": "hello" }]);
    let endpoint = |path, plain, fields: Vec<Vec<Field>>| Endpoint { path, plain, fields: fields.into_iter().flatten().collect() };
    vec![
        endpoint(
            "/v1/chat/completions",
            json!({ "messages": hello, "temperature": 0, "max_tokens": 3 }),
            vec![chat(), messages(), common(), sampling(), forms(), tools()],
        ),
        endpoint(
            "/v1/completions",
            json!({ "prompt": "hello", "temperature": 0, "max_tokens": 3 }),
            vec![completions(), common(), sampling(), forms()],
        ),
        endpoint("/v1/responses", json!({ "input": "hello", "temperature": 0, "max_output_tokens": 3 }), vec![responses(), sampling()]),
        endpoint("/v1/messages", json!({ "messages": hello, "temperature": 0, "max_tokens": 3 }), vec![anthropic(), anthropic_prompt()]),
        endpoint("/v1/messages/count_tokens", json!({ "messages": hello }), vec![anthropic_prompt()]),
        endpoint(
            "/api/chat",
            json!({ "messages": hello, "options": { "temperature": 0, "num_predict": 3 }, "stream": false }),
            vec![ollama(), ollama_messages()],
        ),
        endpoint(
            "/api/generate",
            json!({ "prompt": "hello", "options": { "temperature": 0, "num_predict": 3 }, "stream": false }),
            vec![ollama(), ollama_generate()],
        ),
        endpoint("/api/show", json!({ "model": "folder" }), vec![show()]),
        endpoint("/completion", json!({ "prompt": "hello", "temperature": 0, "n_predict": 3 }), vec![llama_cpp(), sampling(), forms()]),
        endpoint("/tokenize", json!({ "content": "hello" }), vec![tokenize()]),
        endpoint(
            "/detokenize",
            json!({ "tokens": [1, 2] }),
            vec![vec![is("tokens", Tokens), inside("tokens", json!([1, HERE]), Tokens), is("model", Model)]],
        ),
        endpoint("/lora-adapters", json!([{ "id": 0, "scale": 0 }]), vec![vec![is("", Loras)], loras("")]),
    ]
}

/// Those of servers that make embeddings.
pub fn of_embeddings() -> Vec<Endpoint> {
    let shared =
        || vec![is("model", Model), is("keep_alive", Duration), is("options", Text), is("truncate", Flag), is("dimensions", Count)];
    let input = |name| vec![is(name, Prompts), inside(name, json!(["hello", HERE]), Prompts), inside(name, json!([[1, HERE]]), Tokens)];
    let openai = || vec![is("encoding_format", Word(&["float", "base64"])), is("dimensions", Count), is("user", Text), is("model", Model)];
    vec![
        Endpoint {
            path: "/v1/embeddings",
            plain: json!({ "input": "hello" }),
            fields: [input("input"), openai()].into_iter().flatten().collect(),
        },
        Endpoint {
            path: "/api/embed",
            plain: json!({ "input": "hello" }),
            fields: [input("input"), shared()].into_iter().flatten().collect(),
        },
        Endpoint {
            path: "/api/embeddings",
            plain: json!({ "prompt": "hello" }),
            fields: [input("prompt"), shared()].into_iter().flatten().collect(),
        },
    ]
}

/// What servers of several models read before a model does.
pub fn of_models() -> Vec<Endpoint> {
    let ask = json!({ "model": "tiny", "prompt": "hello", "options": { "temperature": 0, "num_predict": 3 }, "stream": false });
    let fields = || vec![is("model", Model), is("name", Model), is("keep_alive", Duration)];
    vec![
        Endpoint { path: "/api/generate", plain: ask, fields: fields() },
        Endpoint {
            path: "/v1/completions",
            plain: json!({ "model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 3 }),
            fields: fields(),
        },
        Endpoint { path: "/api/show", plain: json!({ "model": "tiny" }), fields: fields() },
    ]
}

/// Sampling in the words of OpenAI's API and of llama.cpp's server.
fn sampling() -> Vec<Field> {
    let numbers = ["temperature", "top_p", "min_p", "repeat_penalty", "repetition_penalty", "presence_penalty", "frequency_penalty"];
    let numbers = numbers.into_iter().map(|name| is(name, Number));
    let biases =
        [is("logit_bias", Biases), inside("logit_bias", json!({ "5": HERE }), Number), inside("logit_bias", json!([[5, HERE]]), Number)];
    numbers.chain([is("top_k", Count), is("repeat_last_n", Count)]).chain(biases).chain(model_and_loras()).collect()
}

fn model_and_loras() -> Vec<Field> {
    [is("model", Model), is("lora", Loras)].into_iter().chain(loras("lora")).collect()
}

fn loras(name: &'static str) -> Vec<Field> {
    vec![
        inside(name, json!([{ "id": HERE, "scale": 1 }]), Count),
        inside(name, json!([{ "id": 0, "scale": HERE }]), Number),
        inside(name, json!([{ "id": 0, "scale": 1, "more": HERE }]), Text),
    ]
}

/// What chats and completions of OpenAI's API share.
fn common() -> Vec<Field> {
    let ignored = ["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"];
    let ignored = ignored.into_iter().chain(["service_tier", "prediction", "cache_prompt", "no_such_field"]).map(|name| is(name, Text));
    let own = vec![
        is("n", Count),
        is("best_of", Count),
        is("seed", Count),
        is("max_tokens", Count),
        is("max_completion_tokens", Count),
        is("ignore_eos", Flag),
        is("stop", Texts),
        inside("stop", json!(["x", HERE]), Text),
        is("stream", Flag),
        is("stream_options", Text),
        inside("stream_options", json!({ "include_usage": HERE }), Flag),
        inside("stream_options", json!({ "include_obfuscation": HERE }), Flag),
        is("store", Flag),
    ];
    own.into_iter().chain(ignored).collect()
}

/// Forms of answers.
fn forms() -> Vec<Field> {
    let format = |around: Value, kind| inside("response_format", around, kind);
    vec![
        is("grammar", Gbnf),
        is("ebnf", Gbnf),
        is("guided_grammar", Gbnf),
        is("regex", Regex),
        is("guided_regex", Regex),
        is("json_schema", Schema),
        is("guided_json", Schema),
        is("guided_choice", Texts),
        is("guided_decoding_backend", Text),
        is("structured_outputs", Text),
        inside("structured_outputs", json!({ "grammar": HERE }), Gbnf),
        inside("structured_outputs", json!({ "regex": HERE }), Regex),
        inside("structured_outputs", json!({ "json": HERE }), Schema),
        inside("structured_outputs", json!({ "choice": HERE }), Texts),
        inside("structured_outputs", json!({ "json_object": HERE }), Flag),
        is("response_format", Text),
        format(json!({ "type": HERE }), Word(&["text", "json_object", "json_schema", "grammar"])),
        format(json!({ "type": "json_object", "schema": HERE }), Schema),
        format(json!({ "type": "json_schema", "json_schema": HERE }), Schema),
        format(json!({ "type": "json_schema", "json_schema": { "name": HERE, "description": HERE, "strict": HERE } }), Text),
        format(json!({ "type": "json_schema", "json_schema": { "schema": HERE } }), Schema),
        format(json!({ "type": "grammar", "grammar": HERE }), Gbnf),
    ]
}

fn tools() -> Vec<Field> {
    let function = |around: Value, kind| inside("tools", json!([{ "type": "function", "function": around }]), kind);
    vec![
        is("tools", Text),
        inside("tools", json!([HERE]), Text),
        inside("tools", json!([{ "type": HERE, "function": { "name": "f" } }]), Word(&["function", "custom"])),
        inside("tools", json!([{ "type": "function", "function": HERE }]), Text),
        function(json!({ "name": HERE }), Text),
        function(json!({ "name": "f", "description": HERE }), Text),
        function(json!({ "name": "f", "parameters": HERE }), Schema),
        function(json!({ "name": "f", "parameters": { "type": "object", "properties": { "a": HERE }, "required": ["a"] } }), Schema),
        function(json!({ "name": "f", "strict": HERE }), Flag),
        is("tool_choice", Word(&["auto", "none", "required"])),
        inside("tool_choice", json!({ "type": HERE, "function": { "name": "f" } }), Word(&["function"])),
        inside("tool_choice", json!({ "type": "function", "function": HERE }), Text),
        inside("tool_choice", json!({ "type": "function", "function": { "name": HERE } }), Text),
        is("parallel_tool_calls", Flag),
        is("functions", Text),
        is("function_call", Word(&["none", "auto"])),
    ]
}

fn chat() -> Vec<Field> {
    vec![
        is("reasoning_effort", Word(&["none", "minimal", "low", "medium", "high"])),
        is("chat_template_kwargs", Text),
        inside(
            "chat_template_kwargs",
            json!({ "enable_thinking": HERE, "messages": HERE, "tools": HERE, "documents": HERE, "add_generation_prompt": HERE }),
            Text,
        ),
        is("web_search_options", Text),
        is("audio", Text),
        is("modalities", Texts),
        is("verbosity", Word(&["low", "medium", "high"])),
        is("logprobs", Flag),
        is("top_logprobs", Count),
    ]
}

/// Messages in OpenAI's form.
fn messages() -> Vec<Field> {
    let message = |around: Value, kind| inside("messages", json!([around]), kind);
    let call = |around: Value, kind| {
        let called = json!({ "role": "assistant", "tool_calls": [around] });
        inside("messages", json!([{ "role": "user", "content": "x" }, called, { "role": "tool", "content": "y" }]), kind)
    };
    vec![
        is("messages", Text),
        message(json!(HERE), Text),
        message(json!({ "role": HERE, "content": "x" }), Word(&["system", "developer", "user", "assistant", "tool"])),
        message(json!({ "role": "user", "content": HERE }), Text),
        message(json!({ "role": "user", "content": [HERE] }), Text),
        message(json!({ "role": "user", "content": [{ "type": HERE, "text": "x" }] }), Word(&["text", "image_url", "input_audio"])),
        message(json!({ "role": "user", "content": [{ "type": "text", "text": HERE }] }), Text),
        message(
            json!({ "role": "user", "content": [{ "type": "text", "text": "x", "annotations": HERE, "cache_control": HERE, "citations": HERE, "logprobs": HERE }] }),
            Text,
        ),
        message(json!({ "role": "user", "content": "x", "name": HERE }), Text),
        message(json!({ "role": "tool", "content": "x", "tool_call_id": HERE }), Text),
        message(json!({ "role": "assistant", "content": "x", "reasoning_content": HERE }), Text),
        message(json!({ "role": "assistant", "content": "x", "reasoning": HERE }), Text),
        message(json!({ "role": "assistant", "content": "x", "refusal": HERE, "annotations": HERE }), Text),
        message(json!({ "role": "assistant", "tool_calls": HERE }), Text),
        call(json!(HERE), Text),
        call(json!({ "id": HERE, "type": "function", "function": { "name": "f" } }), Text),
        call(json!({ "type": HERE, "function": { "name": "f" } }), Word(&["function"])),
        call(json!({ "type": "function", "function": HERE }), Text),
        call(json!({ "type": "function", "function": { "name": HERE, "index": HERE }, "index": HERE }), Text),
        call(json!({ "type": "function", "function": { "name": "f", "arguments": HERE } }), Text),
    ]
}

fn completions() -> Vec<Field> {
    vec![
        is("prompt", Prompts),
        inside("prompt", json!(["hello", HERE]), Prompts),
        inside("prompt", json!([[1, HERE]]), Tokens),
        is("suffix", Text),
        is("echo", Flag),
        is("logprobs", Count),
    ]
}

fn responses() -> Vec<Field> {
    let item = |around: Value, kind| inside("input", json!([{ "role": "user", "content": "x" }, around]), kind);
    let tool = |around: Value, kind| inside("tools", json!([around]), kind);
    let harmless =
        ["metadata", "user", "store", "include", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];
    let refused = ["previous_response_id", "conversation", "prompt", "background", "top_logprobs", "max_tool_calls", "stream_options"];
    let plain = harmless.into_iter().chain(refused).chain(["no_such_field"]).map(|name| is(name, Text));
    let own = vec![
        is("input", Text),
        item(json!(HERE), Text),
        item(
            json!({ "type": HERE, "content": "x", "role": "user" }),
            Word(&["message", "function_call", "function_call_output", "reasoning"]),
        ),
        item(json!({ "role": HERE, "content": "x" }), Word(&["system", "developer", "user", "assistant", "tool"])),
        item(json!({ "role": "user", "content": HERE, "id": HERE, "status": HERE, "phase": HERE }), Text),
        item(json!({ "role": "user", "content": [{ "type": HERE, "text": "x" }] }), Word(&["input_text", "output_text", "input_image"])),
        item(json!({ "role": "user", "content": [{ "type": "input_text", "text": HERE }] }), Text),
        item(json!({ "type": "function_call", "name": HERE, "arguments": HERE, "call_id": HERE }), Text),
        item(json!({ "type": "function_call", "name": "f", "arguments": HERE, "call_id": "c" }), Text),
        item(json!({ "type": "function_call_output", "call_id": HERE, "output": "x" }), Text),
        item(json!({ "type": "function_call_output", "call_id": "c", "output": HERE }), Text),
        item(json!({ "type": "reasoning", "summary": HERE, "content": HERE, "encrypted_content": HERE }), Text),
        is("instructions", Text),
        is("max_output_tokens", Count),
        is("stream", Flag),
        is("truncation", Word(&["auto", "disabled"])),
        is("text", Text),
        inside("text", json!({ "verbosity": HERE }), Word(&["low", "medium", "high"])),
        inside("text", json!({ "format": HERE }), Text),
        inside("text", json!({ "format": { "type": HERE } }), Word(&["text", "json_object", "json_schema", "grammar"])),
        inside("text", json!({ "format": { "type": "json_schema", "schema": HERE } }), Schema),
        inside(
            "text",
            json!({ "format": { "type": "grammar", "grammar": HERE, "name": HERE, "description": HERE, "strict": HERE } }),
            Gbnf,
        ),
        is("reasoning", Text),
        inside("reasoning", json!({ "effort": HERE }), Word(&["none", "minimal", "low", "medium", "high"])),
        inside("reasoning", json!({ "summary": HERE, "generate_summary": HERE }), Text),
        is("tools", Text),
        tool(json!(HERE), Text),
        tool(json!({ "type": HERE, "name": "f" }), Word(&["function", "web_search"])),
        tool(json!({ "type": "function", "name": HERE, "description": HERE }), Text),
        tool(json!({ "type": "function", "name": "f", "parameters": HERE }), Schema),
        tool(json!({ "type": "function", "name": "f", "strict": HERE }), Flag),
        is("tool_choice", Word(&["auto", "none", "required"])),
        inside("tool_choice", json!({ "type": HERE, "name": HERE }), Word(&["function"])),
        is("parallel_tool_calls", Flag),
    ];
    own.into_iter().chain(plain).collect()
}

fn anthropic() -> Vec<Field> {
    let ignored = ["metadata", "service_tier", "inference_geo", "diagnostics"].into_iter().map(|name| is(name, Text));
    let numbers = ["temperature", "top_p"].into_iter().map(|name| is(name, Number));
    let own = [is("max_tokens", Count), is("top_k", Count), is("stop_sequences", Texts), is("stream", Flag), is("lora", Loras)];
    own.into_iter().chain(numbers).chain(ignored).collect()
}

/// What makes the prompt of Anthropic's requests.
fn anthropic_prompt() -> Vec<Field> {
    let message = |around: Value, kind| inside("messages", json!([around, { "role": "user", "content": "x" }]), kind);
    let block = |around: Value, kind| message(json!({ "role": "assistant", "content": [around] }), kind);
    let tool = |around: Value, kind| inside("tools", json!([around]), kind);
    let refused = ["mcp_servers", "container", "context_management", "output_config", "output_format"];
    let ignored = ["cache_control", "speed", "user_profile_id", "workspace_id", "no_such_field"];
    let plain = refused.into_iter().chain(ignored).map(|name| is(name, Text));
    let own = vec![
        is("model", Model),
        is("system", Text),
        inside("system", json!([{ "type": "text", "text": HERE }]), Text),
        is("messages", Text),
        message(json!(HERE), Text),
        message(json!({ "role": HERE, "content": "x" }), Word(&["user", "assistant", "system"])),
        message(json!({ "role": "user", "content": HERE }), Text),
        block(json!(HERE), Text),
        block(json!({ "type": HERE, "text": "x" }), Word(&["text", "image", "thinking", "redacted_thinking", "tool_use", "tool_result"])),
        block(json!({ "type": "text", "text": HERE }), Text),
        block(json!({ "type": "thinking", "thinking": HERE }), Text),
        block(json!({ "type": "tool_use", "id": HERE, "name": HERE, "input": {} }), Text),
        block(json!({ "type": "tool_use", "id": "t", "name": "f", "input": HERE }), Text),
        block(json!({ "type": "tool_result", "tool_use_id": HERE, "content": "x" }), Text),
        block(json!({ "type": "tool_result", "tool_use_id": "t", "content": HERE }), Text),
        is("tools", Text),
        tool(json!(HERE), Text),
        tool(json!({ "type": HERE, "name": "f", "input_schema": {} }), Word(&["custom", "web_search_20250305"])),
        tool(json!({ "name": HERE, "description": HERE, "input_schema": {} }), Text),
        tool(json!({ "name": "f", "input_schema": HERE }), Schema),
        tool(json!({ "name": "f", "input_schema": {}, "cache_control": HERE, "strict": HERE, "input_examples": HERE }), Text),
        is("tool_choice", Text),
        inside("tool_choice", json!({ "type": HERE, "name": HERE }), Word(&["auto", "any", "none", "tool"])),
        inside("tool_choice", json!({ "type": "auto", "disable_parallel_tool_use": HERE }), Flag),
        is("thinking", Text),
        inside("thinking", json!({ "type": HERE }), Word(&["enabled", "disabled", "adaptive"])),
        inside("thinking", json!({ "type": "enabled", "budget_tokens": HERE, "display": HERE }), Count),
    ];
    own.into_iter().chain(plain).collect()
}

/// What both of Ollama's paths that generate may have.
fn ollama() -> Vec<Field> {
    let option = |name: &str, kind| {
        let mut options = json!({ "num_predict": 3 });
        options[name] = json!(HERE);
        inside("options", options, kind)
    };
    let numbers = ["temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "tfs_z", "typical_p"];
    let numbers = numbers.into_iter().map(|name| option(name, Number));
    let counts = ["num_ctx", "num_predict", "repeat_last_n", "top_k", "seed", "mirostat", "no_such_option"]
        .into_iter()
        .map(|name| option(name, Count));
    let own = vec![
        is("stream", Flag),
        is("think", Word(&["low", "medium", "high"])),
        is("format", Schema),
        is("logprobs", Flag),
        inside("logprobs", json!(true), Flag),
        is("top_logprobs", Count),
        is("options", Text),
        option("stop", Texts),
        is("keep_alive", Duration),
        is("no_such_field", Text),
    ];
    own.into_iter().chain(numbers).chain(counts).chain(model_and_loras()).collect()
}

fn ollama_messages() -> Vec<Field> {
    let message = |around: Value, kind| inside("messages", json!([around]), kind);
    let called =
        |around: Value| json!([{ "role": "user", "content": "x" }, { "role": "assistant", "content": "", "tool_calls": [around] }]);
    vec![
        is("messages", Text),
        message(json!(HERE), Text),
        message(json!({ "role": HERE, "content": "x" }), Word(&["system", "user", "assistant", "tool"])),
        message(json!({ "role": "user", "content": HERE }), Text),
        message(json!({ "role": "user", "content": "x", "images": HERE }), Texts),
        message(json!({ "role": "assistant", "content": "x", "thinking": HERE }), Text),
        message(json!({ "role": "tool", "content": "x", "tool_name": HERE }), Text),
        inside("messages", called(json!(HERE)), Text),
        inside("messages", called(json!({ "function": { "name": HERE, "arguments": HERE } })), Text),
        inside("messages", called(json!({ "function": { "name": "f", "arguments": HERE } })), Text),
        is("tools", Text),
        inside("tools", json!([{ "type": "function", "function": { "name": "f", "parameters": HERE } }]), Schema),
    ]
}

fn ollama_generate() -> Vec<Field> {
    ["prompt", "system", "suffix", "template", "context", "images"]
        .into_iter()
        .map(|name| is(name, Text))
        .chain([is("raw", Flag)])
        .collect()
}

fn show() -> Vec<Field> {
    vec![is("model", Model), is("name", Model), is("verbose", Flag)]
}

fn llama_cpp() -> Vec<Field> {
    let plain = ["cache_prompt", "id_slot", "n_keep", "no_such_field"].into_iter().map(|name| is(name, Count));
    let own = vec![
        is("prompt", Text),
        is("n_predict", Count),
        is("ignore_eos", Flag),
        is("stop", Texts),
        is("n_probs", Count),
        is("seed", Count),
        is("stream", Flag),
    ];
    own.into_iter().chain(plain).collect()
}

fn tokenize() -> Vec<Field> {
    let flags = ["add_special", "parse_special", "with_pieces"].into_iter().map(|name| is(name, Flag));
    [is("content", Text), is("model", Model)].into_iter().chain(flags).collect()
}
