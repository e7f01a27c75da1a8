//! Every program in `examples/` runs and prints what it promises.

use std::path::PathBuf;
use std::process::Command;

use crate::common::program::{Home, Ran, has_gpu, wait};
use xtask::models::GgufType;

/// Runs an example, which `cargo test` has built beside this test.
#[track_caller]
fn run(home: &Home, name: &str, arguments: &[&str]) -> Ran {
    // target/<profile>/deps/examples-… → target/<profile>/examples/<name>
    let test = std::env::current_exe().expect("this test's own path");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/<profile>");
    let program: PathBuf = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "{} is missing; build it with: cargo build --release --examples", program.display());
    let mut command = Command::new(program);
    home.clean(&mut command);
    wait(command.args(arguments).spawn().expect("the example"))
}

#[track_caller]
fn stdout(home: &Home, name: &str, arguments: &[&str]) -> String {
    let ran = run(home, name, arguments);
    assert_eq!(ran.code, Some(0), "{name}: {}", ran.stderr);
    ran.stdout
}

#[test]
fn list_devices_lists_host_and_disk() {
    let lines = stdout(&Home::new(), "list_devices", &[]);
    assert!(lines.contains("cpu  ") && lines.contains("disk  "), "{lines}");
}

#[test]
fn print_plan_shows_every_unit() {
    let home = Home::new();
    let plan = stdout(&home, "print_plan", &[&home.folder_model()]);
    let units = ["model.embed_tokens", "model.layers.0.self_attn", "model.layers.3.mlp", "lm_head"];
    assert!(units.iter().all(|unit| plan.lines().any(|line| line.starts_with(unit))), "{plan}");
}

#[test]
fn generate_says_what_the_program_says() {
    let home = Home::new();
    let model = home.folder_model();
    let expected = home.stdout(&["run", &model, "-p", "Hello there", "--temp", "0", "-n", "64"]);
    assert_eq!(stdout(&home, "generate", &[&model, "Hello there"]), expected);
}

#[test]
fn stream_tokens_shows_every_token() {
    let home = Home::new();
    let lines = stdout(&home, "stream_tokens", &[&home.gguf_model(GgufType::Q8_0), "Once"]);
    let last = lines.lines().last().unwrap_or_default();
    let n_tokens = lines.lines().count() - 1;
    assert!((1..=32).contains(&n_tokens) && last.ends_with(&format!("after {n_tokens} tokens")), "{lines}");
}

#[test]
fn custom_budget_holds_its_budgets() {
    let home = Home::new();
    let model = home.folder_model();
    assert!(stdout(&home, "custom_budget", &[&model, "cpu=2500KiB"]).contains("cpu peak "));
    if has_gpu() {
        let lines = stdout(&home, "custom_budget", &[&model, "gpu:0=400KiB,cpu=0"]);
        assert!(lines.contains("gpu:0 peak ") && !lines.contains("read from disk 0 B"), "{lines}");
    }
    assert_eq!(run(&home, "custom_budget", &[&model, "cpu=1KiB"]).code, Some(1));
}

#[test]
fn every_example_is_short_and_says_how_it_is_run() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for entry in std::fs::read_dir(folder).expect("examples/") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            continue; // Data of examples.
        }
        let source = std::fs::read_to_string(&path).expect("an example");
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
        assert!(source.lines().count() < 80, "{name} is long");
        assert!(source.contains(&format!("//! Run: `cargo run --release --example {name}")), "{name} does not say how it is run");
        assert!(include_str!("examples.rs").contains(&format!("\"{name}\"")), "{name} is not run by a test");
    }
}
