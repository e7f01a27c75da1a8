//! Explains a plan: its predicted costs, the alternatives, and what more memory would bring. Printed under the plan.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::accelerate::DeviceMapMode;
use crate::device::{Device, DeviceSpec, Origin};
use crate::error::{Fields, Setting, Words};
use crate::model::Model;
use crate::plan::candidates::{self, Forecast, forecast};
use crate::plan::dry_run::{Bound, Prediction};
use crate::plan::planner::settle;
use crate::plan::site::Site;
use crate::plan::{Context, Plan, PlanOptions};
use crate::units::{Bytes, BytesPerSec, TokensPerSec, millis};
use crate::weights::Catalog;

/// The step of memory whose benefit is predicted.
const MORE: Bytes = Bytes::gib(1);
/// How many times faster a plan must be to be reported.
const LEAST_GAIN_REPORTED: f64 = 1.01;
/// How many alternatives are reported.
const N_ALTERNATIVES: usize = 2;

/// A plan's costs and alternatives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// How fast the plan itself should go.
    pub forecast: Forecast,
    /// The best of the plans that were not taken.
    pub alternatives: Vec<Alternative>,
    /// What a GiB more on a device would bring.
    pub with_more: Vec<WithMore>,
}

/// A plan that was not taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alternative {
    /// How it differs.
    #[serde(rename = "name", serialize_with = "in_fields")]
    pub way: OtherWay,
    /// How fast it should go.
    pub forecast: Forecast,
    /// Positions of its context.
    pub ctx_size: usize,
    /// The same, where it is not that of the plan that was taken.
    #[serde(skip)]
    pub other_ctx_size: Option<usize>,
}

/// How a plan differs from the one that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OtherWay {
    /// Other devices compute, or in another order; in words.
    Devices(String),
    /// Accelerate's device map of this mode.
    DeviceMap(DeviceMapMode),
}

impl OtherWay {
    /// In these words.
    pub fn in_words(&self, words: &dyn Words) -> String {
        match self {
            OtherWay::Devices(text) => text.clone(),
            OtherWay::DeviceMap(mode) => format!("{} {mode}", words.setting(Setting::Placement)),
        }
    }
}

fn in_fields<S: Serializer>(way: &OtherWay, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&way.in_words(&Fields))
}

/// What more memory would bring.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WithMore {
    /// Where.
    pub device: Device,
    /// How much.
    pub bytes: Bytes,
    /// How fast the best plan would then go.
    pub forecast: Forecast,
    /// Positions of its context.
    pub ctx_size: usize,
    /// Positions of the context that would be chosen then, where none was asked for.
    pub open_ctx_size: Option<usize>,
}

/// Compares a plan with its alternatives.
pub fn explain(plan: &Plan, catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Explanation {
    let of = |plan: &Plan| forecast(plan, catalog, model, devices, options);
    let options = &PlanOptions { n_seqs: plan.n_seqs, ..options.clone() }.within(plan.ctx_size);
    let site_options = settle(options);
    let others = Site::new(catalog, model, devices, &site_options).map(|site| candidates::simple(&site)).unwrap_or_default();
    let differs = |other: &Plan| candidates::placements_of(other) != candidates::placements_of(plan);
    let others = others.into_iter().filter(|(_, other)| differs(other)).take(N_ALTERNATIVES);
    let alternatives = others.map(|(way, other)| {
        let other_ctx_size = (other.ctx_size != plan.ctx_size).then_some(other.ctx_size);
        Alternative { way, other_ctx_size, forecast: of(&other), ctx_size: other.ctx_size }
    });
    let with_more = plan.devices.iter().filter(|device| device.budget.is_some()).filter_map(|device| {
        let mut options = options.clone();
        options.max_memory.insert(device.device, device.budget? + MORE);
        let quick = |options: &PlanOptions| candidates::quick(catalog, model, devices, &settle(options));
        let more = quick(&PlanOptions { ctx_size: Some(plan.ctx_size), ..options.clone() })?;
        let is_open = options.ctx_size.is_none() && options.context == Context::Comfortable;
        let open_ctx_size = if is_open { quick(&options).map(|open| open.ctx_size) } else { None };
        Some(WithMore { device: device.device, bytes: MORE, forecast: of(&more), ctx_size: more.ctx_size, open_ctx_size })
    });
    Explanation { forecast: of(plan), alternatives: alternatives.collect(), with_more: with_more.collect() }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prefill {} · decode {}", per_sec(&self.prefill), per_sec(&self.decode))?;
        match self.decode.workload.n_tokens {
            1 => Ok(()),
            n_seqs => write!(f, " of {n_seqs} sequences together"),
        }
    }
}

