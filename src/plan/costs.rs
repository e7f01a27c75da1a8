//! Costs: how long operations take on each device, by its rates. Knows neither plans nor schedules. The dry run adds these costs up, and so
//! does the GPU executor, which must not keep its adapter busy for too long.

use serde::Serialize;

use crate::device::{AdapterKind, Device, DeviceSpec, Origin, Phase, Rates};
use crate::dtype::DType;
use crate::model::{Attention, DeltaRule, ExpertMatMul, LoraMatMul, Model, Op, Unit, share_experts};
use crate::plan::UploadPath;
use crate::plan::fusion::is_fused;
use crate::plan::sizes::ATTENTION_PARTS_TOKENS;
use crate::units::Bytes;
use crate::weights::{Catalog, TensorInfo};

/// What a submission to an adapter should take at most. Windows and browsers reset one that does not answer for 2 s, and
/// others may use it too. Dispatches that would take much longer are given fewer tokens, but never so few that it costs.
pub(crate) const SUBMIT_SECS: f64 = 0.25;

/// The share of a copy's time by which an adapter that computes on the host's cores is late. Upload workers of the lowest priority mostly
/// run in the gaps between its dispatches: with 92 MiB a token, on two cores, tokens took 1.5 to 3.5 % longer than with no uploads.
const COPY_DELAY: f64 = 0.25;

/// The workload of one forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Workload {
    /// Tokens in all.
    pub n_tokens: usize,
    /// Positions whose logits are asked for.
    pub n_logit_rows: usize,
    /// Positions that each token attends to.
    pub position: usize,
    /// Sequences that the tokens belong to.
    pub n_seqs: usize,
}

impl Workload {
    /// One new token of one sequence that has `position` positions.
    pub const fn decode(position: usize) -> Workload {
        Workload { n_tokens: 1, n_logit_rows: 1, position, n_seqs: 1 }
    }

    /// `n_tokens` of a prompt at once, from its beginning.
    pub const fn prefill(n_tokens: usize) -> Workload {
        Workload { n_tokens, n_logit_rows: 1, position: n_tokens / 2, n_seqs: 1 }
    }

    /// The same of `n_seqs` sequences side by side.
    #[must_use]
    pub const fn side_by_side(self, n_seqs: usize) -> Workload {
        let Workload { n_tokens, n_logit_rows, position, .. } = self;
        Workload { n_tokens: n_tokens * n_seqs, n_logit_rows: n_logit_rows * n_seqs, position, n_seqs: self.n_seqs * n_seqs }
    }

    /// Those of two micro-batches with half of the sequences each, the first with one more of an odd number; `None` of one sequence.
    pub(super) fn halves(&self) -> Option<[Workload; 2]> {
        let first_of = |n: usize| (n * self.n_seqs.div_ceil(2)).div_ceil(self.n_seqs);
        (self.n_seqs > 1).then(|| {
            let [n_tokens, n_logit_rows, n_seqs] = [self.n_tokens, self.n_logit_rows, self.n_seqs].map(first_of);
            let first = Workload { n_tokens, n_logit_rows, n_seqs, ..*self };
            let rest = Workload {
                n_tokens: self.n_tokens - n_tokens,
                n_logit_rows: self.n_logit_rows - n_logit_rows,
                n_seqs: self.n_seqs - n_seqs,
                ..*self
            };
            [first, rest]
        })
    }

    /// Which attention kernel it takes: that of prompts where many tokens follow each other in few sequences, of which only the last ones are
    /// asked for logits.
    fn attention(&self) -> Phase {
        let is_prompt = self.n_tokens > ATTENTION_PARTS_TOKENS && self.n_tokens >= 4 * self.n_logit_rows;
        if is_prompt { Phase::Prefill } else { Phase::Decode }
    }
}

/// One device's costs.
#[derive(Debug, Clone)]
pub(crate) struct DeviceCosts {
    pub(super) device: Device,
    rates: Rates,
    /// Whether it computes on the cores that copy weights to it.
    shares_cores: bool,
}

