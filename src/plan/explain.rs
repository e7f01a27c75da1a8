//! Why a plan is as it is: what else could have been done, and what more memory would bring. Printed under the plan.

use std::fmt;

use serde::Serialize;

use crate::device::{Device, DeviceSpec, Origin};
use crate::model::Model;
use crate::plan::candidates::{self, Forecast, forecast};
use crate::plan::dry_run::{Bound, Prediction};
use crate::plan::placement::settle;
use crate::plan::site::Site;
use crate::plan::{Plan, PlanOptions};
use crate::units::{Bytes, BytesPerSec};
use crate::weights::Catalog;

/// What one more of a device's memory is weighed in.
const MORE: Bytes = Bytes::gib(1);
/// How many alternatives are told.
const N_ALTERNATIVES: usize = 2;

/// What else could have been done.
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
    /// What it does otherwise, for people.
    pub name: String,
    /// How fast it should go.
    pub forecast: Forecast,
    /// Positions of its context.
    pub ctx_size: usize,
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
}

/// Weighs a plan against what was not done.
pub fn explain(plan: &Plan, catalog: &Catalog, model: &Model, devices: &[DeviceSpec], options: &PlanOptions) -> Explanation {
    let of = |plan: &Plan| forecast(plan, catalog, model, devices, options);
    let site_options = settle(&PlanOptions { n_seqs: plan.n_seqs, ..options.clone() });
    let others = Site::new(catalog, model, devices, &site_options).map(|site| candidates::simple(&site)).unwrap_or_default();
    let differs = |other: &Plan| candidates::placements_of(other) != candidates::placements_of(plan);
    let others = others.into_iter().filter(|(_, other)| differs(other)).take(N_ALTERNATIVES);
    let alternatives = others.map(|(name, other)| Alternative { name, forecast: of(&other), ctx_size: other.ctx_size });
    let with_more = plan.devices.iter().filter(|device| device.budget.is_some()).filter_map(|device| {
        let mut options = PlanOptions { ctx_size: Some(plan.ctx_size), n_seqs: plan.n_seqs, ..options.clone() };
        options.max_memory.insert(device.device, device.budget? + MORE);
        let more = candidates::quick(catalog, model, devices, &settle(&options))?;
        Some(WithMore { device: device.device, bytes: MORE, forecast: of(&more), ctx_size: more.ctx_size })
    });
    Explanation { forecast: of(plan), alternatives: alternatives.collect(), with_more: with_more.collect() }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prefill {} · decode {}", per_sec(&self.prefill), per_sec(&self.decode))
    }
}

fn per_sec(prediction: &Prediction) -> String {
    rate_text(prediction.tokens_per_sec())
}

/// With three significant digits: `0.213 t/s`, `4.23 t/s`, `42.6 t/s`, `426 t/s`.
fn rate_text(rate: f64) -> String {
    let n_digits = [99.95, 9.995, 0.9995].into_iter().filter(|bound| rate < *bound).count();
    format!("{rate:.n_digits$} t/s")
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decode = &self.forecast.decode;
        let basis = match decode.rates {
            Origin::Measured => String::new(),
            other => format!("  (rates {other}; `tierflow devices --measure` measures them)"),
        };
        writeln!(f, "  predicted    {}{basis}", self.forecast)?;
        for line in costs_of(decode) {
            writeln!(f, "               {line}")?;
        }
        for (index, other) in self.alternatives.iter().enumerate() {
            let head = if index == 0 { "otherwise" } else { "" };
            writeln!(f, "  {head:<12} {}: {}", other.name, other.forecast)?;
        }
        for (index, more) in self.with_more.iter().enumerate() {
            let head = if index == 0 { "more memory" } else { "" };
            let gain = more.forecast.decode.tokens_per_sec() / decode.tokens_per_sec().max(f64::MIN_POSITIVE);
            let effect = if gain < 1.01 { "brings nothing".to_owned() } else { format!("decode {}", per_sec(&more.forecast.decode)) };
            writeln!(f, "  {head:<12} {} more on {}: {effect}", more.bytes, more.device)?;
        }
        Ok(())
    }
}

/// What a token's time goes to, the bound marked.
fn costs_of(decode: &Prediction) -> Vec<String> {
    let bound = decode.bound();
    let mark = |is_bound: bool| if is_bound { ", the bound" } else { "" };
    let millis = |secs: f64| if secs >= 0.1 { format!("{:.0} ms", secs * 1e3) } else { format!("{:.1} ms", secs * 1e3) };
    let mut lines = Vec::new();
    for busy in &decode.devices {
        let is_most = bound == Bound::Compute && decode.devices.iter().all(|other| other.compute_secs <= busy.compute_secs);
        lines.push(format!("{} computes for {} per token{}", busy.device, millis(busy.compute_secs), mark(is_most)));
        if busy.upload_secs > 0.0 {
            let rate = BytesPerSec::from_transfer(busy.streamed_bytes, busy.upload_secs);
            let is_bound = bound == Bound::Upload(busy.device);
            let bytes = busy.streamed_bytes;
            lines.push(format!(
                "streamed to {}: {bytes} per token over {rate} = {}{}",
                busy.device,
                millis(busy.upload_secs),
                mark(is_bound)
            ));
        }
    }
    if decode.fetch_secs > 0.0 {
        let rate = BytesPerSec::from_transfer(decode.fetched_bytes, decode.fetch_secs);
        let is_bound = bound == Bound::Disk;
        lines.push(format!(
            "read from disk: {} per token over {rate} = {}{}",
            decode.fetched_bytes,
            millis(decode.fetch_secs),
            mark(is_bound)
        ));
    }
    if decode.stall_secs > decode.secs * 0.005 {
        lines.push(format!("waiting for weights: {} of {} per token", millis(decode.stall_secs), millis(decode.secs)));
    }
    if decode.devices.len() > 1 {
        lines.push(format!("between devices: {} per token", millis(decode.hop_secs)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_significant_digits() {
        let texts = [0.2134, 0.9996, 4.234, 9.996, 42.56, 99.96, 426.4].map(rate_text);
        assert_eq!(texts, ["0.213 t/s", "1.00 t/s", "4.23 t/s", "10.0 t/s", "42.6 t/s", "100 t/s", "426 t/s"]);
    }
}
