//! What in a `tokenizer.json` would make the tokenizers library panic or misread, found before it reads the file. Builds nothing.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The file as far as the checks need it: sizes of vocabulary and merges, not their texts.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerFile {
    model: Model,
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
    #[serde(default)]
    post_processor: Option<Value>,
    #[serde(default)]
    pub decoder: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Model {
    #[serde(default)]
    vocab: VocabularySize,
    #[serde(default)]
    merges: MergeSize,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// Ids leave room for counting on from the greatest one.
const MAX_TOKEN_ID: u64 = 1 << 30;
/// Nested steps of a pipeline; real files have two levels.
const MAX_DEPTH: usize = 64;

impl TokenizerFile {
    /// Refuses what the library takes from a file unchecked, although its builders would not.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.model.vocab.n_tokens == 0 {
            return Err("its vocabulary is empty".into());
        }
        if self.model.vocab.greatest_id > MAX_TOKEN_ID {
            return Err(format!("its vocabulary has the id {}, more than {MAX_TOKEN_ID}", self.model.vocab.greatest_id));
        }
        let (merge, token) = (self.model.merges.longest, self.model.vocab.longest);
        if merge > token {
            return Err(format!("a merge makes a token of {merge} bytes, but the longest token has {token}"));
        }
        let prefixed = self.model.continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty());
        if prefixed && self.model.merges.longest > 0 {
            return Err("merges with a continuing_subword_prefix are not supported".into());
        }
        for part in [&self.normalizer, &self.pre_tokenizer, &self.post_processor, &self.decoder].into_iter().flatten() {
            check_step(part, MAX_DEPTH)?;
        }
        Ok(())
    }
}

/// Checks one step of a pipeline and those inside it.
fn check_step(step: &Value, depth: usize) -> Result<(), String> {
    let Some(depth) = depth.checked_sub(1) else { return Err(format!("its steps are nested more than {MAX_DEPTH} deep")) };
    match step.get("type").and_then(Value::as_str) {
        Some("FixedLength") if step.get("length").and_then(Value::as_u64) == Some(0) => return Err("FixedLength has length 0".into()),
        Some("Precompiled") => return Err("the normalizer `Precompiled` is not supported".into()),
        Some("TemplateProcessing") => check_template(step)?,
        _ => {}
    }
    for list in ["normalizers", "pretokenizers", "processors", "decoders"] {
        for inner in step.get(list).and_then(Value::as_array).into_iter().flatten() {
            check_step(inner, depth)?;
        }
    }
    Ok(())
}

/// A post-processor's template: special tokens it uses are defined, and a single text has no second sequence.
fn check_template(template: &Value) -> Result<(), String> {
    let defined = template.get("special_tokens");
    for (list, is_single) in [("single", true), ("pair", false)] {
        for piece in template.get(list).and_then(Value::as_array).into_iter().flatten() {
            let id_of = |kind: &str| piece.get(kind).and_then(|piece| piece.get("id")).and_then(Value::as_str);
            if let Some(id) = id_of("SpecialToken").filter(|id| defined.and_then(|defined| defined.get(*id)).is_none()) {
                return Err(format!("its template uses the special token `{id}`, which it does not define"));
            }
            if is_single && id_of("Sequence").is_some_and(|id| id != "A") {
                return Err("its template for one text uses a second one".into());
            }
        }
    }
    Ok(())
}

/// Facts about a vocabulary: a map of token to id, or a list of token and score.
#[derive(Debug, Default)]
struct VocabularySize {
    n_tokens: usize,
    /// Bytes.
    longest: usize,
    greatest_id: u64,
}

impl<'de> Deserialize<'de> for VocabularySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VocabularySize, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = VocabularySize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabularySize, A::Error> {
                let mut size = VocabularySize::default();
                while let Some((token, id)) = map.next_entry::<String, u64>()? {
                    size.n_tokens += 1;
                    size.longest = size.longest.max(token.len());
                    size.greatest_id = size.greatest_id.max(id);
                }
                Ok(size)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<VocabularySize, A::Error> {
                let mut size = VocabularySize::default();
                while list.next_element::<IgnoredAny>()?.is_some() {
                    size.n_tokens += 1;
                }
                Ok(size)
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

/// Bytes of the longest token that a merge makes.
#[derive(Debug, Default)]
struct MergeSize {
    longest: usize,
}

impl<'de> Deserialize<'de> for MergeSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MergeSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Merge {
            Pair(String, String),
            Text(String),
        }
        struct Merges;
        impl<'de> Visitor<'de> for Merges {
            type Value = MergeSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_unit<E>(self) -> Result<MergeSize, E> {
                Ok(MergeSize::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MergeSize, A::Error> {
                let mut longest = 0;
                while let Some(merge) = list.next_element()? {
                    let merged = match merge {
                        Merge::Pair(left, right) => left.len() + right.len(),
                        // The two are parted by a space.
                        Merge::Text(text) => text.len().saturating_sub(1),
                    };
                    longest = longest.max(merged);
                }
                Ok(MergeSize { longest })
            }
        }
        deserializer.deserialize_any(Merges)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn invalid(file: Value) -> String {
        serde_json::from_value::<TokenizerFile>(file).unwrap().check().unwrap_err()
    }

    #[test]
    fn what_panics_in_the_library_is_refused_with_its_reason() {
        let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]});
        assert!(serde_json::from_value::<TokenizerFile>(json!({"model": model})).unwrap().check().is_ok());
        let long = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", "ab ab"]});
        assert!(invalid(json!({"model": long})).contains("4 bytes"));
        let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
            "pair": [], "special_tokens": {}});
        assert!(invalid(json!({"model": model, "post_processor": {"type": "Sequence", "processors": [template]}})).contains("[CLS]"));
        let second = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}], "pair": []});
        assert!(invalid(json!({"model": model, "post_processor": second})).contains("second"));
        let zero = json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]});
        assert!(invalid(json!({"model": model, "pre_tokenizer": zero})).contains("length 0"));
        assert!(
            invalid(json!({"model": model, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA=="}})).contains("Precompiled")
        );
        let ids = json!({"type": "BPE", "vocab": {"a": u32::MAX}, "merges": []});
        assert!(invalid(json!({"model": ids})).contains("4294967295"));
        assert!(invalid(json!({"model": {"vocab": {}}})).contains("empty"));
    }
}