impl DeviceCosts {
    /// Rates that were not measured are taken as typical for the kind of device.
    pub(crate) fn new(spec: &DeviceSpec) -> DeviceCosts {
        let rates = spec.rates.clone().or(&Rates::assumed(spec.device, spec.kind));
        DeviceCosts { device: spec.device, rates, shares_cores: spec.kind == Some(AdapterKind::Software) }
    }

    /// Where the rates come from.
    pub(super) fn origin(&self) -> Origin {
        self.rates.origin
    }

    /// The fixed cost of an operation: nothing where it is fused with another one.
    pub(crate) fn fixed_secs(&self, ops: &[Op], op: usize) -> f64 {
        if is_fused(ops, op) { 0.0 } else { self.dispatch_secs() }
    }

    /// The fixed cost of a dispatch.
    pub(crate) fn dispatch_secs(&self) -> f64 {
        self.rates.dispatch_secs.unwrap_or(0.0)
    }

    /// Seconds of one product of `n_rows` rows of `tensor` with `n_tokens` vectors, besides what is fixed: the weights are read once,
    /// and each further vector costs its arithmetic. With no vector, there is no product.
    pub(crate) fn product_secs(&self, tensor: &TensorInfo, n_rows: u64, n_tokens: usize) -> f64 {
        let (bytes, values) = (n_rows as f64 * tensor.row_bytes() as f64, n_rows as f64 * tensor.n_columns() as f64);
        self.of_rows_secs(tensor.dtype, bytes, values, n_tokens)
    }

    /// The same of rows of so many bytes and values.
    fn of_rows_secs(&self, dtype: DType, bytes: f64, values: f64, n_tokens: usize) -> f64 {
        let Some(n_more) = n_tokens.checked_sub(1) else { return 0.0 };
        let read = self.rates.matvec_of(dtype).map_or(0.0, |rate| bytes / rate.0);
        let multiplied = self.rates.matmul_of(dtype).map_or(0.0, |rate| 2.0 * values * n_more as f64 / rate);
        read + multiplied
    }

    /// Seconds of the products of `n_tokens` with `n_rows` rows of all experts' matrices in `tensor`, besides what is fixed. A token reads the
    /// rows of its experts only, which are spread evenly over all rows. An expert is read once for all tokens
    /// that take it; by an adapter, where they are few, for each of them.
    pub(crate) fn expert_secs(&self, op: &ExpertMatMul, tensor: &TensorInfo, n_rows: u64, n_tokens: usize) -> f64 {
        self.chosen_secs([op.n_used, op.n_experts], tensor, n_rows, n_tokens)
    }

    /// The same with `n_rows` rows of all heads' matrices, of which a token reads each.
    pub(crate) fn head_secs(&self, tensor: &TensorInfo, n_rows: u64, n_tokens: usize) -> f64 {
        self.chosen_secs([1, 1], tensor, n_rows, n_tokens)
    }

    /// Of rows of so many experts, of which each token takes some.
    fn chosen_secs(&self, [n_used, n_experts]: [usize; 2], tensor: &TensorInfo, n_rows: u64, n_tokens: usize) -> f64 {
        let share = n_used as f64 / n_experts.max(1) as f64;
        let n_products = share * n_tokens as f64;
        // Of tokens that choose independently, the share of experts that any takes.
        let is_read_once = self.device == Device::Cpu || share_experts(n_tokens, n_used, n_experts, self.shares_cores);
        let n_read = if is_read_once { 1.0 - (1.0 - share).powf(n_tokens as f64) } else { n_products };
        let (bytes, values) = (n_rows as f64 * tensor.row_bytes() as f64, n_rows as f64 * tensor.n_columns() as f64);
        let read = self.rates.expert_matvec_of(tensor.dtype).map_or(0.0, |rate| n_read * bytes / rate.0);
        let multiplied = self.rates.matmul_of(tensor.dtype).map_or(0.0, |rate| 2.0 * (n_products - n_read).max(0.0) * values / rate);
        read + multiplied
    }

