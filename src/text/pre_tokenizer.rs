//! How text is cut into words before a byte-level vocabulary merges them, by the names of GGUF files. Knows no vocabulary.

use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// One way of cutting, and what llama.cpp's loader (`llama-vocab.cpp`) takes its names to mean besides.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// What `tokenizer.ggml.pre` calls it.
    names: &'static [&'static str],
    /// Applied one after the other: each cuts the pieces of the one before it into matches and what lies between.
    /// Those of the models' own `tokenizer.json` where llama.cpp's engine made it write them otherwise.
    expressions: &'static [&'static str],
    /// A word that is a token is taken whole, whatever the merges say (`ignore_merges`).
    pub takes_whole_words: bool,
    /// Texts begin with BOS where the file does not say.
    pub adds_bos: bool,
    /// Characters are composed first, as the models' own tokenizers do (llama.cpp leaves it out).
    composes: bool,
}

const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O_WORDS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const DEEPSEEK_V3_WORDS: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Chinese characters and Japanese kana.
const HAN_AND_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
/// Chinese and much else, as DeepSeek's first tokenizers have it.
const HAN_AND_OTHERS: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
/// Letters that have a case, as the first DeepSeek tokenizer lists them.
const CASED_LETTERS: &str = concat!(
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷ",
    "ᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ",
    "-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);
/// What may stand in a word of languages that are written with spaces.
const UNPUNCTUATED: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

const fn cut(names: &'static [&'static str], expressions: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, expressions, takes_whole_words: false, adds_bos: false, composes: false }
}

impl PreTokenizer {
    const fn whole_words(self) -> PreTokenizer {
        PreTokenizer { takes_whole_words: true, ..self }
    }

    const fn with_bos(self) -> PreTokenizer {
        PreTokenizer { adds_bos: true, ..self }
    }

    const fn composed(self) -> PreTokenizer {
        PreTokenizer { composes: true, ..self }
    }
}

static WAYS: [PreTokenizer; 30] = [
    // Where a file does not say.
    cut(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"]),
    cut(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"], &[LLAMA3_WORDS])
        .whole_words()
        .with_bos(),
    cut(&["smaug-bpe", "dbrx", "chatglm-bpe", "glm4"], &[LLAMA3_WORDS]),
    cut(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "exaone4",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
        ],
        &[GPT2_WORDS],
    ),
    cut(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], &[r"\p{N}", GPT2_WORDS]),
    cut(&["qwen2", "deepseek-r1-qwen"], &[QWEN2_WORDS]).composed(),
    cut(&["megrez", "stablelm2", "hunyuan", "solar-open", "grok-2", "kormo", "f2llmv2"], &[QWEN2_WORDS]),
    cut(
        &["qwen35"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
    )
    .composed(),
    cut(
        &["tekken"],
        &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
    )
    .whole_words()
    .with_bos(),
    cut(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O_WORDS]),
    cut(&["granite-embed-multi-97m"], &[GPT4O_WORDS]).whole_words(),
    cut(&["tiny_aya", "cohere2moe"], &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O_WORDS]),
    cut(
        &["youtu"],
        &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
                r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
    )
    .whole_words(),
    cut(&["deepseek-llm"], &["[\r\n]", CASED_LETTERS, "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+", r"\s+$", HAN_AND_OTHERS, r"\p{N}+"]),
    cut(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_OTHERS, r"\p{N}"]),
    cut(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[r"\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK_V3_WORDS]),
    cut(
        &["spark2_5"],
        &[
            r"\p{N}{1,3}",
            HAN_AND_KANA,
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
                r" ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            ),
            r"\p{N}",
        ],
    ),
    cut(
        &["kimi-k2"],
        &[concat!(
            r"\p{Han}+|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
    ),
    cut(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_WORDS, "[0-9][0-9][0-9]"]),
    cut(&["viking"], &[UNPUNCTUATED, r"\p{N}"]),
    cut(&["poro-chat", "bloom", "gpt3-finnish"], &[UNPUNCTUATED]),
    cut(&["superbpe"], &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]),
    cut(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    ),
    cut(
        &["seed-coder"],
        &[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"],
    ),
    cut(&["ufakzeka"], &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]),
    cut(&["laguna"], &[r"[^\n]+|[\n]+", QWEN2_WORDS]),
    cut(
        &["exaone-moe"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )],
    ),
    cut(
        &["minicpm5"],
        &[
            r"\p{N}{1,3}",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    )
    .whole_words(),
    cut(
        &["jais-2"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|",
            r"\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )],
    ),
    cut(
        &["chameleon"],
        &["<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT2_WORDS],
    )
    .with_bos(),
];

impl PreTokenizer {
    /// All of them.
    pub(super) fn all() -> &'static [PreTokenizer] {
        &WAYS
    }

    /// The first of its names.
    pub(super) fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The way of cutting called `name`, or the names there are.
    pub(super) fn from_name(name: &str) -> Result<&'static PreTokenizer, String> {
        WAYS.iter().find(|way| way.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = WAYS.iter().flat_map(|way| way.names).copied().collect();
            format!("pre-tokenizer `{name}` is not supported; supported are {}", known.join(", "))
        })
    }

    /// As a pre-tokenizer that ends in GPT-2's byte alphabet.
    pub(super) fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps = Vec::new();
        for expression in self.expressions {
            let pattern = SplitPattern::Regex((*expression).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|error| error.to_string())?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }

    /// What is done to the text before it is cut.
    pub(super) fn normalizer(&self) -> Option<NormalizerWrapper> {
        self.composes.then_some(NormalizerWrapper::NFC(NFC))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
        assert_eq!(words("tekken", "HelloWorld 12"), ["Hello", "World", " ", "1", "2"]);
        assert_eq!(words("deepseek-llm", "Hé 你好, 12"), ["H", "é", " ", "你好", ",", " ", "12"], "its punctuation has the ASCII letters");
        assert_eq!(words("superbpe", "of the 12345"), ["of the ", "12", "345"]);
    }

    /// The fixture is of the tokenizers package for Python (0.23.3), whose engine is Oniguruma and not the one used here: the words that
    /// each way's expressions, in a `Sequence` of isolating `Split`s, make of texts that are hard to cut.
    #[test]
    fn every_way_cuts_hard_texts_as_the_tokenizers_package_does() {
        let expected: BTreeMap<String, BTreeMap<String, Vec<String>>> =
            serde_json::from_str(include_str!("../../tests/golden/pre_tokenizers.json")).unwrap();
        assert_eq!(expected.len(), WAYS.len());
        for (name, texts) in &expected {
            for (text, cut) in texts {
                assert_eq!(&words(name, text), cut, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn no_name_is_given_twice() {
        let names: Vec<&str> = WAYS.iter().flat_map(|way| way.names).copied().collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[index + 1..].contains(name), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let reason = PreTokenizer::from_name("klingon").unwrap_err();
        assert!(reason.contains("`klingon`") && reason.contains("llama-bpe") && reason.contains("smollm"), "{reason}");
    }
}
