//! `tokenizer.model`: SentencePiece's own file, a protobuf message (`sentencepiece_model.proto`). Only the fields that matter here are read,
//! and any length is checked before it is believed.

use super::files::text_error;
use super::gguf_vocabulary::{MAX_TOKEN_BYTES, MAX_VOCABULARY_BYTES, TokenType};
use super::pieces::byte_token;
use super::sentence_piece::{Segmentation, SentencePieces};
use crate::error::Result;

/// What the file says.
#[derive(Debug)]
pub(super) struct SentencePieceFile<'a> {
    pub pieces: SentencePieces<'a>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
}

/// The value of a field.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    /// Of a kind that no field here has.
    Other,
}

/// The fields of a message with their numbers.
struct Fields<'a>(&'a [u8]);

const CUT: &str = "it ends in the middle of a field";

impl<'a> Fields<'a> {
    fn take(&mut self, n_bytes: usize) -> std::result::Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(n_bytes).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> std::result::Result<u64, &'static str> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number has more than ten bytes")
    }

    fn field(&mut self) -> std::result::Result<(u64, Value<'a>), &'static str> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let len = usize::try_from(self.number()?).map_err(|_| CUT)?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Float(self.take(4)?.try_into().map(f32::from_le_bytes).map_err(|_| CUT)?),
            _ => return Err("a field is of no kind that protobuf has"),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = std::result::Result<(u64, Value<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Reads the file's `bytes`; `path` is for messages.
pub(super) fn read<'a>(path: &str, bytes: &'a [u8]) -> Result<SentencePieceFile<'a>> {
    parse(bytes).map_err(|reason| text_error(path, format!("cannot be read as a SentencePiece model: {reason}")))
}

fn parse(bytes: &[u8]) -> std::result::Result<SentencePieceFile<'_>, String> {
    let mut pieces =
        SentencePieces { pieces: Vec::new(), segmentation: Segmentation::Likeliest, charsmap: None, trims_spaces: true, adds_space: true };
    let (mut bos, mut eos) = (1, 2);
    let mut n_text_bytes = 0;
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(piece)) => {
                let piece = parse_piece(piece).map_err(|reason| format!("piece {}: {reason}", pieces.pieces.len()))?;
                n_text_bytes += piece.0.len();
                if n_text_bytes > MAX_VOCABULARY_BYTES {
                    return Err(format!("its pieces have more than {MAX_VOCABULARY_BYTES} bytes together"));
                }
                pieces.pieces.push(piece);
            }
            // TrainerSpec
            (2, Value::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    match field? {
                        (3, Value::Number(1)) => pieces.segmentation = Segmentation::Likeliest,
                        (3, Value::Number(2)) => pieces.segmentation = Segmentation::Merges,
                        (3, Value::Number(other)) => {
                            return Err(format!("its model_type is {other}; supported are 1 (UNIGRAM) and 2 (BPE)"));
                        }
                        // Negative numbers stand for none.
                        (41, Value::Number(id)) => bos = id,
                        (42, Value::Number(id)) => eos = id,
                        _ => {}
                    }
                }
            }
            // NormalizerSpec
            (3, Value::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    match field? {
                        (2, Value::Bytes(charsmap)) => pieces.charsmap = Some(charsmap.to_vec()),
                        (3, Value::Number(adds)) => pieces.adds_space = adds != 0,
                        (4, Value::Number(trims)) => pieces.trims_spaces = trims != 0,
                        (5, Value::Number(0)) => return Err("its spaces are not escaped, which is not supported".into()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if pieces.pieces.is_empty() {
        return Err("it has no pieces".into());
    }
    let id = |id: u64| u32::try_from(id).ok().filter(|id| (*id as usize) < pieces.pieces.len());
    let (bos, eos) = (id(bos), id(eos));
    Ok(SentencePieceFile { pieces, bos, eos })
}

fn parse_piece(bytes: &[u8]) -> std::result::Result<(&str, TokenType, f32), String> {
    let (mut text, mut score, mut kind) = ("", 0.0, TokenType::Normal);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?,
            (2, Value::Float(value)) => score = value,
            (3, Value::Number(number)) => {
                kind = match number {
                    2 => TokenType::Unknown,
                    3 => TokenType::Control,
                    4 => TokenType::UserDefined,
                    5 => TokenType::Unused,
                    6 => TokenType::Byte,
                    _ => TokenType::Normal,
                }
            }
            _ => {}
        }
    }
    if text.len() > MAX_TOKEN_BYTES {
        return Err(format!("it has {} bytes, more than {MAX_TOKEN_BYTES}", text.len()));
    }
    if score.is_nan() {
        return Err(format!("the score of `{text}` is not a number"));
    }
    if kind == TokenType::Byte && byte_token(text).is_none() {
        return Err(format!("`{text}` is marked as a byte but not written as one (`<0x0A>`)"));
    }
    Ok((text, kind, score))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field of bytes.
    fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, value.len() as u8], value].concat()
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        bytes(1, &[bytes(1, text.as_bytes()), [&[2 << 3 | 5], &score.to_le_bytes()[..]].concat(), vec![3 << 3, kind]].concat())
    }

    #[test]
    fn pieces_and_settings_are_read() {
        let trainer = bytes(2, &[3 << 3, 2, 0xC8, 0x02, 0]);
        let normalizer = bytes(3, &[bytes(2, b"map"), vec![3 << 3, 0, 4 << 3, 0]].concat());
        let file = [piece("<unk>", 0.0, 2), piece("▁a", -1.5, 1), piece("<0x0A>", 0.0, 6), trainer, normalizer].concat();
        let SentencePieceFile { pieces, bos, eos } = parse(&file).unwrap();
        assert_eq!(pieces.pieces, [("<unk>", TokenType::Unknown, 0.0), ("▁a", TokenType::Normal, -1.5), ("<0x0A>", TokenType::Byte, 0.0)]);
        assert_eq!((pieces.segmentation, pieces.charsmap.as_deref()), (Segmentation::Merges, Some(&b"map"[..])));
        assert_eq!((pieces.adds_space, pieces.trims_spaces, bos, eos), (false, false, Some(0), Some(2)));
    }

    #[test]
    fn what_is_broken_is_named() {
        for (file, reason) in [
            (Vec::new(), "no pieces"),
            (piece("a", f32::NAN, 1), "piece 0: the score of `a` is not a number"),
            (piece("<0x0>", 0.0, 6), "marked as a byte"),
            (bytes(1, &bytes(1, b"\xff")), "not UTF-8"),
            ([piece("a", 0.0, 1), bytes(2, &[3 << 3, 3])].concat(), "model_type is 3"),
            (vec![1 << 3 | 2, 200], "ends in the middle"),
            (vec![0xff; 12], "more than ten bytes"),
            (vec![1 << 3 | 3], "no kind"),
        ] {
            let error = read("t.model", &file).unwrap_err().to_string();
            assert!(error.contains("t.model") && error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse(&[piece("a", 0.0, 1), bytes].concat());
        }
    }
}
