//! Texts of the library in the words of this API: settings by the names of its options, and no places in JSON that nobody here has
//! written.

use tierflow::error::{Setting, Words};

/// Names of settings that are others here than in the library.
const NAMES: [(Setting, &str); 2] = [(Setting::Slots, "slots"), (Setting::Prompt, "messages")];

/// Settings by the options of this API.
#[derive(Debug, Clone, Copy)]
pub struct OfThisApi;

impl Words for OfThisApi {
    fn setting(&self, setting: Setting) -> String {
        let own = NAMES.iter().find(|(other, _)| *other == setting).map(|(_, name)| *name);
        own.unwrap_or(setting.field()).to_owned()
    }

    fn writer(&self, _setting: Setting) -> String {
        "write it anew with `tierflow devices --json`".to_owned()
    }
}

/// Cuts what serde_json says of where it was: ` at line 1 column 20`.
pub fn without_places(text: &str) -> String {
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