fn per_sec(prediction: &Prediction) -> TokensPerSec {
    TokensPerSec(prediction.tokens_per_sec())
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_words(&Fields))
    }
}

impl Alternative {
    fn in_words(&self, words: &dyn Words) -> String {
        let way = self.way.in_words(words);
        // Rates with another context are not the same thing.
        match self.other_ctx_size {
            Some(ctx_size) => format!("{way}, context {ctx_size}: {}", self.forecast),
            None => format!("{way}: {}", self.forecast),
        }
    }
}

impl Explanation {
    /// As lines under a plan, in these words.
    pub fn in_words(&self, words: &dyn Words) -> String {
        let mut lines: Vec<(&str, String)> = Vec::new();
        let decode = &self.forecast.decode;
        let basis = match decode.rates {
            Origin::Measured => String::new(),
            other => format!("  (rates {other})"),
        };
        lines.push(("predicted", format!("{}{basis}", self.forecast)));
        let mut under = |head: &'static str, texts: Vec<String>| {
            let heads = std::iter::once(head).chain(std::iter::repeat(""));
            lines.extend(heads.zip(texts));
        };
        under(if decode.workload.n_tokens == 1 { "per token" } else { "per forward" }, costs_of(decode));
        under("otherwise", self.alternatives.iter().map(|other| other.in_words(words)).collect());
        let more = self.with_more.iter().map(|more| format!("{} more on {}: {}", more.bytes, more.device, more.effect(decode)));
        under("more memory", more.collect());
        lines.iter().map(|(head, text)| format!("  {head:<12} {text}\n")).collect()
    }
}

impl WithMore {
    /// The gain over `decode`, in words.
    fn effect(&self, decode: &Prediction) -> String {
        let gain = self.forecast.decode.tokens_per_sec() / decode.tokens_per_sec().max(f64::MIN_POSITIVE);
        let rate = (gain >= LEAST_GAIN_REPORTED).then(|| format!("decode {}", per_sec(&self.forecast.decode)));
        let context = self.open_ctx_size.filter(|&open| open > self.ctx_size).map(|open| format!("a context of {open}"));
        match (rate, context) {
            (None, None) => "brings nothing".to_owned(),
            (Some(only), None) | (None, Some(only)) => only,
            (Some(rate), Some(context)) => format!("{rate}, or {context}"),
        }
    }
}

/// How the time of a token is spent; what bounds it is marked.
fn costs_of(decode: &Prediction) -> Vec<String> {
    let bound = decode.bound();
    let mark = |of: Bound| if bound == of { ", the bound" } else { "" };
    let of_each = decode.devices.iter().map(|busy| format!("{} {}", busy.device, millis(busy.compute_secs)));
    let of_each = match decode.devices.len() {
        0 | 1 => String::new(),
        _ => format!(": {}, between them {}", of_each.collect::<Vec<_>>().join(", "), millis(decode.transfer_secs)),
    };
    let compute_secs: f64 = decode.devices.iter().map(|busy| busy.compute_secs).sum();
    let mut lines = vec![format!("computing {}{}{of_each}", millis(compute_secs), mark(Bound::Compute))];
    let moving = |verb: &str, secs: f64, of: Bound, bytes: Bytes, way: String| {
        format!("{verb} {}{}: {bytes} {way} at {}", millis(secs), mark(of), BytesPerSec::from_transfer(bytes, secs))
    };
    for busy in decode.devices.iter().filter(|busy| busy.upload_secs > 0.0) {
        let of = Bound::Upload(busy.device);
        lines.push(moving("streaming", busy.upload_secs, of, busy.streamed_bytes, format!("to {}", busy.device)));
    }
    if decode.fetch_secs > 0.0 {
        lines.push(moving("reading", decode.fetch_secs, Bound::Disk, decode.fetched_bytes, "from disk".into()));
    }
    if decode.stall_secs > decode.secs * 0.005 {
        lines.push(format!("waiting for weights {} of {}", millis(decode.stall_secs), millis(decode.secs)));
    }
    lines
}
