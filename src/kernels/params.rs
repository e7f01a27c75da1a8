//! Params that several kernels have, as `shaders/shared/` has them.

use bytemuck::{Pod, Zeroable};

use super::BatchShape;
use crate::model::Value;

/// Params of what treats each value alike.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct ValueParams {
    /// Values in all.
    pub n_values: u32,
}

impl ValueParams {
    /// Those of an operation whose values are all as large as `value`.
    pub fn of(value: &Value, batch: &BatchShape) -> ValueParams {
        ValueParams { n_values: batch.n_values(value) }
    }
}

/// Params of what changes rows in place.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct RowParams {
    /// Rows.
    pub n_tokens: u32,
    /// Values of a row.
    pub width: u32,
}

impl RowParams {
    /// Those of the rows of `target`.
    pub fn of(target: &Value, batch: &BatchShape) -> RowParams {
        RowParams { n_tokens: batch.rows_of(target), width: target.width as u32 }
    }
}

/// Params of what follows the products of experts.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct ExpertParams {
    /// Tokens.
    pub n_tokens: u32,
    /// Experts of a token.
    pub n_used: u32,
    /// Values that each gives.
    pub width: u32,
}

impl ExpertParams {
    /// Those of an operation with this routing that puts what a token's experts give into one row of `output`.
    pub fn of_sum(routing: &Value, output: &Value, batch: &BatchShape) -> ExpertParams {
        ExpertParams { n_tokens: batch.rows_of(output), n_used: routing.width as u32 / 2, width: output.width as u32 }
    }

    /// Those of an operation with this routing that gives each of a token's experts a row of its own, as `input` has one for all.
    pub fn of_inputs(routing: &Value, input: &Value, batch: &BatchShape) -> ExpertParams {
        ExpertParams { n_tokens: batch.rows_of(input), n_used: routing.width as u32 / 2, width: input.width as u32 }
    }

    /// Those of an operation with this routing that changes what each expert gives; a row of `target` has it of all experts of a token.
    pub fn of_each(routing: &Value, target: &Value, batch: &BatchShape) -> ExpertParams {
        let n_used = routing.width as u32 / 2;
        ExpertParams { n_tokens: batch.rows_of(target), n_used, width: target.width as u32 / n_used.max(1) }
    }
}

/// Params of the norms of rows.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct NormParams {
    /// Rows, each normed for itself: tokens, or heads of tokens.
    pub n_rows: u32,
    /// Values of a row.
    pub hidden_size: u32,
    /// Added to the mean square, or to the variance.
    pub epsilon: f32,
    /// Added to each weight.
    pub weight_offset: f32,
}

impl NormParams {
    /// Those of a norm of groups of `group_size` values of `input`.
    pub fn of(input: &Value, group_size: usize, epsilon: f32, weight_offset: f32, batch: &BatchShape) -> NormParams {
        let n_groups = (input.width / group_size) as u32;
        NormParams { n_rows: batch.rows_of(input) * n_groups, hidden_size: group_size as u32, epsilon, weight_offset }
    }
}
