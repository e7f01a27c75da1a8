//! What each token contributes to a text: a table of bytes, or a decoder for vocabularies that have no such table. Keeps no stream.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// The texts of tokens, in the form that their vocabulary allows.
#[derive(Debug)]
pub(super) enum Pieces {
    /// Every token is a string of bytes, whatever stands beside it.
    Bytes(ByteTable),
    /// Only a run of tokens has a text.
    Decoder(RunDecoder),
}

/// How a vocabulary writes the bytes of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One printable character per byte, as GPT-2 has it.
    ByteLevel,
    /// `▁` for the space, `<0xNN>` for single bytes.
    SentencePiece(LeadingSpace),
    /// Some other way that only the tokenizer's own decoder knows.
    Other,
}

/// What becomes of a space at the very beginning of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeadingSpace {
    /// The encoder put it there: one is dropped.
    Dropped,
    /// It is part of the text.
    Kept,
}

impl Pieces {
    /// The pieces of `tokenizer`'s tokens below `vocab_size`; special tokens have none.
    pub(super) fn new(tokenizer: &Arc<tokenizers::Tokenizer>, spelling: Spelling, vocab_size: usize) -> Pieces {
        let leading_space = match spelling {
            Spelling::ByteLevel => LeadingSpace::Kept,
            Spelling::SentencePiece(leading_space) => leading_space,
            Spelling::Other => return Pieces::Decoder(RunDecoder { tokenizer: Arc::clone(tokenizer) }),
        };
        let byte_of = byte_level_alphabet();
        let added = tokenizer.get_added_tokens_decoder();
        let mut table = ByteTable { bytes: Vec::new(), ends: Vec::with_capacity(vocab_size), leading_space };
        for id in (0..vocab_size).map_while(|id| u32::try_from(id).ok()) {
            let (is_added, special) = added.get(&id).map_or((false, false), |token| (true, token.special));
            let text = if special { None } else { tokenizer.id_to_token(id) };
            match (text, spelling) {
                // Added tokens are written as they are, whatever the alphabet makes of their characters.
                (Some(text), Spelling::ByteLevel) if is_added => table.bytes.extend(text.bytes()),
                (Some(text), Spelling::ByteLevel) => table.bytes.extend(byte_level_bytes(&text, &byte_of)),
                (Some(text), _) => match byte_token(&text) {
                    Some(byte) => table.bytes.push(byte),
                    None => table.bytes.extend(text.replace('\u{2581}', " ").bytes()),
                },
                (None, _) => {}
            }
            table.ends.push(table.bytes.len());
        }
        Pieces::Bytes(table)
    }
}

/// The bytes of all tokens, end to end.
#[derive(Debug)]
pub(super) struct ByteTable {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where those of the one before it end.
    ends: Vec<usize>,
    leading_space: LeadingSpace,
}

impl ByteTable {
    /// The bytes of one token; none for special and unknown ones.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let index = token as usize;
        let end = self.ends.get(index).copied().unwrap_or(0);
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The first bytes of a text, less the space that the encoder put before them.
    pub(super) fn without_leading_space<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.leading_space {
            LeadingSpace::Dropped => bytes.strip_prefix(b" ").unwrap_or(bytes),
            LeadingSpace::Kept => bytes,
        }
    }
}

/// Decodes runs of tokens with the tokenizer's own decoder.
#[derive(Debug)]
pub(super) struct RunDecoder {
    tokenizer: Arc<tokenizers::Tokenizer>,
}

impl RunDecoder {
    /// The joint text of `tokens` without special ones; empty where the decoder fails.
    pub(super) fn decode(&self, tokens: &[u32]) -> String {
        let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| self.tokenizer.decode(tokens, true)));
        decoded.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// The byte that a token `<0xNN>` stands for.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let well_formed = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(&digit));
    if well_formed { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// A token of other characters than the alphabet's is plain text (added tokens are).
fn byte_level_bytes(text: &str, byte_of: &HashMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = text.chars().map(|character| byte_of.get(&character).copied()).collect();
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and following, in order
/// (`bytes_to_unicode` of its `encoder.py`).
pub(super) fn byte_level_alphabet() -> HashMap<char, u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let printable = (0..=u8::MAX).filter(is_printable).map(|byte| (char::from(byte), byte));
    let others = (0..=u8::MAX).filter(|byte| !is_printable(byte));
    let shifted = ('\u{100}'..='\u{1FF}').zip(others);
    printable.chain(shifted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!((alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'a'], alphabet[&'é']), (b' ', b'\n', b'a', 0xE9));
        let library = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(library.iter().all(|character| alphabet.contains_key(character)));
    }

    #[test]
    fn byte_tokens_are_two_upper_case_digits() {
        assert_eq!(byte_token("<0xE2>"), Some(0xE2));
        for text in ["<0x-1>", "<0xe2>", "<0x1>", "<0x123>", "<0x+1>", "0x12", "<0x12", "<0xG0>"] {
            assert_eq!(byte_token(text), None, "{text}");
        }
    }
}
