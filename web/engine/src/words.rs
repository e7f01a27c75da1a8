//! Texts of the library in the words of this API: the library speaks of the command line's flags, and of places in JSON that
//! nobody here has written.

use serde_json::Value;

/// Flags that have another name here than the obvious one.
const NAMES: [(&str, &str); 2] = [("temp", "temperature"), ("prompt", "messages")];
/// Texts that are the command line's own, by their names.
const OF_THE_COMMAND_LINE: [&str; 2] = ["text", "command"];

/// `text` with the names of options in place of flags, and without places in JSON. What stands in backticks is somebody's own.
pub fn of_this_api(text: &str) -> String {
    let parts: Vec<String> = without_places(text).split('`').map(str::to_owned).collect();
    let translated = parts.iter().enumerate().map(|(index, part)| if index % 2 == 0 { with_names(part) } else { part.clone() });
    translated.collect::<Vec<_>>().join("`")
}

/// All texts in `value` as [`of_this_api`] has them.
pub fn all_of_this_api(value: &mut Value) {
    match value {
        Value::String(text) => *text = of_this_api(text),
        Value::Array(items) => items.iter_mut().for_each(all_of_this_api),
        Value::Object(fields) => {
            fields
                .iter_mut()
                .filter(|(name, _)| !OF_THE_COMMAND_LINE.contains(&name.as_str()))
                .for_each(|(_, field)| all_of_this_api(field));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn with_names(text: &str) -> String {
    let mut words = text.split("--");
    let mut named = words.next().unwrap_or_default().to_owned();
    for rest in words {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
        let (flag, after) = rest.split_at(end);
        match NAMES.iter().find(|(own, _)| *own == flag) {
            Some((_, name)) => named.push_str(name),
            None if flag.is_empty() => named.push_str("--"),
            None => named.push_str(&flag.replace('-', "_")),
        }
        named.push_str(after);
    }
    named
}

/// Cuts what serde_json says of where it was: ` at line 1 column 20`.
fn without_places(text: &str) -> String {
    let mut parts = text.split(" at line ");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match after_place(part) {
            Some(rest) => kept.push_str(rest),
            None => kept.push_str(&format!(" at line {part}")),
        }
    }
    kept
}

/// What follows `1 column 20`, if `text` begins so.
fn after_place(text: &str) -> Option<&str> {
    let after_number = |text: &'_ str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let rest = text[after_number(text)..].strip_prefix(" column ")?;
    Some(&rest[after_number(rest)..])
}
