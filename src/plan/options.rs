//! The options of a plan. Plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::accelerate::{DeviceMap, DeviceMapMode};
use crate::device::Device;
use crate::error::{Error, Result, Setting};
use crate::plan::sizes::n_kv_blocks;
use crate::plan::{ExpertCacheRule, ExpertMissRule, ExpertProfile, Placement, SavedPlan};
use crate::units::Bytes;

/// How a cache of keys, or of values, stores its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheDType {
    /// IEEE single.
    F32,
    /// IEEE half: half the memory, rounded.
    F16,
    /// Blocks of 32 numbers: 8 bits each and a scale.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Blocks of 32 numbers: 4 bits each and a scale.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl CacheDType {
    /// All of them.
    pub const ALL: [CacheDType; 4] = [CacheDType::F32, CacheDType::F16, CacheDType::Q8_0, CacheDType::Q4_0];

    /// Numbers that are stored together; a head must have whole blocks.
    pub fn block_len(self) -> usize {
        match self {
            CacheDType::F32 | CacheDType::F16 => 1,
            CacheDType::Q8_0 | CacheDType::Q4_0 => 32,
        }
    }

    /// Bytes of so many numbers, and of their scales.
    pub fn row_bytes(self, n_numbers: usize) -> [u64; 2] {
        let (n_numbers, n_blocks) = (n_numbers as u64, (n_numbers / 32) as u64);
        match self {
            CacheDType::F32 => [4 * n_numbers, 0],
            CacheDType::F16 => [2 * n_numbers, 0],
            CacheDType::Q8_0 => [n_numbers, 2 * n_blocks],
            CacheDType::Q4_0 => [n_numbers / 2, 2 * n_blocks],
        }
    }

    /// What the host stores in its place: half the memory would cost it more time than that saves.
    #[must_use]
    pub fn on_host(self) -> CacheDType {
        if self == CacheDType::F16 { CacheDType::F32 } else { self }
    }
}

impl fmt::Display for CacheDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            CacheDType::F32 => "f32",
            CacheDType::F16 => "f16",
            CacheDType::Q8_0 => "q8_0",
            CacheDType::Q4_0 => "q4_0",
        })
    }
}

impl FromStr for CacheDType {
    type Err = Error;
    fn from_str(text: &str) -> Result<CacheDType> {
        CacheDType::ALL.into_iter().find(|dtype| dtype.to_string() == text).ok_or_else(|| Error::InvalidArgument {
            option: Setting::KvDType.into(),
            reason: format!("`{text}` is none of f32, f16, q8_0 and q4_0"),
        })
    }
}

/// How the KV cache stores its numbers. As a word it is the dtype of both, or those of keys and of values: `q8_0/q4_0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvDType {
    /// Of keys, and of what stands for both.
    pub keys: CacheDType,
    /// Of values.
    pub values: CacheDType,
}

impl KvDType {
    /// Both in [`CacheDType::F32`].
    pub const F32: KvDType = KvDType::both(CacheDType::F32);
    /// Both in [`CacheDType::F16`].
    pub const F16: KvDType = KvDType::both(CacheDType::F16);
    /// Both in [`CacheDType::Q8_0`].
    pub const Q8_0: KvDType = KvDType::both(CacheDType::Q8_0);
    /// Both in [`CacheDType::Q4_0`].
    pub const Q4_0: KvDType = KvDType::both(CacheDType::Q4_0);

    /// Keys and values in the same dtype.
    pub const fn both(dtype: CacheDType) -> KvDType {
        KvDType { keys: dtype, values: dtype }
    }

    /// The same with another dtype for each, which follows from its own.
    #[must_use]
    pub fn map(self, of_each: impl Fn(CacheDType) -> CacheDType) -> KvDType {
        KvDType { keys: of_each(self.keys), values: of_each(self.values) }
    }

    /// What the host stores in its place.
    #[must_use]
    pub fn on_host(self) -> KvDType {
        self.map(CacheDType::on_host)
    }
}

impl Default for KvDType {
    /// Half of what values take that are not rounded.
    fn default() -> KvDType {
        KvDType::F16
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KvDType { keys, values } = self;
        if keys == values { keys.fmt(f) } else { f.pad(&format!("{keys}/{values}")) }
    }
}

impl FromStr for KvDType {
    type Err = Error;
    fn from_str(text: &str) -> Result<KvDType> {
        let (keys, values) = text.split_once('/').unwrap_or((text, text));
        Ok(KvDType { keys: keys.parse()?, values: values.parse()? })
    }
}

impl Serialize for KvDType {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KvDType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<KvDType, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How weights reach a slot on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadPath {
    /// The host maps the slot itself and writes into it: no copy on the GPU's queue.
    Mapped,
    /// The host writes into staging memory; the queue copies it into a device-local slot.
    Staged,
    /// The queue takes the bytes and writes them into the slot in its turn, with memory that the API finds: a browser's way.
    Written,
}

impl fmt::Display for UploadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            UploadPath::Mapped => "mapped slots",
            UploadPath::Staged => "staging ring",
            UploadPath::Written => "written by the queue",
        })
    }
}

/// How many layers may be resident on the adapter that computes (`-ngl`). A host that computes keeps as many as fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResidentLayers {
    /// As many as fit.
    #[default]
    Auto,
    /// At most so many, from the first on: with 0 every layer streams. The head counts as one more after the last layer.
    AtMost(usize),
    /// All of them and the head, or the plan is refused.
    All,
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// One sequence: its prompt, then token by token.
    #[default]
    Latency,
    /// Many sequences side by side: as many tokens per second as the machine can make in all.
    Throughput,
}

