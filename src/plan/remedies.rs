//! Remedies: options that let a plan be made within the budgets where there is none. Each is tried before it is named.

use std::iter::successors;

use crate::device::Device;
use crate::error::{Remedy, Setting};
use crate::plan::planner::{CTX_STEP, Planner, longest_ctx};
use crate::plan::{CacheDType, Context, PlacementRule, PlanOptions, ResidentLayers, Spill};

impl Planner<'_> {
    /// Other options that let a plan be made within the budgets.
    pub(super) fn ways_out(&self) -> Vec<Remedy> {
        let options = self.options;
        let mut ways = Vec::new();
        let mut offer = |way: Remedy, changed: PlanOptions| {
            if self.is_possible(&changed) {
                ways.push(way);
            }
        };
        if options.spill == Spill::Refused {
            offer(
                Remedy::Drop(Setting::Strict, "so that weights may be stored elsewhere"),
                PlanOptions { spill: Spill::Allowed, ..options.clone() },
            );
        }
        if options.context == Context::Fit && options.ctx_size.is_none() {
            offer(Remedy::Drop(Setting::Fit, "so that a part streams"), PlanOptions { context: Context::Comfortable, ..options.clone() });
        }
        if options.resident_layers != ResidentLayers::Auto {
            let way = Remedy::Drop(Setting::ResidentLayers, "so that a part streams");
            offer(way, PlanOptions { resident_layers: ResidentLayers::Auto, ..options.clone() });
        }
        if !matches!(options.placement, PlacementRule::Auto | PlacementRule::FrontToBack) {
            let way = Remedy::UseInOrderTo("let the planner choose the placements", Setting::Placement, "auto".into());
            offer(way, PlanOptions { placement: PlacementRule::Auto, ..options.clone() });
        }
        let halved = options.kv_dtype.map(|dtype| if dtype == CacheDType::F32 { CacheDType::F16 } else { dtype });
        if options.kv_dtype != halved {
            offer(Remedy::Use(Setting::KvDType, halved.to_string()), PlanOptions { kv_dtype: halved, ..options.clone() });
        }
        if options.n_slots.is_some() {
            offer(Remedy::Drop(Setting::Slots, ""), PlanOptions { n_slots: None, ..options.clone() });
        }
        if options.compute_on != [Device::Cpu] {
            let of_host = PlanOptions { compute_on: vec![Device::Cpu], ..options.clone() };
            offer(Remedy::UseInOrderTo("compute on the host", Setting::Device, "cpu".into()), of_host);
        }
        ways.extend(self.shorter_ctx().map(|n| Remedy::Lower(Setting::CtxSize, Some(n))));
        let halves = |n: Option<usize>| successors(n, |&n| (n > 1).then_some(n.next_power_of_two() / 2)).skip(1);
        let ubatch_size = options.ubatch_size.map(|n| n.min(options.ctx_size.unwrap_or(self.model.config.context_length).max(1)));
        let mut smaller = halves(ubatch_size).filter(|&n| self.is_possible(&PlanOptions { ubatch_size: Some(n), ..options.clone() }));
        ways.extend(smaller.next().map(|n| Remedy::Lower(Setting::UbatchSize, Some(n))));
        let mut fewer = halves(Some(options.n_seqs)).filter(|&n| self.is_possible(&PlanOptions { n_seqs: n, ..options.clone() }));
        ways.extend(fewer.next().map(|n| Remedy::Lower(Setting::NSeqs, Some(n))));
        ways
    }

    /// The longest context below the one asked for with which there is a plan.
    fn shorter_ctx(&self) -> Option<usize> {
        let asked = self.options.ctx_size?;
        let works = |ctx_size: usize| self.is_possible(&PlanOptions { ctx_size: Some(ctx_size), ..self.options.clone() });
        (asked > CTX_STEP && works(CTX_STEP)).then(|| longest_ctx(asked, works))
    }
}
