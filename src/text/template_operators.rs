//! Products and remainders in a template's tags as calls: what `*` and `%` do with texts needs a limit and Python's formatting, and the
//! engine lets nobody into its operators. Evaluates nothing.

use super::template_source::Lexeme;

/// The function for `a * b`.
pub(super) const PRODUCT: &str = "__product";
/// The function for `a % b`.
pub(super) const REMAINDER: &str = "__remainder";

/// A change of a tag's text: `new` in place of the bytes from `at` on of which there are `len`.
struct Edit {
    at: usize,
    len: usize,
    new: String,
}

/// One run of operands joined by operators of the rank of `*`, left to right.
#[derive(Default)]
struct Chain {
    /// Where the first operand begins.
    start: Option<usize>,
    /// Where the latest lexeme of an operand ends.
    end: usize,
    /// An operator came last: what follows is an operand, sign and all.
    awaits_operand: bool,
    /// Operators: where they stand, and their texts.
    operators: Vec<(usize, String)>,
    /// Where the operand behind each operator ends.
    ends: Vec<usize>,
}

impl Chain {
    fn take_operand(&mut self, start: usize, end: usize) {
        self.start.get_or_insert(start);
        self.end = end;
        self.awaits_operand = false;
    }

    fn take_operator(&mut self, at: usize, text: &str) {
        if !self.operators.is_empty() {
            self.ends.push(self.end);
        }
        self.operators.push((at, text.to_owned()));
        self.awaits_operand = true;
    }

    /// The changes that make calls of it, and an empty chain.
    fn finish(&mut self, edits: &mut Vec<Edit>) {
        let chain = std::mem::take(self);
        let Some(start) = chain.start.filter(|_| !chain.awaits_operand) else { return };
        if !chain.operators.iter().any(|(_, text)| matches!(text.as_str(), "*" | "%")) {
            return;
        }
        let opening = |text: &str| match text {
            "*" => format!("{PRODUCT}("),
            "%" => format!("{REMAINDER}("),
            _ => "(".to_owned(),
        };
        let openings = chain.operators.iter().rev().map(|(_, text)| opening(text)).collect();
        edits.push(Edit { at: start, len: 0, new: openings });
        for (at, text) in chain.operators.iter().filter(|(_, text)| matches!(text.as_str(), "*" | "%")) {
            edits.push(Edit { at: *at, len: text.len(), new: ",".into() });
        }
        for end in chain.ends.into_iter().chain([chain.end]) {
            edits.push(Edit { at: end, len: 0, new: ")".into() });
        }
    }
}

/// `text`, a tag up to its end mark, with calls for its products and remainders. `lexemes` are the tag's; the first `skipped` of them are
/// no part of an expression.
pub(super) fn with_calls(text: &str, lexemes: &[Lexeme<'_>], skipped: usize) -> String {
    let mut edits = Vec::new();
    let mut chains = vec![Chain::default()];
    for lexeme in lexemes.iter().skip(skipped) {
        let (at, end) = (lexeme.at.start, lexeme.at.end);
        let Some(chain) = chains.last_mut() else { break };
        match lexeme.text {
            "(" | "[" | "{" => {
                chain.take_operand(at, end);
                chains.push(Chain::default());
            }
            ")" | "]" | "}" => {
                chain.finish(&mut edits);
                // One closing bracket too many is for the compiler to complain about.
                if chains.len() > 1 {
                    chains.pop();
                }
                if let Some(outer) = chains.last_mut() {
                    outer.take_operand(at, end);
                }
            }
            "*" | "%" | "/" | "//" if chain.start.is_some() && !chain.awaits_operand => chain.take_operator(at, lexeme.text),
            "+" | "-" if chain.awaits_operand || chain.start.is_none() => chain.take_operand_sign(at, end),
            "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" | "~" | "+" | "-" | "*" | "%" | "/" | "//" | "and" | "or" | "not"
            | "in" | "is" | "if" | "else" => chain.finish(&mut edits),
            _ => chain.take_operand(at, end),
        }
    }
    for mut chain in chains {
        chain.finish(&mut edits);
    }
    apply(text, edits)
}

impl Chain {
    /// A sign before an operand: part of it, but not yet one.
    fn take_operand_sign(&mut self, start: usize, end: usize) {
        let awaits_operand = self.awaits_operand;
        self.take_operand(start, end);
        self.awaits_operand = awaits_operand;
    }
}

/// `text` with `edits` made, those at one place in their order.
fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| edit.at);
    let (mut changed, mut done) = (String::with_capacity(text.len()), 0);
    for edit in edits {
        changed.push_str(text.get(done..edit.at).unwrap_or_default());
        changed.push_str(&edit.new);
        done = edit.at + edit.len;
    }
    changed.push_str(text.get(done..).unwrap_or_default());
    changed
}
