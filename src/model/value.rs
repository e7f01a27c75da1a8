//! The intermediate values of a forward, as a model declares them: names, widths and rows. Their memory belongs to the executors.

use serde::Serialize;

/// An intermediate value: index into [`Model::values`](crate::model::Model::values).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ValueId(pub u16);

/// What a value is; each of its rows belongs to one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Value {
    /// What messages call it.
    pub name: &'static str,
    /// Values in one row; 0 where no operation uses it.
    pub width: usize,
    /// Size of its heads, where attention reads or writes them: an adapter holds such heads padded for a while.
    pub head_size: Option<usize>,
    /// How many rows it has.
    pub rows: Rows,
}

/// Which tokens a value has rows for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Every token of the forward.
    Tokens,
    /// The positions whose logits are asked for; only the head computes with such values.
    Logits,
}

impl Value {
    /// A value of every token.
    pub fn of_tokens(name: &'static str, width: usize) -> Value {
        Value { name, width, head_size: None, rows: Rows::Tokens }
    }

    /// Heads of every token that attention reads or writes.
    pub fn of_heads(name: &'static str, n_heads: usize, head_size: usize) -> Value {
        Value { name, width: n_heads * head_size, head_size: Some(head_size), rows: Rows::Tokens }
    }

    /// A value of the positions whose logits are asked for.
    pub fn of_logits(name: &'static str, width: usize) -> Value {
        Value { name, width, head_size: None, rows: Rows::Logits }
    }

    /// Rows it has: one per token, or one per position whose logits are asked for.
    pub fn n_rows(&self, n_tokens: usize, n_logit_rows: usize) -> usize {
        match self.rows {
            Rows::Tokens => n_tokens,
            Rows::Logits => n_logit_rows,
        }
    }

    /// Whether only the head computes with it.
    pub fn is_of_head(&self) -> bool {
        self.rows == Rows::Logits
    }
}
