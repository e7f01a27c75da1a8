//! Predicted against measured over runs of the program that follow each other, while other work comes and goes: what runs teach.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

/// Threads that work beside each run; the load comes and goes within a run, too.
const LOADS: [usize; 10] = [2, 0, 4, 0, 1, 2, 0, 3, 0, 1];
const PLACEMENTS: [(&str, &[&str]); 3] = [
    ("host", &["--device", "cpu"]),
    ("gpu:0, resident", &["--device", "gpu:0"]),
    ("gpu:0, part of it streamed", &["--device", "gpu:0", "--max-memory", "gpu:0=64MiB"]),
];
const PROMPT: &str = "Tell a story of a river that runs through a valley, past a mill, a village and a castle, until it comes to the sea, \
                      where ships wait for the tide and children look for shells in the sand while the gulls cry above the harbour wall.";

/// Prints a table for each placement, each with rates that are measured at its first run, and how far off predictions were.
pub(crate) fn run(model: &Path) {
    println!("{}; prompt / decode in t/s; load is threads that work beside the run, half of the time", model.display());
    let load = Load::start();
    let mut errors = [Vec::new(), Vec::new()];
    for (name, options) in PLACEMENTS {
        let cache = tempfile::tempdir().expect("a folder");
        println!("\n### {name}\n\n| run | load | predicted | measured | waited for cores | without waiting | off | off without waiting |");
        println!("|---|---|---|---|---|---|---|---|");
        for (index, n_threads) in LOADS.into_iter().enumerate() {
            load.n_threads.store(n_threads, Ordering::Relaxed);
            let statistics = answer(model, options, cache.path());
            let of = |pointer: &str| statistics.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
            let rate = |n: &str, secs: &str| of(n) / of(secs);
            let predicted = [of("/predicted/prompt_rate"), of("/predicted/decode_rate")];
            let measured = [rate("/n_prompt", "/prompt_secs"), rate("/n_decoded", "/decode_secs")];
            let undisturbed = [of("/disturbance/prompt_rate"), of("/disturbance/decode_rate")];
            let waited = [of("/disturbance/prompt_waited"), of("/disturbance/decode_waited")].map(|share| share * 100.0);
            let off = [measured, undisturbed].map(|rates| [rates[0] / predicted[0] - 1.0, rates[1] / predicted[1] - 1.0]);
            println!(
                "| {} | {n_threads} | {} | {} | {} % | {} | {} % | {} % |",
                index + 1,
                pair(predicted),
                pair(measured),
                pair(waited),
                pair(undisturbed),
                pair(off[0].map(|error| error * 100.0)),
                pair(off[1].map(|error| error * 100.0)),
            );
            if index > 0 {
                errors.iter_mut().zip(off).for_each(|(errors, off)| errors.extend(off.map(f64::abs)));
            }
        }
    }
    load.n_threads.store(0, Ordering::Relaxed);
    for (what, errors) in ["as measured", "without waiting for cores"].iter().zip(&mut errors) {
        errors.sort_by(f64::total_cmp);
        let [median, worst] = [errors[errors.len() / 2], errors[errors.len() - 1]].map(|error| error * 100.0);
        println!("\nfrom the second run on, {what}: {median:.0} % off at the median, {worst:.0} % at worst");
    }
}

fn pair([prompt, decode]: [f64; 2]) -> String {
    let digits = |value: f64| if value.abs() < 10.0 { 1 } else { 0 };
    format!("{prompt:.*} / {decode:.*}", digits(prompt), digits(decode))
}

/// The statistics of one run of the program, which keeps its rates in `cache`.
fn answer(model: &Path, options: &[&str], cache: &Path) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tierflow"));
    command.arg("run").arg("-m").arg(model).args(["--raw", "--json", "-q", "--ignore-eos", "--temp", "0", "-c", "256", "-n", "48"]);
    command.args(["-p", PROMPT]).args(options).env("TIERFLOW_CACHE", cache).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().expect("the program");
    assert!(output.status.success(), "{options:?}");
    serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["statistics"].take()
}

/// Threads that work, as many as are wanted, for a second in every two.
struct Load {
    n_threads: Arc<AtomicUsize>,
}

impl Load {
    fn start() -> Load {
        let n_threads = Arc::<AtomicUsize>::default();
        for index in 0..LOADS.into_iter().max().unwrap_or(0) {
            let wanted = Arc::clone(&n_threads);
            std::thread::spawn(move || {
                let begin = std::time::Instant::now();
                loop {
                    let is_on = begin.elapsed().as_secs().is_multiple_of(2);
                    if is_on && wanted.load(Ordering::Relaxed) > index {
                        std::hint::black_box((0..100_000_u64).fold(0, |sum, value| std::hint::black_box(sum ^ value)));
                    } else {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        }
        Load { n_threads }
    }
}
