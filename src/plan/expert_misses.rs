//! Who computes with experts that tokens take and that are not in an adapter's cache: the adapter, once they are uploaded, or the host,
//! which has them in its memory; where both do, in shares that end at the same time by the measured rates.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::{AdapterKind, Device};
use crate::error::{Error, Result, Setting};
use crate::model::{ExpertMatMul, Model, Op, ValueId};
use crate::plan::chunks::{Chunk, Work};
use crate::plan::costs::DeviceCosts;
use crate::plan::expert_cache::{expert_products, routing_bytes};
use crate::plan::site::Site;
use crate::plan::sizes::{expert_rows_bytes, packed_input_bytes};
use crate::plan::{UploadPath, Usage};
use crate::units::{Bytes, is_zero};
use crate::weights::{Catalog, TensorId};

/// Most tokens of a forward whose missing experts may be left to the host. A longer prompt takes nearly all experts, and each for so many
/// tokens that an adapter makes up for the upload.
pub(crate) const HOST_MISS_TOKENS: usize = 16;

/// Who computes with experts that are not in the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpertMissRule {
    /// Both in shares that end at the same time, where the host may compute.
    #[default]
    Auto,
    /// The adapter alone, so that answers do not depend on what is cached.
    Upload,
    /// The host alone; experts that are asked for often are brought to the cache afterwards.
    Host,
}

impl fmt::Display for ExpertMissRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ExpertMissRule::Auto => "auto",
            ExpertMissRule::Upload => "upload",
            ExpertMissRule::Host => "host",
        })
    }
}

impl FromStr for ExpertMissRule {
    type Err = Error;
    fn from_str(text: &str) -> Result<ExpertMissRule> {
        match text {
            "auto" => Ok(ExpertMissRule::Auto),
            "upload" => Ok(ExpertMissRule::Upload),
            "host" => Ok(ExpertMissRule::Host),
            _ => Err(Error::InvalidArgument {
                option: Setting::ExpertMisses.into(),
                reason: format!("`{text}` is none of auto, upload and host"),
            }),
        }
    }
}

/// What is missing in a cache, and how the experts of few tokens that are missing are shared out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertMisses {
    /// Percent of them that the host computes with; the others are uploaded.
    pub host_percent: u8,
    /// Percent of a token's experts that are expected to be there, where runs before have shown it; else it is assumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_percent: Option<u8>,
    /// Layers all of whose experts stay in the cache: nothing is ever missing there, and few tokens are computed without asking which
    /// experts they take.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_whole: usize,
}

impl ExpertMisses {
    /// Those of `worker`'s cache.
    pub(super) fn of(site: &Site<'_>, worker: usize) -> ExpertMisses {
        let host_may_compute = site.worker(Device::Cpu).is_some();
        let host_percent = match site.options.expert_misses {
            ExpertMissRule::Host => 100,
            ExpertMissRule::Auto if host_may_compute => balanced_percent(site, worker),
            ExpertMissRule::Auto | ExpertMissRule::Upload => 0,
        };
        ExpertMisses { host_percent, ..ExpertMisses::default() }
    }

    /// Whether any are left to the host.
    pub fn go_to_host(self) -> bool {
        self.host_percent > 0
    }

    /// The share of those of a forward of `n_tokens` that the host computes with.
    pub(super) fn host_share(self, n_tokens: usize) -> f64 {
        if n_tokens <= HOST_MISS_TOKENS { f64::from(self.host_percent) / 100.0 } else { 0.0 }
    }

    /// How many of `n_missing` experts of one layer are uploaded: as many as make the longer of both shares shortest.
    pub(crate) fn n_uploaded(self, n_missing: usize) -> usize {
        // An upload takes as long as the host's share is large.
        let [secs_of_upload, secs_on_host] = [self.host_percent, 100 - self.host_percent.min(100)].map(usize::from);
        let longer = |n_uploaded: &usize| (n_uploaded * secs_of_upload).max((n_missing - n_uploaded) * secs_on_host);
        (0..=n_missing).min_by_key(longer).unwrap_or(n_missing)
    }
}

/// The host's percent with which an expert's upload and product on the adapter take as long as its product on the host. A software adapter
/// has no cores of its own that could work meanwhile: whoever is faster does it all.
fn balanced_percent(site: &Site<'_>, worker: usize) -> u8 {
    let own = &site.workers[worker];
    let (adapter, host) = (DeviceCosts::new(own.spec), DeviceCosts::new(site.host));
    let unit = site.model.units.iter().find(|unit| unit.ops.iter().any(|op| op.experts().is_some()));
    let mut secs = [0.0; 2];
    for ExpertMatMul { weight, n_rows, .. } in unit.iter().flat_map(|unit| unit.ops.iter().filter_map(Op::experts)) {
        let (tensor, n_rows) = (&site.catalog[*weight], *n_rows as u64);
        let size_bytes = Bytes(n_rows.saturating_mul(tensor.row_bytes()));
        secs[0] += adapter.upload_secs(size_bytes, UploadPath::Written) + adapter.product_secs(tensor, n_rows, 1);
        secs[1] += host.product_secs(tensor, n_rows, 1) + host.dispatch_secs();
    }
    let [of_upload, on_host] = secs;
    if own.spec.kind == Some(AdapterKind::Software) {
        return if on_host < of_upload { 100 } else { 0 };
    }
    if of_upload > 0.0 { (100.0 * of_upload / (of_upload + on_host)).round() as u8 } else { 0 }
}

