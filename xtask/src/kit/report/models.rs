//! Models: resident, with a quarter of their weights on the GPU, and those of transformers beside them.

use std::fmt::Write;

use serde_json::Value;

use super::{Results, plain, share, short};

/// Steps of `tierflow bench` with all weights on the GPU.
const RESIDENT: [&str; 4] = ["resident-q4_0", "resident-bf16", "resident-bf16-batch", "resident-f16"];
/// Those with a quarter of them there, and how the rest is used.
const QUARTER: [(&str, &str); 7] = [
    ("streamed", "streamed"),
    ("mixed", "the host computes, too"),
    ("streamed-batch", "streamed"),
    ("mixed-batch", "the host computes, too"),
    ("streamed-mapped", "streamed by mapped slots"),
    ("streamed-staged", "streamed by the staging ring"),
    ("streamed-disk", "streamed from disk"),
];

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or(0.0)
}

/// Measured beside predicted.
fn of_prediction(row: &Value) -> String {
    share(number(row, "avg_ts"), row["predicted_ts"].as_f64())
}

/// Whether a row is of generated tokens alone.
fn is_decode(row: &Value) -> bool {
    row["n_prompt"] == 0
}

/// Bytes per second that a copy on the card reads and writes together, by torch, else by the kernel benchmark.
fn memory_rate(results: &Results) -> Option<f64> {
    let by_torch = results.rows_of("peers", "device_copy").find_map(|row| row["read_and_written_rate"].as_f64());
    by_torch.or_else(|| results.rows_of("kernel-table", "copy").find_map(|row| Some(row["read_and_written_gb_per_s"].as_f64()? * 1e9)))
}

/// The fastest copy from the host to the card that torch measured, in bytes per second.
pub(super) fn link_rate(results: &Results) -> Option<f64> {
    results.rows_of("peers", "host_copy").filter_map(|row| row["to_device_rate"].as_f64()).reduce(f64::max)
}

pub(super) fn resident(results: &Results) -> String {
    let memory = memory_rate(results);
    let mut text = String::new();
    for name in RESIDENT {
        for row in results.rows(name) {
            // Decoding reads every weight once for a token of each sequence.
            let read = number(row, "avg_ts") / number(row, "n_seqs").max(1.0) * number(row, "model_size");
            let (rate, part) = if is_decode(row) { (short(read / 1e9), share(read, memory)) } else { ("–".into(), "–".into()) };
            let (test, speed) = (plain(&row["test"]), short(number(row, "avg_ts")));
            let _ = writeln!(text, "| {name} | {test} | {speed} | {} | {rate} | {part} |", of_prediction(row));
        }
    }
    if text.is_empty() {
        return text;
    }
    let head = "| model | test | t/s | of prediction | weights read, GB/s | of the memory's rate |\n|---|---|---:|---:|---:|---:|\n";
    let memory = memory.map_or_else(|| "not known".into(), |rate| format!("{} GB/s, read and written by a copy", short(rate / 1e9)));
    format!("{head}{text}\nThe memory's rate: {memory}. Weights are those of the whole file, its embedding included.\n")
}

pub(super) fn quarter(results: &Results) -> String {
    let link = link_rate(results);
    let mut text = String::new();
    for (name, how) in QUARTER {
        for row in results.rows(name) {
            let rate = number(row, "upload_rate");
            let _ = writeln!(
                text,
                "| {how} | {} | {} | {} | {} | {} | {} | {:.0} % | {} |",
                plain(&row["test"]),
                short(number(row, "avg_ts")),
                of_prediction(row),
                short(number(row, "uploaded_per_forward") / 1e9),
                short(rate / 1e9),
                share(rate, link),
                number(row, "overlapped") * 100.0,
                short(number(row, "stall_secs_per_forward") * 1e3),
            );
        }
    }
    if text.is_empty() {
        return text;
    }
    let head = "| the other weights | test | t/s | of prediction | uploaded a forward, GB | at GB/s | of the link | overlapped | stalled, ms a forward |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n";
    let link = link.map_or_else(|| "not known".into(), |rate| format!("{} GB/s, the fastest copy to the card by torch", short(rate / 1e9)));
    format!("{head}{text}\nThe link: {link}. tierflow has one queue: wgpu gives no other.\n")
}

