//! Repairs of wrong token types in GGUF files, by the tokens' texts, as llama.cpp's loader does (`llama_vocab::impl::load`).
//! Knows texts and types, no ids and no metadata.

use super::gguf_vocabulary::TokenType;

/// Tokens that end an answer, whatever their type.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Padding of code completions: ends an answer where the metadata names no such token.
const FILL_PADDING: [&str; 5] = ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
/// Before the name of a repository, likewise.
const REPOSITORY: [&str; 5] = ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
/// Between files, likewise.
const FILE_SEPARATOR: [&str; 1] = ["<|file_sep|>"];
/// The other marks of code completions: never shown.
const FILL_MARKS: [&str; 24] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
/// Marks inside a turn, which are part of what is read.
const SHOWN_MARKS: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The kinds of ends that metadata can name by id; each is looked for by text where it does not.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Named {
    /// `fim_pad_token_id` is there.
    pub fill_padding: bool,
    /// `fim_rep_token_id`.
    pub repository: bool,
    /// `fim_sep_token_id`.
    pub file_separator: bool,
}

/// What a vocabulary's texts say about it as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repairs {
    named: Named,
    /// `<|end|>` parts the messages of one answer, as beside `<|return|>` and `<|call|>`, or `<|calls|>` and `<|flush|>`.
    end_parts_messages: bool,
    /// `</s>` is a plain text, as beside `<|tool_response>`.
    s_is_plain: bool,
}

impl Repairs {
    /// The repairs that a vocabulary needs; `has` says whether it holds a text.
    pub(super) fn new(named: Named, has: impl Fn(&str) -> bool) -> Repairs {
        let calls = has("<|call|>") || has("<|calls|>");
        Repairs { named, end_parts_messages: calls && (has("<|return|>") || has("<|flush|>")), s_is_plain: has("<|tool_response>") }
    }

    /// Whether a token of this text ends an answer.
    pub(super) fn ends(&self, text: &str) -> bool {
        match text {
            "<|end|>" if self.end_parts_messages => false,
            "</s>" if self.s_is_plain => false,
            _ => {
                ENDS.contains(&text)
                    || (!self.named.fill_padding && FILL_PADDING.contains(&text))
                    || (!self.named.repository && REPOSITORY.contains(&text))
                    || (!self.named.file_separator && FILE_SEPARATOR.contains(&text))
            }
        }
    }

    /// The type that a token of this text has, where `kind` is what the file says.
    pub(super) fn kind(&self, text: &str, kind: TokenType) -> TokenType {
        match text {
            "<|end|>" if self.end_parts_messages => TokenType::UserDefined,
            "</s>" if self.s_is_plain => TokenType::Normal,
            _ if SHOWN_MARKS.contains(&text) => TokenType::UserDefined,
            _ if self.ends(text) || FILL_MARKS.contains(&text) => TokenType::Control,
            _ => kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repairs(texts: &[&str]) -> Repairs {
        Repairs::new(Named::default(), |text| texts.contains(&text))
    }

    #[test]
    fn ends_are_control_tokens_whatever_the_file_says() {
        let plain = repairs(&[]);
        for text in
            ["<|im_end|>", "<end_of_utterance>", "[EOT]", "_<EOT>", "<|return|>", "<|call|>", "<｜end▁of▁sentence｜>", "<|fim_pad|>"]
        {
            assert!(plain.ends(text), "{text}");
            assert_eq!(plain.kind(text, TokenType::Normal), TokenType::Control, "{text}");
        }
        assert!(!plain.ends("<|im_start|>"));
        assert_eq!(plain.kind("<|im_start|>", TokenType::UserDefined), TokenType::UserDefined);
        assert_eq!(plain.kind("<fim_prefix>", TokenType::Normal), TokenType::Control);
        assert_eq!(plain.kind("<|channel|>", TokenType::Control), TokenType::UserDefined);
        let named = Repairs::new(Named { repository: true, ..Named::default() }, |_| false);
        assert!(!named.ends("<|repo_name|>") && named.ends("<|file_sep|>"));
    }

    #[test]
    fn what_else_the_vocabulary_has_changes_what_ends() {
        assert!(repairs(&["<|end|>", "<|return|>"]).ends("<|end|>"));
        let harmony = repairs(&["<|end|>", "<|return|>", "<|call|>"]);
        assert!(!harmony.ends("<|end|>") && harmony.ends("<|return|>"));
        assert_eq!(harmony.kind("<|end|>", TokenType::Control), TokenType::UserDefined);
        assert!(!repairs(&["<|end|>", "<|flush|>", "<|calls|>"]).ends("<|end|>"));
        let tools = repairs(&["</s>", "<|tool_response>"]);
        assert_eq!((tools.ends("</s>"), tools.kind("</s>", TokenType::Control)), (false, TokenType::Normal));
    }
}
