//! `cargo xtask gpu-report FOLDER`: the results of a run of the kit as tables, and what is missing among them.

mod complete;
mod kernels;
mod models;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::results::Results;
use crate::steps::{Failure, Result};

/// Writes `report.md` beside the results in `folder`. With `is_checked`, a figure that is missing is a failure.
///
/// # Errors
/// Where the results cannot be read or the report cannot be written; [`Failure`] naming what is missing.
pub fn write_report(folder: &Path, is_checked: bool) -> Result<()> {
    let results = Results::read(folder)?;
    let missing = complete::missing(&results);
    let path = folder.join("report.md");
    fs::write(&path, markdown(&results, &missing)).map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
    if is_checked && !missing.is_empty() {
        return Err(Failure::new(format!("{} of the steps gave no figures:\n  {}", missing.len(), missing.join("\n  "))));
    }
    Ok(())
}

fn markdown(results: &Results, missing: &[String]) -> String {
    let adapter = &results.output("doctor")["adapters"][0];
    let mut text = format!("# tierflow on {}\n\n", adapter["name"].as_str().unwrap_or("an adapter that did not say its name"));
    if !missing.is_empty() {
        text.push_str("**Missing:**\n\n");
        missing.iter().for_each(|line| text.push_str(&format!("- {line}\n")));
        text.push('\n');
    }
    let sections = [
        ("The machine", machine(results)),
        ("Kernels against their references", kernels::tests(results)),
        ("All weights on the GPU", models::resident(results)),
        ("A quarter of the weights on the GPU", models::quarter(results)),
        ("Beside transformers and Accelerate", models::peers(results)),
        ("Predicted and measured", models::predictions(results)),
        ("Uploads alone", kernels::uploads(results)),
        ("Matrix products", kernels::products(results)),
        ("Steps", steps(results)),
    ];
    for (title, section) in sections {
        let section = if section.is_empty() { "No figures.\n".to_owned() } else { section };
        let _ = write!(text, "## {title}\n\n{section}\n");
    }
    text
}

/// Adapter, memory beside NVIDIA's tool, and measured rates.
fn machine(results: &Results) -> String {
    let mut text = String::new();
    let doctor = results.output("doctor");
    let adapter = &doctor["adapters"][0];
    if let (Some(driver), Some(version)) = (adapter["driver"].as_str(), doctor["version"].as_str()) {
        let listed = |key: &str, separator: &str| {
            let mut words: Vec<String> = adapter[key].as_array().into_iter().flatten().map(plain).collect();
            words.dedup();
            words.join(separator)
        };
        let _ = writeln!(
            text,
            "tierflow {version}; {driver}; {} host threads, {} GiB of host memory.  \nSubgroups of {} lanes, workgroups of up to {} with {} KiB; {}.",
            doctor["threads"],
            gib(&doctor["memory_total"]),
            listed("subgroup_lanes", " to "),
            adapter["workgroup_lanes"],
            adapter["workgroup_memory"].as_u64().unwrap_or(0) / 1024,
            listed("features", ", "),
        );
    }
    let smi = results.step("nvidia-smi").map(|step| table_of_smi(step.text())).unwrap_or_default();
    let told = smi.iter().find(|(name, _)| name.starts_with("memory.free")).and_then(|(_, mib)| Some(mib.parse::<f64>().ok()? * MIB));
    if let Some(size) = adapter["memory_size"].as_f64() {
        let free = adapter["memory_free"].as_f64();
        let _ = write!(text, "\nMemory: {:.2} GiB", size / GIB);
        let _ = match free {
            Some(free) => write!(text, ", of which the driver's budget leaves {:.2}", free / GIB),
            None => write!(text, "; the driver tells no budget"),
        };
        let _ = match free.zip(told) {
            Some((free, told)) => {
                let off = (free / told - 1.0) * 100.0;
                let verdict = if off.abs() <= 5.0 { "they agree" } else { "THEY DO NOT AGREE" };
                writeln!(text, "; nvidia-smi has {:.2} GiB free: {off:+.1} %, {verdict} within 5 %.", told / GIB)
            }
            None => writeln!(text, "."),
        };
    }
    if !smi.is_empty() {
        text.push_str("\n| nvidia-smi | |\n|---|---|\n");
        smi.iter().for_each(|(name, value)| text.push_str(&format!("| {name} | {value} |\n")));
    }
    text + &rates(results)
}

