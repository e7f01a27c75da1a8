//! WordPiece vocabularies of GGUF files (`tokenizer.ggml.model` `bert`): texts in small letters without accents, cut into words, each of
//! the longest tokens that its rest begins with. llama.cpp's converter writes `▁` before tokens that begin a word and drops the `##` of
//! those that go on with one (`BertModel.set_vocab` of convert_hf_to_gguf.py).

use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

/// What stands before tokens that go on with a word.
const CONTINUES: &str = "##";
/// Words of more characters are unknown, as in BERT's own tokenizer.
const MAX_WORD_CHARS: usize = 100;

/// A tokenizer of `tokens`: ids, texts as the file has them, and whether they are special (such as `[CLS]`).
///
/// # Errors
/// Those of the tokenizers library.
pub(super) fn tokenizer<'a>(
    tokens: impl Iterator<Item = (u32, &'a str, bool)>,
    unknown: &str,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let spelt = |text: &str, is_special: bool| match text.strip_prefix('\u{2581}') {
        _ if is_special => text.to_owned(),
        Some(word) => word.to_owned(),
        None => format!("{CONTINUES}{text}"),
    };
    // Of two tokens with one text the first counts, as in llama.cpp.
    let mut tokens: Vec<(String, u32)> = tokens.map(|(id, text, is_special)| (spelt(text, is_special), id)).collect();
    tokens.sort_by_key(|(_, id)| std::cmp::Reverse(*id));
    let vocab: Vocab = tokens.into_iter().collect();
    let model = WordPiece::builder()
        .vocab(vocab)
        .unk_token(unknown.to_owned())
        .continuing_subword_prefix(CONTINUES.to_owned())
        .max_input_chars_per_word(MAX_WORD_CHARS)
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, true)))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::new(CONTINUES.to_owned(), true)));
    Ok(tokenizer)
}
