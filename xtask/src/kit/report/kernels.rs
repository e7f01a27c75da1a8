//! Kernels and uploads by themselves.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::models::link_rate;
use super::{Results, plain, share, short};

/// Passed and failed tests by the harness's last line.
pub(super) fn counts(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix("test result: "))?;
    let count = |word: &str| line.split([';', '.']).find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok());
    Some((count(" passed")?, count(" failed")?))
}

pub(super) fn tests(results: &Results) -> String {
    let Some(step) = results.step("kernel-tests") else { return String::new() };
    let named = |ending: &str| {
        let lines = step.text().lines().filter(|line| line.starts_with("test ") && line.ends_with(ending));
        lines.filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect::<Vec<String>>()
    };
    let failed = named("FAILED");
    let mut text = match counts(step.text()) {
        Some((n_passed, n_failed)) => format!("{n_passed} passed, {n_failed} failed, in {:.1} s.\n", step.secs),
        None => format!("Not all were run; {} passed until then, {} failed.\n", named("ok").len(), failed.len()),
    };
    failed.iter().for_each(|name| text.push_str(&format!("- FAILED: {name}\n")));
    text
}

pub(super) fn uploads(results: &Results) -> String {
    let rows: Vec<&Value> = results.rows_of("uploads", "upload").collect();
    if rows.is_empty() {
        return String::new();
    }
    let link = link_rate(results);
    let mut text = "| way | chunk, MiB | GB/s | least – most | of a plain copy in host memory | of torch's copy to the card |\n|---|---:|---:|---:|---:|---:|\n".to_owned();
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(0.0);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} – {} | {:.2} | {} |",
            plain(&row["way"]),
            row["chunk"].as_u64().unwrap_or(0) >> 20,
            short(number("rate") / 1e9),
            short(number("least") / 1e9),
            short(number("most") / 1e9),
            number("of_plain_copy"),
            share(number("rate"), link),
        );
    }
    for row in results.rows_of("peers", "host_copy") {
        let [up, down] = ["to_device_rate", "to_host_rate"].map(|key| short(row[key].as_f64().unwrap_or(0.0) / 1e9));
        let mib = row["bytes"].as_u64().unwrap_or(0) >> 20;
        let _ = writeln!(text, "| torch, {} memory | {mib} | {up} | back {down} | | |", plain(&row["memory"]));
    }
    text
}

/// The fastest variant of each product, beside copies and torch's products.
pub(super) fn products(results: &Results) -> String {
    let mut best: BTreeMap<(String, u64), BTreeMap<u64, &Value>> = BTreeMap::new();
    for row in results.rows_of("kernel-table", "product") {
        let key = (plain(&row["dtype"]), row["n_columns"].as_u64().unwrap_or(0));
        let of_shape = best.entry(key).or_default().entry(row["n_tokens"].as_u64().unwrap_or(0)).or_insert(row);
        if row["secs"].as_f64() < of_shape["secs"].as_f64() {
            *of_shape = row;
        }
    }
    if best.is_empty() {
        return String::new();
    }
    let copy = results.rows_of("kernel-table", "copy").find_map(|row| row["read_and_written_gb_per_s"].as_f64());
    let flops = |dtype: &str| results.rows_of("peers", "product").find(|row| row["dtype"] == dtype).and_then(|row| row["flops"].as_f64());
    let (bf16, f32) = (flops("bfloat16"), flops("float32"));
    let mut text = "| dtype | rows and columns | tokens | variant | µs | GB/s of weights | of a copy | TFLOP/s | of torch's bf16 | of its f32 |\n|---|---:|---:|---|---:|---:|---:|---:|---:|---:|\n".to_owned();
    for ((dtype, n_columns), shapes) in &best {
        for (n_tokens, row) in shapes {
            let number = |key: &str| row[key].as_f64().unwrap_or(0.0);
            let rate = number("gflop_per_s") * 1e9;
            let _ = writeln!(
                text,
                "| {dtype} | {n_columns} | {n_tokens} | {} | {} | {} | {} | {} | {} | {} |",
                plain(&row["variant"]),
                short(number("secs") * 1e6),
                short(number("gb_per_s")),
                share(number("gb_per_s"), copy),
                short(rate / 1e12),
                share(rate, bf16),
                share(rate, f32),
            );
        }
    }
    let in_words = |rate: Option<f64>, unit: f64| rate.map_or_else(|| "not known".into(), |rate| short(rate / unit));
    let _ = writeln!(
        text,
        "\nThe fastest variant of each; results.jsonl has all. A copy on the adapter reads and writes {} GB/s; torch's products: {} TFLOP/s in bf16, {} in f32.",
        in_words(copy, 1.0),
        in_words(bf16, 1e12),
        in_words(f32, 1e12)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_is_read() {
        let text =
            "running 3 tests\ntest a ... ok\ntest b ... FAILED\n\ntest result: FAILED. 2 passed; 1 failed; 0 ignored; finished in 1.00s\n";
        assert_eq!(counts(text), Some((2, 1)));
        assert_eq!(counts("test a ... ok\n"), None);
        let step = serde_json::json!({ "step": "kernel-tests", "rc": 101, "secs": 1.0, "output": text });
        assert_eq!(super::tests(&Results::parse(&step.to_string())), "2 passed, 1 failed, in 1.0 s.\n- FAILED: b\n");
    }

    #[test]
    fn the_fastest_variant_of_a_product_is_told() {
        let row = |variant: &str, secs: f64| serde_json::json!({ "what": "product", "dtype": "F16", "variant": variant, "n_columns": 64, "n_tokens": 1, "secs": secs, "gb_per_s": 50.0, "gflop_per_s": 4000.0 });
        let table = [serde_json::json!({ "what": "copy", "read_and_written_gb_per_s": 100.0 }), row("lane", 2e-6), row("workgroup", 1e-6)];
        let peers = [serde_json::json!({ "what": "product", "dtype": "bfloat16", "flops": 8e12 })];
        let lines = [("kernel-table", &table[..]), ("peers", &peers[..])]
            .map(|(step, output)| serde_json::json!({ "step": step, "rc": 0, "secs": 1.0, "output": output }).to_string());
        let text = products(&Results::parse(&lines.join("\n")));
        assert!(text.contains("| F16 | 64 | 1 | workgroup | 1.00 | 50.0 | 0.50 | 4.00 | 0.50 | – |\n"), "{text}");
    }
}