/// The rate of tierflow's faster way beside a row of transformers: of decoding as many sequences, or of a prompt as long.
fn rate_beside(results: &Results, row: &Value) -> Option<f64> {
    let way = row["way"].as_str().unwrap_or_default();
    let n_prompt = if row["test"] == "prompt" { row["n_tokens"].as_u64() } else { Some(0) };
    let names: &[&str] = match way {
        "resident" => &["resident-bf16", "resident-bf16-batch"],
        _ if way.contains("disk") => &["streamed-disk"],
        _ => &["streamed", "streamed-batch", "mixed", "mixed-batch"],
    };
    let rows = names.iter().flat_map(|name| results.rows(name));
    let alike = rows.filter(|ours| ours["n_prompt"].as_u64() == n_prompt && ours["n_seqs"] == row["batch"]);
    alike.filter_map(|row| row["avg_ts"].as_f64()).reduce(f64::max)
}

pub(super) fn peers(results: &Results) -> String {
    let mut text = String::new();
    for row in results.rows_of("peers", "generation") {
        let (rate, batch) = (number(row, "tokens_per_sec"), row["batch"].as_u64().unwrap_or(1));
        let ours = rate_beside(results, row);
        let _ = writeln!(
            text,
            "| {} | {} | {batch} | {} | {} | {} |",
            plain(&row["way"]),
            plain(&row["test"]),
            short(rate),
            ours.map_or_else(|| "–".into(), short),
            ours.map_or_else(|| "–".into(), |ours| share(ours, Some(rate))),
        );
    }
    if text.is_empty() {
        return text;
    }
    for row in results.rows_of("peers", "left_out") {
        let _ = writeln!(text, "\nLeft out: {}, {}.", plain(&row["case"]), plain(&row["reason"]).lines().next().unwrap_or_default());
    }
    let versions = results.rows_of("peers", "versions").next();
    let version = |name: &str| versions.map_or_else(|| "?".into(), |row| plain(&row[name]));
    let head = "| transformers | test | sequences | t/s | tierflow t/s | ratio |\n|---|---|---:|---:|---:|---:|\n";
    let used = format!("torch {}, transformers {}, accelerate {}", version("torch"), version("transformers"), version("accelerate"));
    format!(
        "{head}{text}\n{used}; the same checkpoint in bf16, and the same budget where a part is offloaded. tierflow's figure is its faster way.\n"
    )
}

pub(super) fn predictions(results: &Results) -> String {
    let names = RESIDENT.into_iter().chain(QUARTER.iter().map(|(name, _)| *name));
    let mut errors = Vec::new();
    let mut text = "| step | test | predicted t/s | measured t/s | off |\n|---|---|---:|---:|---:|\n".to_owned();
    for name in names {
        for row in results.rows(name) {
            let (predicted, measured) = (number(row, "predicted_ts"), number(row, "avg_ts"));
            if predicted > 0.0 {
                let off = (measured / predicted - 1.0) * 100.0;
                errors.push(off.abs());
                let _ = writeln!(text, "| {name} | {} | {} | {} | {off:+.0} % |", plain(&row["test"]), short(predicted), short(measured));
            }
        }
    }
    errors.sort_by(f64::total_cmp);
    match (errors.get(errors.len() / 2), errors.last()) {
        (Some(median), Some(worst)) => format!("{text}\nOff by {median:.0} % at the median, {worst:.0} % at worst.\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn transformers_stand_beside_the_same_work_of_tierflow() {
        let ours = |n_prompt: u64, n_seqs: u64, rate: f64| json!({ "test": "t", "n_prompt": n_prompt, "n_seqs": n_seqs, "avg_ts": rate });
        let theirs = |way: &str, test: &str, batch: u64| json!({ "what": "generation", "way": way, "test": test, "batch": batch, "n_tokens": 512, "tokens_per_sec": 2.0 });
        let steps = [
            ("streamed", vec![ours(512, 1, 8.0), ours(0, 1, 4.0)]),
            ("mixed", vec![ours(32, 1, 16.0), ours(0, 1, 6.0)]),
            ("streamed-batch", vec![ours(0, 8, 20.0)]),
            ("streamed-disk", vec![ours(0, 1, 1.0)]),
            (
                "peers",
                vec![
                    theirs("cpu_offload", "prompt", 1),
                    theirs("cpu_offload", "decode", 1),
                    theirs("cpu_offload", "decode", 8),
                    theirs("disk_offload", "decode", 1),
                    theirs("resident", "decode", 1),
                ],
            ),
        ];
        let lines = steps.map(|(step, output)| json!({ "step": step, "rc": 0, "secs": 1.0, "output": output }).to_string());
        let results = Results::parse(&lines.join("\n"));
        let rates: Vec<Option<f64>> = results.rows("peers").iter().map(|row| rate_beside(&results, row)).collect();
        assert_eq!(rates, [Some(8.0), Some(6.0), Some(20.0), Some(1.0), None]);
        assert!(peers(&results).contains("| cpu_offload | decode | 8 | 2.00 | 20.0 | 10.00 |"), "{}", peers(&results));
    }
}