/// What was measured for plans.
fn rates(results: &Results) -> String {
    let mut text = String::new();
    for device in results.output("doctor")["devices"].as_array().into_iter().flatten() {
        let rates = &device["rates"];
        let of = |name: &str, unit: f64| rates[name].as_f64().map(|value| format!("{name} {}", short(value / unit)));
        let parts: Vec<String> = [
            of("upload_mapped", 1e9),
            of("upload_staged", 1e9),
            of("readback", 1e9),
            of("host_copy", 1e9),
            of("disk_read", 1e9),
            of("dispatch_secs", 1e-6),
            of("submit_secs", 1e-6),
            of("round_trip_secs", 1e-6),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() {
            continue;
        }
        let products = |name: &str, unit: f64| {
            let pairs = rates[name].as_object().into_iter().flatten();
            pairs.map(|(dtype, rate)| format!("{dtype} {}", short(rate.as_f64().unwrap_or(0.0) / unit))).collect::<Vec<_>>().join(", ")
        };
        let _ = write!(text, "\n{}, in GB/s and µs: {}.", plain(&device["device"]), parts.join(", "));
        if rates["matvec"].as_object().is_some_and(|products| !products.is_empty()) {
            let _ = write!(text, " One vector, GB/s: {}. Many, GFLOP/s: {}.", products("matvec", 1e9), products("matmul", 1e9));
        }
        text.push('\n');
    }
    text
}

/// Names and values of what nvidia-smi printed as comma-separated values, of the first GPU.
fn table_of_smi(text: &str) -> Vec<(String, String)> {
    let mut lines = text.lines().map(|line| line.split(',').map(|cell| cell.trim().to_owned()));
    lines.next().into_iter().flatten().zip(lines.next().into_iter().flatten()).collect()
}

fn steps(results: &Results) -> String {
    let mut text = "| step | outcome | seconds |\n|---|---|---:|\n".to_owned();
    for step in &results.0 {
        let outcome = match (&step.left_out, step.exit_code) {
            (Some(reason), _) => format!("left out: {reason}"),
            (None, 0) => "done".into(),
            (None, 124 | 137) => "its time was up".into(),
            (None, code) => format!("exit code {code}: {}", step.complaint.lines().last().unwrap_or_default()),
        };
        let _ = writeln!(text, "| {} | {} | {:.1} |", step.name, outcome.replace('|', "/"), step.secs);
    }
    text
}

const MIB: f64 = (1_u64 << 20) as f64;
const GIB: f64 = (1_u64 << 30) as f64;

fn gib(bytes: &Value) -> String {
    bytes.as_f64().map_or_else(|| "?".into(), |bytes| format!("{:.1}", bytes / GIB))
}

/// A text without its quotes, anything else as JSON has it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A share of something that may be unknown.
fn share(value: f64, of: Option<f64>) -> String {
    of.filter(|of| *of > 0.0).map_or_else(|| "–".into(), |of| format!("{:.2}", value / of))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps of a run on a card, one of which was cut short.
    const RESULTS: &str = r#"{"step":"nvidia-smi","rc":0,"secs":0.1,"output":"name, memory.free [MiB]\nNVIDIA X, 1024\n"}
{"step":"doctor","rc":0,"secs":1,"output":{"version":"1","adapters":[{"name":"NVIDIA X","driver":"vulkan 5","memory_size":2147483648,"memory_free":1073741824,"subgroup_lanes":[32,32]}]}}
{"step":"resident-q4_0","rc":124,"secs":60,"output":[{"test":"tg8","avg_ts":50,"predicted_ts":100,"model_size":4000000000,"n_seqs":1,"n_gen":8,"n_prompt":0}],"stderr":"a | b"}
{"step":"peers","left_out":"no torch"}
{"step":"cut sh"#;

    #[test]
    fn reports_hold_what_there_is() {
        let results = Results::parse(RESULTS);
        assert_eq!(results.0.len(), 4);
        let text = markdown(&results, &["doctor".to_owned()]);
        for part in [
            "# tierflow on NVIDIA X\n",
            "- doctor\n",
            "Memory: 2.00 GiB, of which the driver's budget leaves 1.00; nvidia-smi has 1.00 GiB free: +0.0 %, they agree within 5 %",
            "| memory.free [MiB] | 1024 |",
            "| resident-q4_0 | tg8 | 50.0 | 0.50 |",
            "| peers | left out: no torch | 0.0 |",
            "| resident-q4_0 | its time was up | 60.0 |",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(markdown(&Results::default(), &[]).contains("No figures."));
    }

    #[test]
    fn memory_that_differs_from_nvidias_is_told() {
        let results = Results::parse(&RESULTS.replace("NVIDIA X, 1024", "NVIDIA X, 1100"));
        assert!(machine(&results).contains("-6.9 %, THEY DO NOT AGREE"), "{}", machine(&results));
    }
}
