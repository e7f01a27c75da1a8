//! JSON as Python's `json` module writes and reads it. Knows no key.

use serde_json::Value;

/// The numbers that Python writes and JSON does not have.
pub(crate) const CONSTANTS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// `bytes` as a JSON value. As Python does, takes [`CONSTANTS`] (they become texts, so that readers can say what they cannot use) and
/// the last of a key's values; a byte order mark is passed over.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    // The first error's line and column are those of the file.
    serde_json::from_slice(bytes).or_else(|error| serde_json::from_slice(&with_quoted_constants(bytes)).map_err(|_| error))
}

/// `json` with the numbers that JSON does not have in quotes.
fn with_quoted_constants(json: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(json.len());
    let (mut rest, mut in_text) = (json, false);
    while let Some(&byte) = rest.first() {
        let word = CONSTANTS.into_iter().find(|word| !in_text && rest.starts_with(word.as_bytes()));
        let len = match (byte, word) {
            (_, Some(word)) => word.len(),
            (b'\\', _) if in_text => rest.len().min(2),
            _ => 1,
        };
        in_text ^= byte == b'"';
        let (taken, left) = rest.split_at(len);
        match word {
            Some(word) => plain.extend_from_slice(format!("\"{word}\"").as_bytes()),
            None => plain.extend_from_slice(taken),
        }
        rest = left;
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_reads_is_read() {
        let text = r#"{"a": [NaN, -Infinity,Infinity], "b": "NaN \"Infinity\" \\", "c": 1, "c": 2}"#;
        assert_eq!(parse(text.as_bytes()).unwrap(), json!({"a": ["NaN", "-Infinity", "Infinity"], "b": "NaN \"Infinity\" \\", "c": 2}));
        assert_eq!(parse("\u{feff}[1]".as_bytes()).unwrap(), json!([1]));
    }

    #[test]
    fn what_python_refuses_is_refused_where_it_stands() {
        for text in ["", "{", "[nan]", "[1,]", r#"{"a": NaN"#, r#""\"#] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"{\"a\": NaN,\n  oops}").unwrap_err().to_string().contains("line 1"));
    }
}
