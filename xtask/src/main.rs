//! `cargo xtask TASK`: what a developer, a newcomer and the checks run. Starts programs; the engine itself is not linked.

mod demo;
mod machine;
mod model;
mod picture;
mod steps;
mod test;
mod web;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK

  demo          show the main job on this machine: find or install an adapter, fetch a model, build, plan, run
  test          format, clippy, docs and all tests; the first failure ends it
  make-model DIR [--preset tiny|1b|8b] [--dtype f32|f16|bf16|q8_0|q4_0|q4_1] [--seed N] [--shards N] [--gguf|--headers-only]
                write a model with seeded random weights
  picture TRACE.json OUT.svg
                draw the lanes of one forward of a trace
  web [PORT]    build the engine for browsers into web/dist, and serve its page with the small model beside it
  web build     only build it
  fetch-model   fetch the small model that demo and test use, and print where it lies
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["demo"] => demo::run(),
        ["test"] => test::run(),
        ["web"] => web::serve(web::PORT),
        ["web", "build"] => web::build(),
        ["web", port] if port.parse::<u16>().is_ok() => web::serve(port),
        ["fetch-model"] => model::ensure().map(|path| println!("{}", path.display())),
        ["make-model", ..] => xtask::models::make_model(&arguments[1..]).map_err(steps::Failure::new),
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