    /// Seconds of the rows of a matrix in `tensor` that operation `op` multiplies, in a forward of this workload, besides what is fixed.
    pub(crate) fn rows_secs(&self, model: &Model, op: &Op, tensor: &TensorInfo, n_rows: u64, workload: Workload) -> f64 {
        let n_tokens = |input| model.value(input).n_rows(workload.n_tokens, workload.n_logit_rows);
        match op {
            Op::ExpertMatMul(op) => self.expert_secs(op, tensor, n_rows, n_tokens(op.input)),
            Op::HeadMatMul(op) => self.head_secs(tensor, n_rows, n_tokens(op.input)),
            Op::MatMul { input, .. } => self.product_secs(tensor, n_rows, n_tokens(*input)),
            _ => 0.0,
        }
    }

    /// Seconds of a product with a matrix of a LoRA adapter, besides what is fixed.
    pub(crate) fn lora_secs(&self, op: &LoraMatMul, n_tokens: usize) -> f64 {
        self.of_rows_secs(DType::F32, (op.n_rows * op.n_columns * 4) as f64, (op.n_rows * op.n_columns) as f64, n_tokens)
    }

    /// Seconds of an operation that reads no matrix of the model's, besides what is fixed: of all of them, attention, the delta rule and
    /// LoRA adapters alone take long.
    pub(crate) fn op_secs(&self, model: &Model, op: &Op, workload: Workload) -> f64 {
        match op {
            Op::LoraMatMul(op) => self.lora_secs(op, model.value(op.input).n_rows(workload.n_tokens, workload.n_logit_rows)),
            Op::Attention(attention) => self.attention_secs(attention, workload.n_tokens, workload.position, workload.attention()),
            Op::DeltaRule(rule) => self.delta_rule_secs(rule, workload.n_tokens),
            Op::Embed { .. }
            | Op::RmsNorm(_)
            | Op::LayerNorm(_)
            | Op::MatMul { .. }
            | Op::ExpertMatMul(_)
            | Op::HeadMatMul(_)
            | Op::CopyPart(_)
            | Op::Route(_)
            | Op::AddExpertBias { .. }
            | Op::WeighInputs { .. }
            | Op::SumExperts { .. }
            | Op::GateRows { .. }
            | Op::AddBias { .. }
            | Op::Rope(_)
            | Op::StoreKv(_)
            | Op::Conv(_)
            | Op::Glu { .. }
            | Op::Map { .. }
            | Op::Add { .. }
            | Op::GatherRows { .. } => 0.0,
        }
    }

    /// Seconds of one layer's attention of `n_tokens` over `n_positions`, besides the fixed cost.
    pub(crate) fn attention_secs(&self, attention: &Attention, n_tokens: usize, n_positions: usize, phase: Phase) -> f64 {
        let looked_at = n_positions.min(attention.window.unwrap_or(usize::MAX)) as f64;
        let token_positions = n_tokens as f64 * looked_at;
        match phase {
            // Scores and the weighted sum of values are two products with every position, and tokens share the cached positions as the
            // vectors of a product share its matrix.
            Phase::Prefill => {
                let flops = 4.0 * token_positions * (attention.n_heads * attention.head_size) as f64;
                self.rates.matmul_of(DType::F32).map_or(0.0, |rate| flops / rate)
            }
            // Each token reads the keys and values of all heads and positions: on adapters in f16, the default of the cache.
            Phase::Decode => {
                let bytes_of_value = if self.device == Device::Cpu { 4 } else { 2 };
                let bytes = token_positions * (2 * attention.n_kv_heads * attention.head_size * bytes_of_value) as f64;
                self.rates.matvec_of(DType::F32).map_or(0.0, |rate| bytes / rate.0)
            }
        }
    }

    /// Seconds of the delta rule of `n_tokens`, besides the fixed cost: each token reads the state twice and writes it.
    pub(crate) fn delta_rule_secs(&self, rule: &DeltaRule, n_tokens: usize) -> f64 {
        let bytes = 12.0 * (n_tokens * rule.n_value_heads * rule.key_size) as f64 * rule.value_size as f64;
        self.rates.matvec_of(DType::F32).map_or(0.0, |rate| bytes / rate.0)
    }

    /// Seconds of a whole unit.
    pub(super) fn unit_secs(&self, model: &Model, unit: &Unit, catalog: &Catalog, workload: Workload) -> f64 {
        let of_op = |(index, op): (usize, &Op)| match (op, op.matrix()) {
            (Op::Embed { .. }, _) => 0.0,
            (_, Some(weight)) => {
                let tensor = &catalog[weight];
                self.fixed_secs(&unit.ops, index) + self.rows_secs(model, op, tensor, tensor.n_rows(), workload)
            }
            (_, None) => self.fixed_secs(&unit.ops, index) + self.op_secs(model, op, workload),
        };
        unit.ops.iter().enumerate().map(of_op).sum()
    }