/// The steps of a chunk whose experts are cached, each with its unit, that the host computes for experts that are left to it: all up to the
/// last product with experts.
pub(crate) fn host_steps(chunk: &Chunk, model: &Model) -> impl Iterator<Item = (usize, Work)> {
    let steps: Vec<(usize, Work)> = chunk.work.iter().flat_map(|of_unit| of_unit.steps.iter().map(|step| (of_unit.unit, *step))).collect();
    let is_product = |(unit, step): &(usize, Work)| match *step {
        Work::Rows { op, .. } => model.units[*unit].ops[op].experts().is_some(),
        Work::Op(_) => false,
    };
    let n_steps = steps.iter().rposition(is_product).map_or(0, |last| last + 1);
    steps.into_iter().take(n_steps)
}

/// The values that experts read and write; the host has them of those that are left to it.
pub(crate) fn values_of_experts(chunk: &Chunk, model: &Model) -> BTreeSet<ValueId> {
    expert_products(chunk, model).flat_map(|(op, _)| [op.input, op.routing, op.output]).collect()
}

/// Biases that the host adds between the products with experts that are left to it.
pub(crate) fn host_vectors(chunk: &Chunk, model: &Model) -> BTreeSet<TensorId> {
    let of_step = |(unit, step): (usize, Work)| match step {
        Work::Op(op) => match model.units[unit].ops[op] {
            Op::AddExpertBias { bias, .. } => Some(bias),
            _ => None,
        },
        Work::Rows { .. } => None,
    };
    host_steps(chunk, model).filter_map(of_step).collect()
}

/// Bytes that the host reads back to compute with experts that are left to it: which ones tokens take, and what these read.
pub(super) fn taken_bytes(model: &Model, n_tokens: usize) -> Bytes {
    let n_tokens = n_tokens.min(HOST_MISS_TOKENS);
    let products = model.units.iter().flat_map(|unit| &unit.ops).filter_map(Op::experts);
    match products.map(|op| model.value(op.input).width as u64 * 4).max() {
        Some(width) => routing_bytes(model, n_tokens) + Bytes(width).times(n_tokens as u64),
        None => Bytes::ZERO,
    }
}

/// What the host needs for experts of `chunks` that are left to it, besides the experts.
pub(super) fn host_bytes(model: &Model, catalog: &Catalog, chunks: &[Chunk]) -> Usage {
    let cached = || chunks.iter().filter(|chunk| chunk.is_cached);
    let vectors: BTreeSet<TensorId> = cached().flat_map(|chunk| host_vectors(chunk, model)).collect();
    let values: BTreeSet<ValueId> = cached().flat_map(|chunk| values_of_experts(chunk, model)).collect();
    let of_token: Bytes = values.into_iter().map(|id| Bytes(model.value(id).width as u64 * 4)).sum();
    let scratch = packed_input_bytes(model, HOST_MISS_TOKENS) + expert_rows_bytes(model, HOST_MISS_TOKENS).unwrap_or_default();
    Usage {
        weights: vectors.into_iter().map(|id| Bytes(catalog[id].n_values() * 4)).sum(),
        activations: of_token.times(HOST_MISS_TOKENS as u64) + scratch,
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_end_when_the_host_ends() {
        let of = |host_percent: u8| ExpertMisses { host_percent, ..ExpertMisses::default() };
        assert_eq!([0, 1, 8].map(|n_missing| of(0).n_uploaded(n_missing)), [0, 1, 8], "all are uploaded");
        assert_eq!([0, 1, 8].map(|n_missing| of(100).n_uploaded(n_missing)), [0, 0, 0], "none is");
        // An upload takes three times as long as a product on the host.
        assert_eq!([1, 2, 3, 4, 8].map(|n_missing| of(75).n_uploaded(n_missing)), [0, 0, 0, 1, 2]);
        assert_eq!([1, 2, 4].map(|n_missing| of(25).n_uploaded(n_missing)), [1, 2, 3]);
    }

    #[test]
    fn forwards_of_many_tokens_leave_nothing_to_the_host() {
        let misses = ExpertMisses { host_percent: 60, ..ExpertMisses::default() };
        assert_eq!([1, HOST_MISS_TOKENS, HOST_MISS_TOKENS + 1].map(|n_tokens| misses.host_share(n_tokens)), [0.6, 0.6, 0.0]);
    }
}
