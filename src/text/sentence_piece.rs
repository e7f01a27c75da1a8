//! A SentencePiece vocabulary's scores as a list of merges. Knows neither files nor the tokenizer built of it.

use std::cmp::Ordering;
use std::collections::HashMap;

/// The merges that a byte-pair model needs to prefer what the scores prefer: for each piece every way to make it of two others, best
/// score first, then the longer left part, then the longer right one (`generate_merges` of transformers' `convert_slow_tokenizer.py`).
/// `pieces` are id, text and score (never NaN).
pub(super) fn merges_from_scores<'a>(pieces: impl Iterator<Item = (u32, &'a str, f32)>) -> Vec<(String, String)> {
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
