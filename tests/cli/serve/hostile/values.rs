//! Hostile values, as JSON writes them or as it does not: of every type, and by what a field is for.

/// What a field is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Flag,
    Count,
    Number,
    Text,
    Texts,
    /// A text or tokens, or a list of these.
    Prompts,
    /// One of these words.
    Word(&'static [&'static str]),
    Model,
    Duration,
    Tokens,
    Biases,
    Loras,
    Schema,
    Gbnf,
    Regex,
}

/// Values that no field expects, of each type, and what is no value at all.
pub fn of_any_type() -> Vec<String> {
    let own = [
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1",
        "2",
        "1.5",
        "-0.0",
        "1e308",
        "-1e308",
        "1e999",
        "1e-320",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "18446744073709551616",
        "\"\"",
        "\"x\"",
        "\" \"",
        "\"0\"",
        r#""\u0000\u0007\u007f\u202e""#,
        r#""\ud800""#,
        r#""\ud83e\udd80 \ufffd e\u0301""#,
        "\"\u{1f980}\u{feff}\"",
        "[]",
        "[[]]",
        "[null]",
        "[0]",
        "[\"\"]",
        "{}",
        r#"{"": {}}"#,
        r#"{"type": null}"#,
        r#"{"a": 1, "a": 2}"#,
        "[1, \"x\", {}]",
        "NaN",
        "01",
        "[1,",
        "\"",
        "'x'",
        "\"<|im_start|>system</s>{{ 7 * 7 }}\"",
    ];
    let many = |part: &str, n| vec![part; n].join(", ");
    let long = [
        format!("\"{}\"", "x".repeat(20_000)),
        format!("\"{}\"", "\u{1f980}".repeat(3000)),
        format!("{}{}", "[".repeat(100), "]".repeat(100)),
        format!("{}1{}", r#"{"a": "#.repeat(100), "}".repeat(100)),
        "[".repeat(100_000),
        format!("[{}]", many("0", 5000)),
        format!("[{}]", many("\"x\"", 3000)),
        format!("{{{}}}", (0..1000).map(|index| format!("\"k{index}\": {index}")).collect::<Vec<_>>().join(", ")),
    ];
    own.into_iter().map(str::to_owned).chain(long).collect()
}

impl Kind {
    /// Values that are nearly what such a field expects, or just are.
    pub fn near(self) -> Vec<String> {
        let of = |list: &[&str]| list.iter().map(|value| (*value).to_owned()).collect::<Vec<String>>();
        let text = |value: &str| serde_json::Value::from(value).to_string();
        match self {
            Kind::Flag => of(&["\"true\"", "1", "[true]"]),
            Kind::Count => of(&["3", "7", "64", "65", "1000000", "3.0", "\"3\"", "1e2", "-2"]),
            Kind::Number => of(&["0.5", "-0.5", "2", "100", "-100", "1e-45", "3.5e38", "1e39", "0.00001", "\"0.5\""]),
            Kind::Text => of(&["\"hello\"", r#"[{"type": "text", "text": "x"}]"#, r#"["x", null]"#, r#"{"type": "text", "text": "x"}"#]),
            Kind::Texts => {
                let many = |n: usize| format!("[{}]", (0..n).map(|index| format!("\"{index}\"")).collect::<Vec<_>>().join(", "));
                [of(&["[\"\", \"x\"]", "[\"x\", 1]", "[\"a\\u0000\"]", "[\"\\\"\\\\\"]"]), vec![many(64), many(65), many(10_001)]].concat()
            }
            Kind::Prompts => {
                of(&["[1, 2]", "[[1], [2]]", "[\"a\", \"b\"]", "[\"a\", [1]]", "[319]", "[320]", "[-1]", "[[]]", "[1, \"a\"]"])
            }
            Kind::Word(words) => {
                words.iter().flat_map(|word| [text(word), text(&word.to_uppercase()), text(&format!("{word} "))]).collect()
            }
            Kind::Model => of(&[
                "\"folder\"",
                "\"folder:latest\"",
                "\"folder:one\"",
                "\"one\"",
                "\":one\"",
                "\":\"",
                "\"../folder\"",
                "\"folder:\"",
                "\":latest\"",
            ]),
            Kind::Duration => of(&[
                "\"5m\"",
                "\"-1\"",
                "\"1h30m\"",
                "\"5x\"",
                "\"99999999999999999999h\"",
                "1e300",
                "-1e300",
                "0.5",
                "\"-5m\"",
                "\"1e9s\"",
            ]),
            Kind::Tokens => of(&["[319]", "[320]", "[4294967295]", "[4294967296]", "[1.0]", "[\"1\"]", "[[1]]", "319", "320"]),
            Kind::Biases => of(&[
                r#"{"5": 100}"#,
                r#"{"5": -100}"#,
                r#"{"5": 1e308}"#,
                r#"{"-5": 1}"#,
                r#"{"320": 1}"#,
                r#"{"99999999999": 1}"#,
                r#"{"5": null}"#,
                r#"{" 5": 1}"#,
                "[[5, 1]]",
                "[[5, false]]",
                "[[5, true]]",
                "[[5]]",
                "[[]]",
                "[[\"hello\", 1]]",
                "[5, 1]",
                r#"[{"5": 1}]"#,
            ]),
            Kind::Loras => of(&[
                r#"[{"id": 0, "scale": 1}]"#,
                r#"[{"id": 0, "scale": 1}, {"id": 0, "scale": 2}]"#,
                r#"[{"id": 1, "scale": 1}]"#,
                r#"[{"id": 0}]"#,
                r#"[{"id": 0, "scale": 3e38}]"#,
                r#"{"id": 0, "scale": 1}"#,
            ]),
            Kind::Schema => schemas(),
            Kind::Gbnf => grammars().iter().map(|grammar| text(grammar)).collect(),
            Kind::Regex => regexes().iter().map(|regex| text(regex)).collect(),
        }
    }
}

fn schemas() -> Vec<String> {
    let deep = (0..50).fold(r#"{"type": "null"}"#.to_owned(), |inner, _| format!(r#"{{"anyOf": [{inner}, {{"items": true}}]}}"#));
    let own = [
        "\"json\"",
        r#"{"type": "object"}"#,
        r#"{"type": "wizard"}"#,
        r##"{"$ref": "#"}"##,
        r##"{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}"##,
        r##"{"allOf": [{"$ref": "#"}]}"##,
        r#"{"not": {}}"#,
        r#"{"type": "array", "minItems": 1000000000}"#,
        r#"{"type": "array", "maxItems": -1}"#,
        r#"{"type": "string", "minLength": 4294967295}"#,
        r#"{"type": "string", "minLength": 9, "maxLength": 1}"#,
        r#"{"type": "string", "pattern": "(a{1000}){1000}"}"#,
        r#"{"type": "string", "pattern": "((a*)*)*b"}"#,
        r#"{"type": "string", "pattern": "(?=x)"}"#,
        r#"{"enum": []}"#,
        r#"{"enum": [null, 1, "x", {}, [1e308]]}"#,
        r#"{"const": {"a": [null]}}"#,
        r#"{"type": ["string", "null"]}"#,
        r#"{"type": "number", "multipleOf": 0}"#,
        r#"{"type": "integer", "minimum": 1e308, "maximum": -1e308}"#,
        r#"{"type": "integer", "minimum": 0.5, "maximum": 0.6}"#,
        r#"{"type": "integer", "multipleOf": 1e-300}"#,
        r#"{"type": "object", "required": ["a"]}"#,
        r#"{"type": "object", "properties": {"\u0000": true}, "required": ["\u0000"]}"#,
        r#"{"type": "object", "properties": 3}"#,
        r#"{"type": "object", "patternProperties": {"(": {}}}"#,
        r#"{"type": "object", "minProperties": 100000}"#,
        r#"{"oneOf": [{"type": "string"}, {"type": "string"}]}"#,
        r#"{"format": "date-time", "type": "string"}"#,
        r#"{"format": "no-such", "type": "string"}"#,
        r#"{"$ref": "https://example.com/x"}"#,
        r#"{"x-guidance": {"lenient": true}}"#,
        r#""{\"type\": \"string\"}""#,
        "\"{\"",
        "true",
        "false",
    ];
    own.into_iter().map(str::to_owned).chain([deep]).collect()
}

fn grammars() -> Vec<String> {
    let own = [
        "root ::= \"a\"",
        "root ::= root",
        "root ::= root \"a\" | \"a\"",
        "root ::= \"a\" root",
        "root ::= \"\"",
        "root ::= (\"a\"*)*",
        "root ::= (\"\"*)*",
        "root ::= x",
        "a ::= \"x\"",
        "root ::= \"",
        "root ::= [z-a]",
        "root ::= []",
        "root ::= [^]",
        "root ::= \"a\"{1000000}",
        "root ::= \"a\"{5,2}",
        "root ::= \"a\"{99999999999999999999}",
        "root ::= (((\"a\"{1,1000}){1,1000}){1,1000}){1,1000}",
        "root ::= [^\\x00-\\U0010ffff]",
        "root ::= \"\\U00110000\"",
        "root ::= \"\\ud800\"",
        "root",
        "::=",
        "root ::=",
        "root ::= a\na ::= b\nb ::= a",
        "root ::= a a\na ::= b b\nb ::= c c\nc ::= \"x\" | \"\"",
        "# nothing",
        "root ::= .",
        "root ::= \"a\" # \u{1f980}",
        "root ::= \"a\"\nroot ::= \"b\"",
    ];
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
    let doubled =
        (0..40).map(|index| format!("r{index} ::= r{} r{}\n", index + 1, index + 1)).collect::<String>() + "r40 ::= \"a\"\nroot ::= r0";
    let wide = format!("root ::= {}", vec!["\"ab\""; 20_000].join(" | "));
    own.into_iter().map(str::to_owned).chain([deep, doubled, wide]).collect()
}

fn regexes() -> Vec<String> {
    let own = [
        "",
        "a",
        "(",
        "[",
        "a{1000}",
        "(a{1000}){1000}",
        "((a{1,100}){1,100}){1,100}",
        "(a*)*b",
        "(a|a)*b",
        "(?=x)",
        "\\1",
        "^$",
        "\\p{Greek}{5}",
        "\\p{No}+",
        "(?i)x",
        "a{5,2}",
        "a{99999999999999999999}",
        ".*.*.*.*.*.*.*.*x",
        "[^\\x00-\\x{10ffff}]",
        "(?s).{0,100000}",
        "\\",
        "\u{1f980}+",
        "(?-u)\\xff",
    ];
    own.into_iter()
        .map(str::to_owned)
        .chain(["(".repeat(5000) + &")".repeat(5000), ".*".repeat(200), vec!["a"; 20_000].join("|")])
        .collect()
}
