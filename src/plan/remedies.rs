//! Remedies: options that let a plan be made within the budgets where there is none. Each is tried before it is named.

use std::iter::successors;

use crate::device::Device;
use crate::plan::placement::{Asked, CTX_STEP, longest_ctx};
use crate::plan::{Context, Homes, KvDType, PlanOptions, ResidentLayers, Spill};

impl Asked<'_> {
    /// Other options that let a plan be made within the budgets, as one says what to change.
    pub(super) fn ways_out(&self) -> Vec<String> {
        let options = self.options;
        let mut ways = Vec::new();
        let mut offer = |way: &str, changed: PlanOptions| {
            if self.is_possible(&changed) {
                ways.push(way.to_owned());
            }
        };
        if options.spill == Spill::Refused {
            offer("drop --strict so that weights may live elsewhere", PlanOptions { spill: Spill::Allowed, ..options.clone() });
        }
        if options.context == Context::Fit && options.ctx_size.is_none() {
            offer("drop --fit so that a part streams", PlanOptions { context: Context::Comfortable, ..options.clone() });
        }
        if options.resident_layers != ResidentLayers::Auto {
            offer("drop --n-gpu-layers so that a part streams", PlanOptions { resident_layers: ResidentLayers::Auto, ..options.clone() });
        }
        if !matches!(options.homes, Homes::Auto | Homes::FrontToBack) {
            offer("let the planner choose the homes (--device-map auto)", PlanOptions { homes: Homes::Auto, ..options.clone() });
        }
        if options.kv_dtype == KvDType::F32 {
            offer("use --kv-dtype f16", PlanOptions { kv_dtype: KvDType::F16, ..options.clone() });
        }
        if options.n_slots.is_some() {
            offer("drop --slots", PlanOptions { n_slots: None, ..options.clone() });
        }
        if options.compute_on != [Device::Cpu] {
            let of_host = PlanOptions { compute_on: vec![Device::Cpu], ..options.clone() };
            offer("compute on the host (--device cpu)", of_host);
        }
        ways.extend(self.shorter_ctx().map(|n| format!("lower --ctx-size to {n}")));
        let halves = |n: Option<usize>| successors(n, |&n| (n > 1).then_some(n.next_power_of_two() / 2)).skip(1);
        let ubatch_size = options.ubatch_size.map(|n| n.min(options.ctx_size.unwrap_or(self.model.config.context_length).max(1)));
        let mut smaller = halves(ubatch_size).filter(|&n| self.is_possible(&PlanOptions { ubatch_size: Some(n), ..options.clone() }));
        ways.extend(smaller.next().map(|n| format!("lower --ubatch-size to {n}")));
        let mut fewer = halves(Some(options.n_seqs)).filter(|&n| self.is_possible(&PlanOptions { n_seqs: n, ..options.clone() }));
        ways.extend(fewer.next().map(|n| format!("lower --parallel to {n}")));
        ways
    }

    /// The longest context below the one asked for with which there is a plan.
    fn shorter_ctx(&self) -> Option<usize> {
        let asked = self.options.ctx_size?;
        let works = |ctx_size: usize| self.is_possible(&PlanOptions { ctx_size: Some(ctx_size), ..self.options.clone() });
        (asked > CTX_STEP && works(CTX_STEP)).then(|| longest_ctx(asked, works))
    }
}
