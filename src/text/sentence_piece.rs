//! SentencePiece vocabularies as tokenizers: pieces with scores, merged best first or put together to the likeliest whole. Knows neither
//! files nor the ids that begin and end a text.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;

use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::utils::Sequence;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Prepend, Replace};

use super::gguf_vocabulary::TokenType;

/// A vocabulary of SentencePiece, wherever it was stored.
#[derive(Debug, Clone)]
pub(super) struct SentencePieces<'a> {
    /// Text, kind and score (never NaN) of every token, by its id.
    pub pieces: Vec<(&'a str, TokenType, f32)>,
    pub segmentation: Segmentation,
    /// SentencePiece's rules by which characters become others, such as those of NFKC.
    pub charsmap: Option<Vec<u8>>,
    /// White space at both ends goes, and several spaces become one.
    pub trims_spaces: bool,
    /// A text begins as if a space stood before it.
    pub adds_space: bool,
}

/// How a text is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segmentation {
    /// Two neighbours become one, those that make the best piece first (`BPE`).
    Merges,
    /// As that row of pieces whose scores add up to most (`UNIGRAM`).
    Likeliest,
}

/// The score of what is no piece of texts, far below that of any text of unknown characters: the library has no way to leave it out.
const NEVER: f64 = -1e9;

impl SentencePieces<'_> {
    /// The tokenizer, without what stands outside the pieces.
    ///
    /// # Errors
    /// Those of the tokenizers library.
    pub(super) fn tokenizer(&self) -> tokenizers::Result<tokenizers::Tokenizer> {
        let model: ModelWrapper = match self.segmentation {
            Segmentation::Merges => self.merging()?.into(),
            Segmentation::Likeliest => self.unigram()?.into(),
        };
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(Some(self.normalizer()?))?;
        Ok(inner)
    }

    fn ids(&self) -> impl Iterator<Item = (u32, &str, TokenType, f32)> {
        self.pieces.iter().zip(0u32..).map(|(&(text, kind, score), id)| (id, text, kind, score))
    }

    fn merging(&self) -> tokenizers::Result<BPE> {
        let of_texts = self.ids().filter(|(_, _, kind, _)| kind.is_of_texts());
        let merges = merges_from_scores(of_texts.map(|(id, text, _, score)| (id, text, score)));
        let vocab = self.ids().map(|(id, text, ..)| (text.to_owned(), id)).collect::<tokenizers::models::bpe::Vocab>();
        let mut builder = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
        if let Some((_, unknown, ..)) = self.ids().find(|(_, _, kind, _)| *kind == TokenType::Unknown) {
            builder = builder.unk_token(unknown.to_owned());
        }
        builder.build()
    }

    fn unigram(&self) -> tokenizers::Result<Unigram> {
        let score = |kind: TokenType, score: f32| if kind.is_of_texts() { f64::from(score).max(NEVER) } else { NEVER };
        let vocab = self.ids().map(|(_, text, kind, own)| (text.to_owned(), score(kind, own))).collect();
        let unknown = self.pieces.iter().position(|(_, kind, _)| *kind == TokenType::Unknown);
        let has_bytes = self.pieces.iter().filter(|(_, kind, _)| *kind == TokenType::Byte).count() >= 256;
        let mut model = Unigram::from(vocab, unknown, has_bytes)?;
        // What is unknown costs a little more than the worst piece of texts.
        let of_texts = self.pieces.iter().filter(|(_, kind, _)| kind.is_of_texts()).map(|(.., score)| f64::from(*score));
        model.min_score = of_texts.reduce(f64::min).unwrap_or(0.0).max(NEVER);
        Ok(model)
    }

    fn normalizer(&self) -> tokenizers::Result<NormalizerWrapper> {
        let mut steps = Vec::new();
        if let Some(charsmap) = self.charsmap.as_deref().filter(|charsmap| !charsmap.is_empty()) {
            let read = std::panic::catch_unwind(AssertUnwindSafe(|| Precompiled::from(charsmap)));
            let rules = read.map_err(|_| "its precompiled_charsmap is broken")?.map_err(|error| error.to_string())?;
            steps.push(NormalizerWrapper::Precompiled(rules));
        }
        if self.trims_spaces {
            // No other white space goes.
            for (spaces, becomes) in [("^ +| +$", ""), (" {2,}", " ")] {
                steps.push(NormalizerWrapper::Replace(Replace::new(ReplacePattern::Regex(spaces.into()), becomes)?));
            }
        }
        if self.adds_space {
            steps.push(NormalizerWrapper::Prepend(Prepend::new("\u{2581}".into())));
        }
        steps.push(NormalizerWrapper::Replace(Replace::new(" ", "\u{2581}")?));
        Ok(NormalizerWrapper::Sequence(Sequence::new(steps)))
    }
}

/// The merges that a byte-pair model needs to prefer what the scores prefer: for each piece every way to make it of two others, best
/// score first, then the longer left part, then the longer right one (`generate_merges` of transformers' `convert_slow_tokenizer.py`).
/// `pieces` are id, text and score (never NaN).
fn merges_from_scores<'a>(pieces: impl Iterator<Item = (u32, &'a str, f32)>) -> Vec<(String, String)> {
    let pieces: Vec<(u32, &str, f32)> = pieces.collect();
    let ids: HashMap<&str, u32> = pieces.iter().map(|&(id, text, _)| (text, id)).collect();
    let mut merges: Vec<Merge<'_>> = Vec::new();
    // Of tokens with the same text only the one that the text becomes counts.
    for &(_, text, score) in pieces.iter().filter(|(id, text, _)| ids.get(text) == Some(id)) {
        let first = merges.len();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                merges.push(Merge { left, right, score, ids: (left_id, right_id) });
            }
        }
        if let Some(new) = merges.get_mut(first..) {
            new.sort_by_key(|merge| merge.ids);
        }
    }
    // Stable, so that merges that are equal here keep the order of their pieces' ids.
    merges.sort_by(Merge::order);
    merges.into_iter().map(|merge| (merge.left.to_owned(), merge.right.to_owned())).collect()
}

struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    score: f32,
    ids: (u32, u32),
}

impl Merge<'_> {
    fn order(a: &Merge<'_>, b: &Merge<'_>) -> Ordering {
        let length = |text: &str| text.chars().count();
        let by_score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
        by_score.then_with(|| length(b.left).cmp(&length(a.left))).then_with(|| length(b.right).cmp(&length(a.right)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_scores_merge_first() {
        let pieces = [(0, "a", -9.0), (1, "b", -9.0), (2, "c", -9.0), (3, "bc", -1.0), (4, "ab", -2.0), (5, "abc", -3.0)];
        let merges = merges_from_scores(pieces.into_iter());
        let merges: Vec<(&str, &str)> = merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
        assert_eq!(merges, [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]);
    }
}