    /// Seconds that one more submission costs the device.
    pub(super) fn submit_secs(&self) -> f64 {
        if self.device == Device::Cpu { 0.0 } else { self.rates.submit_secs.unwrap_or(0.0) }
    }

    /// Seconds until the host sees that the device is done.
    pub(super) fn round_trip_secs(&self) -> f64 {
        if self.device == Device::Cpu { 0.0 } else { self.rates.round_trip_secs.unwrap_or(0.0) }
    }

    /// Seconds to bring `bytes` from host memory into a slot. What a host computes with was read into its slot.
    pub(super) fn upload_secs(&self, bytes: Bytes, path: UploadPath) -> f64 {
        let rate = match (self.device, path) {
            (Device::Cpu, _) => None,
            (_, UploadPath::Mapped) => self.rates.upload_mapped.or(self.rates.upload_staged),
            (_, UploadPath::Staged) => self.rates.upload_staged,
            (_, UploadPath::Written) => self.rates.upload_written.or(self.rates.upload_staged),
        };
        rate.map_or(0.0, |rate| rate.secs(bytes))
    }

    /// Seconds by which the device computes later for an upload that takes `upload_secs`.
    pub(super) fn delay_secs(&self, upload_secs: f64) -> f64 {
        if self.shares_cores { COPY_DELAY * upload_secs } else { 0.0 }
    }

    /// Seconds to bring `bytes` from the device to the host.
    pub(super) fn readback_secs(&self, bytes: Bytes) -> f64 {
        if self.device == Device::Cpu { 0.0 } else { self.rates.readback.map_or(0.0, |rate| rate.secs(bytes)) }
    }

    /// Seconds in which `bytes` of the residual stream move from the device to the next one, or of the result to the host.
    pub(super) fn transfer_secs(&self, to: Option<&DeviceCosts>, bytes: Bytes) -> f64 {
        let up = to.filter(|to| to.device != Device::Cpu).map_or(0.0, |to| to.upload_secs(bytes, UploadPath::Staged));
        self.round_trip_secs() + self.readback_secs(bytes) + up
    }

    /// Seconds of a read besides its bytes, in which others may be read.
    pub(super) fn request_secs(&self) -> f64 {
        self.rates.disk_request_secs.unwrap_or(0.0)
    }

    /// Seconds to read `bytes` of the model's files.
    pub(super) fn fetch_secs(&self, bytes: Bytes) -> f64 {
        self.rates.disk_read.map_or(0.0, |rate| rate.secs(bytes))
    }
}

/// The costs of every device of a machine.
#[derive(Debug, Clone)]
pub(super) struct MachineCosts {
    devices: Vec<DeviceCosts>,
    disk: DeviceCosts,
}

impl MachineCosts {
    pub(super) fn new(devices: &[DeviceSpec]) -> MachineCosts {
        let disk = devices.iter().find(|spec| spec.device == Device::Disk).map(DeviceCosts::new);
        MachineCosts {
            devices: devices.iter().map(DeviceCosts::new).collect(),
            disk: disk.unwrap_or_else(|| DeviceCosts {
                device: Device::Disk,
                rates: Rates::assumed(Device::Disk, None),
                shares_cores: false,
            }),
        }
    }

    /// The costs of `device`; of the disk where there is no such device.
    pub(super) fn of(&self, device: Device) -> &DeviceCosts {
        self.devices.iter().find(|costs| costs.device == device).unwrap_or(&self.disk)
    }

    pub(super) fn disk(&self) -> &DeviceCosts {
        &self.disk
    }
}

/// Bytes of the residual stream of a forward, and of what goes with it from device to device.
pub(super) fn hidden_bytes(model: &Model, workload: Workload) -> Bytes {
    let width: usize = model.passed_on().map(|id| model.value(id).width).sum();
    Bytes(width as u64 * 4).times(workload.n_tokens as u64)
}