/// A typical request, which a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens of the answer.
    pub n_generated: usize,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix { n_prompt: 256, n_generated: 256 }
    }
}

/// How placements are chosen (`--device-map`).
#[derive(Debug, Clone, Default, PartialEq)]
pub enum PlacementRule {
    /// By measured rates: the placements whose dry run is the fastest.
    #[default]
    Auto,
    /// Front to back along the devices that may compute, to each as many units as fit its budget; what is left streams to the last. Uses no
    /// rates.
    FrontToBack,
    /// By Hugging Face Accelerate's rules, with budgets that leave room for what it does not count.
    Accelerate(DeviceMapMode),
    /// By this device map.
    Given(DeviceMap),
    /// The host computes the feed-forward parts of these layers with experts; the first adapter has all else.
    ExpertsOnHost(HostLayers),
    /// Exactly these placements, one per unit: who computes is given too.
    Placed(Vec<Placement>),
}

/// Layers whose experts the host computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostLayers {
    /// So many of those with experts, from the first on.
    First(usize),
    /// Those of these numbers, as far as the model has them.
    Listed(BTreeSet<usize>),
}

/// Whether weights may be stored on devices that were not named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Spill {
    /// They may: host memory and disk take what fits nowhere else.
    #[default]
    Allowed,
    /// They may not (`--strict`): weights are stored only on devices with a budget, or on those that compute where none has one. The
    /// embedding, of which a forward reads a few rows, is exempt.
    Refused,
}

/// How long the context is where `ctx_size` is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Context {
    /// As long as is comfortable beside the weights.
    #[default]
    Comfortable,
    /// As long as every weight stays resident (`--fit`); refused where none does.
    Fit,
}

/// The options of a plan. `None` leaves the choice to the planner, and so does a size of 0.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// Who may compute: adapters, the host, or both, in the order in which layers are given to them.
    pub compute_on: Vec<Device>,
    /// Budgets (`--max-memory`); a device that is absent offers its capacity.
    pub max_memory: BTreeMap<Device, Bytes>,
    /// Positions per sequence (`--ctx-size`).
    pub ctx_size: Option<usize>,
    /// Positions of all sequences together (`--kv-size`): of so many tokens keys and values are kept, whichever sequences they are of. Where it
    /// is open, as many as all sequences may have.
    pub kv_size: Option<usize>,
    /// What the context is where `ctx_size` is open.
    pub context: Context,
    /// How placements are chosen.
    pub placement: PlacementRule,
    /// A saved plan that is to be made again (`--plan`), within `max_memory`; the other options have no effect on it.
    pub saved: Option<Arc<SavedPlan>>,
    /// Classes of modules that Accelerate's rules keep whole (`--no-split`); the model's layers where it is open, as transformers does.
    pub no_split: Option<Vec<String>>,
    /// Whether weights may be stored on devices that were not named.
    pub spill: Spill,
    /// Sequences in the KV cache at the same time (`--parallel`); where it is open, one, or for throughput as many as pay.
    pub n_seqs: usize,
    /// Tokens that one forward takes at most (`--ubatch-size`).
    pub ubatch_size: Option<usize>,
    /// Positions of one forward whose logits may be asked for.
    pub logit_rows: usize,
    /// How the KV cache stores its numbers (`--kv-dtype`, `-ctk`, `-ctv`); the host stores f16 as f32.
    pub kv_dtype: KvDType,
    /// How many layers may be resident (`-ngl`).
    pub resident_layers: ResidentLayers,
    /// Whether experts may pass through a cache on an adapter (`--expert-cache`).
    pub expert_cache: ExpertCacheRule,
    /// Who computes with experts that are not in the cache (`--expert-misses`).
    pub expert_misses: ExpertMissRule,
    /// Which experts tokens took in runs before (`--expert-profile`); where it is open, what a cache finds is assumed.
    pub expert_profile: Option<Arc<ExpertProfile>>,
    /// Slots of the ring (`--slots`); clamped to 1 to 64.
    pub n_slots: Option<usize>,
    /// How many chunks ahead of the computation uploads are started (`--lookahead`).
    pub lookahead: Option<usize>,
    /// How weights reach a slot (`--upload`).
    pub upload: Option<UploadPath>,
    /// What the plan is made for (`--objective`).
    pub objective: Objective,
    /// The request that it is made for (`--mix`).
    pub mix: Mix,
}

impl PlanOptions {
    /// Blocks of the KV caches in a context of so many positions.
    pub(super) fn n_kv_blocks(&self, ctx_size: usize) -> usize {
        n_kv_blocks(self.n_seqs, ctx_size, self.kv_size)
    }

    /// The same with forwards that take no more tokens than sequences of `n_positions` positions have.
    pub(super) fn within(&self, n_positions: usize) -> PlanOptions {
        let most = n_positions.saturating_mul(self.n_seqs.max(1)).max(1);
        PlanOptions { ubatch_size: self.ubatch_size.map(|n_tokens| n_tokens.min(most)), ..self.clone() }
    }
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            compute_on: vec![Device::Gpu(0)],
            max_memory: BTreeMap::new(),
            ctx_size: None,
            kv_size: None,
            context: Context::Comfortable,
            placement: PlacementRule::Auto,
            saved: None,
            no_split: None,
            spill: Spill::Allowed,
            n_seqs: 0,
            ubatch_size: None,
            logit_rows: 1,
            kv_dtype: KvDType::default(),
            resident_layers: ResidentLayers::Auto,
            expert_cache: ExpertCacheRule::Auto,
            expert_misses: ExpertMissRule::Auto,
            expert_profile: None,
            n_slots: None,
            lookahead: None,
            upload: None,
            objective: Objective::Latency,
            mix: Mix::default(),
        }
    }
}
