//! How text is cut into words before a byte-level vocabulary merges them, by the name that GGUF files give the way. Knows no vocabulary.

use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// The ways of cutting that are known, as `tokenizer.ggml.pre` names them; aliases share a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// Llama 3: numbers in threes.
    Llama3,
    /// GPT-2: whole numbers.
    Gpt2,
    /// Qwen 2: single digits, inside one expression.
    Qwen2,
    /// SmolLM: single digits first, then as GPT-2.
    SmolLm,
    /// What llama.cpp does where a file does not say.
    Default,
}

/// All names, for the message about an unknown one.
const NAMES: [(&str, PreTokenizer); 13] = [
    ("default", PreTokenizer::Default),
    ("llama-bpe", PreTokenizer::Llama3),
    ("llama3", PreTokenizer::Llama3),
    ("llama-v3", PreTokenizer::Llama3),
    ("gpt-2", PreTokenizer::Gpt2),
    ("phi-2", PreTokenizer::Gpt2),
    ("qwen2", PreTokenizer::Qwen2),
    ("deepseek-r1-qwen", PreTokenizer::Qwen2),
    ("smollm", PreTokenizer::SmolLm),
    ("starcoder", PreTokenizer::SmolLm),
    ("refact", PreTokenizer::SmolLm),
    ("command-r", PreTokenizer::SmolLm),
    ("codeshell", PreTokenizer::SmolLm),
];

const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    /// The way of cutting called `name`, or the names there are.
    pub(super) fn from_name(name: &str) -> Result<PreTokenizer, String> {
        let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, way)| *way);
        found.ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            format!("pre-tokenizer `{name}` is not supported; supported are {}", known.join(", "))
        })
    }

    /// Expressions applied one after the other: each cuts the pieces of the one before it into matches and what lies between.
    /// Those of llama.cpp (`llm_tokenizer_bpe`), where the models' own `tokenizer.json` agree.
    fn expressions(self) -> &'static [&'static str] {
        match self {
            PreTokenizer::Llama3 => &[LLAMA3_WORDS],
            PreTokenizer::Gpt2 => &[GPT2_WORDS],
            PreTokenizer::Qwen2 => &[QWEN2_WORDS],
            PreTokenizer::SmolLm => &[r"\p{N}", GPT2_WORDS],
            PreTokenizer::Default => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"],
        }
    }

    /// As a pre-tokenizer that ends in GPT-2's byte alphabet.
    pub(super) fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps = Vec::new();
        for expression in self.expressions() {
            let pattern = SplitPattern::Regex((*expression).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|error| error.to_string())?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }

    /// Qwen 2's own tokenizer composes characters first; the others take text as it is.
    pub(super) fn normalizer(self) -> Option<NormalizerWrapper> {
        (self == PreTokenizer::Qwen2).then_some(NormalizerWrapper::NFC(NFC))
    }

    /// A word that is a token is taken whole, whatever the merges say (`ignore_merges`).
    pub(super) fn takes_whole_words(self) -> bool {
        self == PreTokenizer::Llama3
    }

    /// Whether texts begin with BOS where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        self == PreTokenizer::Llama3
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        PreTokenizer::from_name(name).unwrap().build().unwrap().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    #[test]
    fn words_are_cut_as_each_name_says() {
        let text = "It's 12345 x  y\n\n!";
        assert_eq!(words("gpt-2", text), ["It", "'s", " 12345", " x", " ", " y", "\n", "\n", "!"]);
        assert_eq!(words("smollm", text), ["It", "'s", " ", "1", "2", "3", "4", "5", " x", " ", " y", "\n", "\n", "!"]);
        assert_eq!(words("llama-bpe", text), ["It", "'s", " ", "123", "45", " x", " ", " y", "\n\n", "!"]);
        assert_eq!(words("qwen2", text), ["It", "'s", " ", "1", "2", "3", "4", "5", " x", " ", " y", "\n\n", "!"]);
        assert_eq!(words("llama-bpe", "DON'T"), ["DON", "'T"]);
        assert_eq!(words("default", "a 1234"), ["a", " ", "123", "4"]);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let fault = PreTokenizer::from_name("klingon").unwrap_err();
        assert!(fault.contains("`klingon`") && fault.contains("llama-bpe") && fault.contains("smollm"), "{fault}");
    }
}
