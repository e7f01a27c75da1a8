//! A small byte-level BPE vocabulary: every byte, a few merges of letters, the special tokens of ChatML.

use serde_json::{Value, json};

/// Merges are of letters and a leading space only, so that every pre-tokenizer leads to the same tokens.
const MERGES: [(&str, &str); 12] = [
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("i", "n"),
    ("e", "r"),
    ("a", "n"),
    ("an", "d"),
    ("Ġ", "a"),
    ("Ġ", "w"),
    ("o", "n"),
    ("r", "e"),
    ("Ġ", "c"),
];
/// Ends a document and stands for padding and the unknown; begins and ends a turn.
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Tokens that have a meaning; ids from here to the vocabulary's size are unused.
pub(super) fn n_tokens() -> usize {
    256 + MERGES.len() + SPECIALS.len()
}

/// The tokens in the order of their ids: bytes, merges, specials.
pub(super) fn tokens() -> Vec<String> {
    let bytes = byte_letters().map(String::from);
    let merges = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    bytes.into_iter().chain(merges).chain(SPECIALS.map(String::from)).collect()
}

/// The merges as GGUF writes them.
pub(super) fn merges() -> Vec<String> {
    MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect()
}

/// Id of `<|endoftext|>`.
pub(super) fn end_of_text() -> usize {
    256 + MERGES.len()
}

/// Id of `<|im_end|>`, at which generation ends.
pub(super) fn end_of_turn() -> usize {
    end_of_text() + 2
}

/// The template of ChatML.
pub(super) fn chat_template() -> &'static str {
    CHAT_TEMPLATE
}

/// `tokenizer.json`.
pub(super) fn tokenizer_json() -> Value {
    let tokens = tokens();
    let (plain, special) = tokens.split_at(end_of_text());
    let vocab: serde_json::Map<String, Value> = plain.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = (end_of_text()..).zip(special).map(|(id, token)| added_token(id, token)).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": MERGES.iter().map(|(left, right)| json!([left, right])).collect::<Vec<_>>(),
        },
    })
}

fn added_token(id: usize, token: &str) -> Value {
    json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config(context_length: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": false,
        "add_prefix_space": false,
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "unk_token": SPECIALS[0],
        "clean_up_tokenization_spaces": false,
        "model_max_length": context_length,
        "chat_template": CHAT_TEMPLATE,
    })
}

/// GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for letters from U+0100 on.
fn byte_letters() -> [char; 256] {
    let mut next = 0xFF;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        if !printable {
            next += 1;
        }
        char::from_u32(if printable { byte } else { next }).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_distinct_and_the_space_is_its_letter() {
        let tokens = tokens();
        assert_eq!(tokens.len(), n_tokens());
        assert_eq!(tokens[usize::from(b' ')], "Ġ");
        assert_eq!(tokens[usize::from(b'\n')], "Ċ");
        assert_eq!(tokens[end_of_turn()], "<|im_end|>");
        let distinct: std::collections::HashSet<_> = tokens.iter().collect();
        assert_eq!(distinct.len(), tokens.len());
    }
}
