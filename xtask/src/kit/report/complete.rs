//! Whether a run gave all its figures.

use serde_json::Value;

use super::Results;
use super::kernels::counts;
use crate::kit::results::Step;

/// Chunks of the upload benchmark: 1, 4, 16 and 64 MiB.
const N_CHUNKS: usize = 4;

/// What a step must have given, in words, and whether it did.
type Figures = (&'static str, fn(&Step) -> bool);

/// Every step of `run.sh` with its figures.
const STEPS: [(&str, Figures); 22] = [
    ("nvidia-smi", ("a line for the GPU", |step| step.text().lines().count() > 1)),
    (
        "doctor",
        ("an adapter's memory and rates", |step| {
            is_positive(&step.output["adapters"][0]["memory_size"]) && has_rates(&step.output["devices"][0])
        }),
    ),
    (
        "kernel-tests",
        ("tests that passed, and none that failed", |step| counts(step.text()).is_some_and(|(passed, failed)| passed > 0 && failed == 0)),
    ),
    ("make-q4_0", ("a model", |step| step.exit_code == 0)),
    ("resident-q4_0", (BOTH_RATES, |step| rates(step, 2))),
    ("make-bf16", ("a model", |step| step.exit_code == 0)),
    ("streamed", (BOTH_RATES, |step| rates(step, 2) && streams(step))),
    ("picture", ("a picture of the trace", |step| step.exit_code == 0)),
    ("mixed", (BOTH_RATES, |step| rates(step, 2))),
    ("streamed-batch", (BATCH_RATES, |step| rates(step, 2) && streams(step) && side_by_side(step))),
    (
        "kernel-table",
        ("a copy and products", |step| step.rows().first().is_some_and(|row| row["what"] == "adapter") && step.rows().len() > 2),
    ),
    (
        "uploads",
        ("a plain copy and the staging ring at each size", |step| {
            ["plain copy", "staging ring"].iter().all(|way| ways(step, way) == N_CHUNKS)
        }),
    ),
    ("resident-bf16", (BOTH_RATES, |step| rates(step, 2))),
    ("resident-bf16-batch", (BATCH_RATES, |step| rates(step, 2) && side_by_side(step))),
    ("mixed-batch", (BATCH_RATES, |step| rates(step, 2) && side_by_side(step))),
    ("streamed-mapped", (STREAMED_RATE, |step| rates(step, 1) && streams(step))),
    ("streamed-staged", (STREAMED_RATE, |step| rates(step, 1) && streams(step))),
    ("streamed-disk", (STREAMED_RATE, |step| rates(step, 1) && streams(step))),
    ("make-f16", ("a model", |step| step.exit_code == 0)),
    ("resident-f16", (BOTH_RATES, |step| rates(step, 2))),
    ("nvidia-smi-after", ("a line for the GPU", |step| step.text().lines().count() > 1)),
    (
        "peers",
        ("rates of a resident and of an offloaded model", |step| {
            ["resident", "device_map=auto, rest in host memory"].iter().all(|way| generates(step, way))
        }),
    ),
];
const BOTH_RATES: &str = "rates of a prompt and of decoding";
const BATCH_RATES: &str = "rates of two numbers of sequences side by side";
const STREAMED_RATE: &str = "a rate, with bytes that streamed";

/// Those may be left out: where there is no GPU of NVIDIA's, and no torch.
const OPTIONAL: [&str; 3] = ["nvidia-smi", "nvidia-smi-after", "peers"];

/// A line for each step that did not give its figures.
pub(super) fn missing(results: &Results) -> Vec<String> {
    let of_step = |&(name, (figures, has)): &(&str, Figures)| match results.step(name) {
        None => Some(format!("{name}: {figures}; it was not begun")),
        Some(step) => match &step.left_out {
            Some(_) if OPTIONAL.contains(&name) => None,
            Some(reason) => Some(format!("{name}: {figures}; left out, {reason}")),
            None if has(step) && step.exit_code == 0 => None,
            None => Some(format!(
                "{name}: {figures}; exit code {}, {}",
                step.exit_code,
                step.complaint.lines().last().unwrap_or("no complaint")
            )),
        },
    };
    STEPS.iter().filter_map(of_step).collect()
}

fn is_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

fn has_rates(device: &Value) -> bool {
    let rates = &device["rates"];
    is_positive(&rates["upload_staged"]) && rates["matvec"].as_object().is_some_and(|rates| !rates.is_empty())
}

/// At least so many rows of `tierflow bench`, all with rates.
fn rates(step: &Step, n_rows: usize) -> bool {
    let has = |row: &Value| is_positive(&row["avg_ts"]) && is_positive(&row["predicted_ts"]);
    step.rows().len() >= n_rows && step.rows().iter().all(has)
}

fn streams(step: &Step) -> bool {
    step.rows().iter().all(|row| is_positive(&row["uploaded_per_forward"]))
}

fn side_by_side(step: &Step) -> bool {
    step.rows().iter().all(|row| row["n_seqs"].as_u64() > Some(1))
}

fn ways(step: &Step, way: &str) -> usize {
    step.rows().iter().filter(|row| row["way"] == way && is_positive(&row["rate"])).count()
}

fn generates(step: &Step, way: &str) -> bool {
    step.rows()
        .iter()
        .any(|row| row["what"] == "generation" && row["way"] == way && row["test"] == "decode" && is_positive(&row["tokens_per_sec"]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_step_without_its_figures_is_missing() {
        let of = |lines: &[&str], name: &str| {
            let lines = missing(&Results::parse(&lines.join("\n")));
            lines.into_iter().find(|line| line.starts_with(&format!("{name}:")))
        };
        let row = r#"{"avg_ts":1,"predicted_ts":2,"uploaded_per_forward":UP,"n_seqs":1}"#;
        let streamed = |n_bytes: &str| r#"{"step":"streamed","rc":0,"output":[ROW,ROW]}"#.replace("ROW", row).replace("UP", n_bytes);
        assert_eq!(of(&[&streamed("5")], "streamed"), None);
        assert!(of(&[&streamed("0")], "streamed").is_some());
        assert!(of(&[&streamed("5").replace(r#""rc":0"#, r#""rc":124"#)], "streamed").is_some_and(|line| line.contains("exit code 124")));
        assert_eq!(of(&[r#"{"step":"peers","left_out":"no torch"}"#], "peers"), None);
        assert!(
            of(&[r#"{"step":"uploads","left_out":"the time is up"}"#], "uploads")
                .is_some_and(|line| line.ends_with("left out, the time is up"))
        );
        assert_eq!(missing(&Results::default()).len(), STEPS.len());
    }

    #[test]
    fn every_step_of_the_script_has_figures_and_the_other_way_round() {
        let script = include_str!("../run.sh");
        let named = |line: &str| {
            let mut words = line.trim().split(' ');
            let is_call = matches!(words.next(), Some("step" | "bench" | "make_model" | "smi" | "leave_out"));
            words.next().filter(|name| is_call && !name.starts_with(['"', '$'])).map(str::to_owned)
        };
        let in_script: BTreeSet<String> = script.lines().filter_map(named).collect();
        assert_eq!(in_script, STEPS.iter().map(|(name, _)| (*name).to_owned()).collect());
    }
}
