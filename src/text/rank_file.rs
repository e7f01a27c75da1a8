//! tiktoken's files: a line for each token, its bytes in base64 and its rank, which is its id. The merges that such a file leaves out follow
//! from the ranks: a token is made of the two parts that merging by ranks below its own leaves of it.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;

use super::files::text_error;
use super::gguf_vocabulary::{MAX_TOKEN_BYTES, MAX_VOCABULARY_BYTES};
use super::pieces::byte_level_alphabet;
use super::pre_tokenizer::PreTokenizer;
use crate::error::Result;

/// Whether these are the bytes of such a file: its first line says so.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    std::str::from_utf8(line).is_ok_and(|line| parse_line(line).is_ok())
}

/// The tokenizer of the file `path` with these bytes, whose texts are cut into words in this way.
pub(super) fn tokenizer(path: &str, bytes: &[u8], way: &PreTokenizer) -> Result<tokenizers::Tokenizer> {
    let failed = |reason: String| text_error(path, format!("cannot be read as a tiktoken file: {reason}"));
    let tokens = parse(bytes).map_err(failed)?;
    build(&tokens, way).map_err(|error| failed(error.to_string()))
}

/// Bytes and rank of every token, lowest rank first.
fn parse(bytes: &[u8]) -> std::result::Result<Vec<(Vec<u8>, u32)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.is_empty());
    let token = |(line, number): (&str, usize)| parse_line(line).map_err(|reason| format!("line {number}: {reason}"));
    let mut tokens: Vec<(Vec<u8>, u32)> = lines.map(token).collect::<std::result::Result<_, _>>()?;
    if tokens.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() > MAX_VOCABULARY_BYTES {
        return Err(format!("its tokens have more than {MAX_VOCABULARY_BYTES} bytes together"));
    }
    tokens.sort_by_key(|(_, rank)| *rank);
    match tokens.iter().zip(0u32..).find(|((_, rank), due)| rank != due) {
        Some(((_, rank), due)) => Err(format!("rank {rank} stands where {due} is due")),
        None => Ok(tokens),
    }
}

fn parse_line(line: &str) -> std::result::Result<(Vec<u8>, u32), String> {
    let (token, rank) = line.split_once(' ').ok_or("it is no token and rank parted by a space")?;
    let bytes = base64::decode(token).map_err(|_| "its token is not base64")?;
    if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
        return Err(format!("its token has {} bytes, where 1 to {MAX_TOKEN_BYTES} are possible", bytes.len()));
    }
    Ok((bytes, rank.trim_end().parse().map_err(|_| "its rank is no number")?))
}

fn build(tokens: &[(Vec<u8>, u32)], way: &PreTokenizer) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut letters = ['\0'; 256];
    byte_level_alphabet().into_iter().for_each(|(letter, byte)| letters[usize::from(byte)] = letter);
    let spelt = |bytes: &[u8]| bytes.iter().map(|byte| letters[usize::from(*byte)]).collect::<String>();
    let ranks: HashMap<&[u8], u32> = tokens.iter().map(|(bytes, rank)| (bytes.as_slice(), *rank)).collect();
    let parts = tokens.iter().filter_map(|(bytes, rank)| parts_of(bytes, *rank, &ranks));
    let merges = parts.map(|(left, right)| (spelt(left), spelt(right))).collect();
    let vocab = tokens.iter().map(|(bytes, rank)| (spelt(bytes), *rank)).collect::<tokenizers::models::bpe::Vocab>();
    // A word that is a token is taken whole, which tiktoken looks up first.
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true).build()?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(way.normalizer())?;
    inner.with_pre_tokenizer(Some(way.build()?));
    Ok(inner)
}

/// The two parts that a token is merged of; `None` of a single byte, and of what no merging makes.
fn parts_of<'t>(token: &'t [u8], rank: u32, ranks: &HashMap<&[u8], u32>) -> Option<(&'t [u8], &'t [u8])> {
    // Where parts begin, and the end of the last one.
    let mut ends: Vec<usize> = (0..=token.len()).collect();
    while ends.len() > 3 {
        let merged = |at: usize| ranks.get(&token[ends[at]..ends[at + 2]]).filter(|merged| **merged < rank);
        let (_, at) = (0..ends.len() - 2).filter_map(|at| Some((merged(at)?, at))).min()?;
        ends.remove(at + 1);
    }
    (ends.len() == 3).then(|| token.split_at(ends[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> std::result::Result<(), String> {
        parse(text.as_bytes()).map(|_| ())
    }

    #[test]
    fn tokens_are_made_of_the_parts_that_merging_leaves() {
        let tokens = ["a", "b", "c", "bc", "ab", "abc", "xy"];
        let ranks: HashMap<&[u8], u32> = tokens.iter().zip(0..).map(|(token, rank)| (token.as_bytes(), rank)).collect();
        let parts = |token: &str| parts_of(tokens[ranks[token.as_bytes()] as usize].as_bytes(), ranks[token.as_bytes()], &ranks);
        assert_eq!(parts("abc"), Some((&b"a"[..], &b"bc"[..])), "the lower rank merges first");
        assert_eq!((parts("ab"), parts("a")), (Some((&b"a"[..], &b"b"[..])), None));
    }

    #[test]
    fn what_is_broken_is_named_by_its_line() {
        for (text, reason) in [
            ("YQ== 0\nYg==", "line 2: it is no token and rank"),
            ("YQ== 0\n\n? 1", "line 3: its token is not base64"),
            ("YQ== x", "line 1: its rank is no number"),
            (" 0", "line 1: its token has 0 bytes"),
            ("YQ== 0\nYg== 2", "rank 2 stands where 1 is due"),
            ("YQ== 0\nYg== 0", "rank 0 stands where 1 is due"),
        ] {
            assert!(read(text).unwrap_err().contains(reason), "{text:?}: {:?}", read(text));
        }
        assert!(is_one(b"YQ== 0\nYg== 1\n") && !is_one(b"\n\x05\n\x01a") && !is_one(b""));
    }
}
