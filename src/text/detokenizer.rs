//! Tokens to text as they come: never half a character, never text that a later token would change. Chooses no tokens.

use std::sync::Arc;

use super::pieces::Pieces;

/// Turns a stream of tokens into a stream of text. Special tokens give none.
///
/// It begins at the beginning of a text: where the vocabulary marks words by a leading space (SentencePiece), the first word's is dropped.
/// To go on after other text, push that text's tokens first and forget what comes back.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    state: State,
    /// Nothing was emitted yet, so a leading space may have to go.
    at_start: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// Bytes that are the beginning of a character (at most three).
    Bytes(Vec<u8>),
    /// Tokens whose joint text is compared before and after the next token.
    Window(Window),
}

/// The latest tokens, enough for the decoder to see its context, and the text of those already emitted.
#[derive(Debug, Clone, Default)]
struct Window {
    tokens: Vec<u32>,
    /// How many of `tokens` make up `emitted`.
    n_emitted: usize,
    emitted: String,
}

/// A character broken over more tokens than this is not waited for.
const MAX_UNDECIDED: usize = 16;

impl Detokenizer {
    pub(super) fn new(pieces: Arc<Pieces>) -> Detokenizer {
        let state = match pieces.as_ref() {
            Pieces::Bytes(_) => State::Bytes(Vec::new()),
            Pieces::Decoder(_) => State::Window(Window::default()),
        };
        Detokenizer { pieces, state, at_start: true }
    }

    /// The text that `token` adds; possibly empty. Ids without a token add none.
    pub fn push(&mut self, token: u32) -> String {
        let pieces = Arc::clone(&self.pieces);
        match (&mut self.state, pieces.as_ref()) {
            (State::Bytes(pending), Pieces::Bytes(table)) => {
                let mut bytes = table.bytes(token);
                if self.at_start && !bytes.is_empty() {
                    self.at_start = false;
                    bytes = table.without_leading_space(bytes);
                }
                pending.extend_from_slice(bytes);
                whole_characters(pending)
            }
            (State::Window(window), Pieces::Decoder(decoder)) => {
                window.tokens.push(token);
                window.advance(decoder.decode(&window.tokens), |tokens| decoder.decode(tokens))
            }
            (State::Bytes(_), Pieces::Decoder(_)) | (State::Window(_), Pieces::Bytes(_)) => String::new(),
        }
    }

    /// The text that was held back: a character that no token completed becomes U+FFFD. Leaves the beginning of a new text.
    pub fn finish(&mut self) -> String {
        let rest = match (&mut self.state, self.pieces.as_ref()) {
            (State::Bytes(pending), _) => String::from_utf8_lossy(pending).into_owned(),
            (State::Window(window), Pieces::Decoder(decoder)) => {
                let text = decoder.decode(&window.tokens);
                text.strip_prefix(window.emitted.as_str()).unwrap_or_default().to_owned()
            }
            (State::Window(_), Pieces::Bytes(_)) => String::new(),
        };
        *self = Detokenizer::new(Arc::clone(&self.pieces));
        rest
    }
}

impl Window {
    /// `text` is that of all `tokens`: returns the part of it that is new and certain.
    fn advance(&mut self, text: String, decode: impl Fn(&[u32]) -> String) -> String {
        let undecided = text.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() - self.n_emitted < MAX_UNDECIDED;
        let Some(new) = text.strip_prefix(self.emitted.as_str()).filter(|new| !new.is_empty() && !undecided) else {
            return String::new();
        };
        let new = new.to_owned();
        // The tokens emitted now are the context of the next ones; what came before them is no longer needed.
        self.tokens.drain(..self.n_emitted);
        self.n_emitted = self.tokens.len();
        self.emitted = decode(&self.tokens);
        new
    }
}

/// Takes all whole characters out of `pending`; bytes that cannot be part of any become U+FFFD, as `String::from_utf8_lossy` has it.
fn whole_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = pending.as_slice();
    loop {
        let error = match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => error,
        };
        let (valid, broken) = rest.split_at(error.valid_up_to());
        text.push_str(&String::from_utf8_lossy(valid));
        let Some(skip) = error.error_len() else {
            rest = broken;
            break;
        };
        text.push(char::REPLACEMENT_CHARACTER);
        rest = broken.get(skip..).unwrap_or_default();
    }
    *pending = rest.to_vec();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_whole_characters_as_the_lossy_conversion_has_it() {
        let mut bytes: Vec<u8> = "aé€𝄞".bytes().collect();
        bytes.extend([0xFF, 0xE2, 0x82, b'x', 0xF0, 0x9F, 0x98]);
        let (mut pending, mut text) = (Vec::new(), String::new());
        for &byte in &bytes {
            pending.push(byte);
            let new = whole_characters(&mut pending);
            assert!(pending.len() <= 3);
            text.push_str(&new);
        }
        text.push_str(&String::from_utf8_lossy(&pending));
        assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}
