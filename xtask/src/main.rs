//! `cargo xtask TASK`: what a developer, a newcomer and the checks run. Starts programs; the engine itself is not linked.

mod bench;
mod clients;
mod demo;
mod kit;
mod library;
mod machine;
mod model;
mod picture;
mod python;
mod steps;
mod test;
mod web;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK

  demo          show the main job on this machine: find or install an adapter, fetch a model, build, plan, run
  test          format, clippy, docs and all tests, those of the page in Chromium; the first failure ends it
  make-model DIR [--preset tiny|20m|1b|8b|moe|moe-3b|qwen3-30b-a3b] [--dtype f32|f16|bf16|q8_0|q4_0|q4_1] [--seed N] [--shards N] [--gguf|--headers-only]
                write a model with seeded random weights
  picture TRACE.json OUT.svg
                draw the lanes of one forward of a trace
  web [PORT]    build the engine for browsers into web/dist, and serve its page with the small model beside it
  web build     only build it
  web test [--short] [--long] [--large FOLDER] …
                build it and test it in a browser; web/tests/run.mjs says which options there are
  python        build the wheel of the Python package into target/python, and test it and Haystack's components in an environment there
  clients       test clients of the server's APIs, from npm and PyPI, against servers on the host and on the GPU
  bench --peers [--json FILE] [--rounds N] [--threads N] [--only TEXT] [--llama-venv DIR] [--accelerate-venv DIR]
                measure tierflow beside llama.cpp (llama-cpp-python) and Accelerate, in turns, and print medians and ratios;
                installs them under target/ where no environment is named; CMAKE_ARGS=-DGGML_VULKAN=on builds llama.cpp's
                Vulkan backend as well; --only takes the cases whose title holds TEXT
  chart BENCH.json OUT.svg
                draw the chart of what bench --json wrote
  gpu-kit [DIR] make a folder (gpu-kit/) that measures tierflow on a bare Linux machine with an NVIDIA GPU; its README.md tells how
  gpu-report RESULTS [--check]
                write the report of what a run of the kit left in a folder; with --check, fail where figures are missing
  fetch-model   fetch the small model that demo and test use, and print where it lies
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["demo"] => demo::run(),
        ["test"] => test::run(),
        ["web"] => web::serve(web::PORT),
        ["web", "build"] => web::build(),
        ["web", "test", ..] => web::test(&arguments[2..]),
        ["web", port] if port.parse::<u16>().is_ok() => web::serve(port),
        ["python"] => python::run(),
        ["clients"] => clients::run(),
        ["gpu-kit"] => kit::make(&steps::root().join(kit::FOLDER)),
        ["gpu-kit", folder] if !folder.starts_with('-') => kit::make(Path::new(folder)),
        ["gpu-report", folder] => kit::write_report(Path::new(folder), false),
        ["gpu-report", "--check", folder] | ["gpu-report", folder, "--check"] => kit::write_report(Path::new(folder), true),
        ["fetch-model"] => model::ensure().map(|path| println!("{}", path.display())),
        ["make-model", ..] => xtask::models::make_model(&arguments[1..]).map_err(steps::Failure::new),
        ["bench", ..] => bench::run(&arguments[1..]),
        ["chart", json, out] => bench::draw(Path::new(json), Path::new(out)),
        ["picture", trace, out] => picture::draw(Path::new(trace), Path::new(out)).map_err(steps::Failure::new),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {}", failure.text);
            ExitCode::from(failure.exit_code)
        }
    }
}
