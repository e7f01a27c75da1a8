//! `cargo xtask web`: the engine as wasm, bundled with its package and its page, and served with the small model beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::models::{GgufType, LlamaShape, write_gguf};

use crate::steps::{self, Failure, Outcome, Result, announce};
use crate::{machine, model};

const TARGET: &str = "wasm32-unknown-unknown";
const WASM: &str = "wasm32-unknown-unknown/web/tierflow_web.wasm";
/// Made in `web/dist`: for one thread, and for several.
const BOUND: [&str; 2] = ["web/dist/wasm/tierflow_bg.wasm", "web/dist/wasm/tierflow_threads_bg.wasm"];
/// Where the page is served; another port may be given.
pub const PORT: &str = "8137";

/// Builds `web/dist`.
pub fn build() -> Result<()> {
    ensure_target()?;
    steps::run(&mut steps::cargo(&["build", "--profile", "web", "--target", TARGET, "--package", "tierflow-web"]))?;
    steps::run(bundler(&["bundle"]).arg(steps::target().join(WASM)).arg("web"))?;
    BOUND.iter().try_for_each(|wasm| shrink(wasm))
}

/// Builds, and serves until it is interrupted.
pub fn serve(port: &str) -> Result<()> {
    build()?;
    let model = model::ensure()?;
    let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    announce("serving; end with Ctrl-C");
    steps::run(bundler(&["serve", "web/dist", port]).arg(format!("{name}={}", model.display())))
}

/// Builds, and runs those tests of package and page that need no browser.
pub fn check() -> Result<()> {
    build()?;
    let node = machine::ensure_node()?;
    steps::run(&mut runner(&node, &["--unit".to_owned()]))
}

/// Runs the others of what [`check`] has built, without most of what the small model says. Where there is no browser and none can
/// be installed, that is reported and they are left out, but not in CI.
pub fn check_in_browser() -> Result<Outcome> {
    if !is_found(machine::ensure_browser(), "Chromium")? {
        return Ok(Outcome::LeftOut);
    }
    run_tests(&["--short".to_owned(), "--only".to_owned(), "browser/".to_owned()])?;
    Ok(Outcome::Passed)
}

/// Builds, and runs all tests of package and page; `arguments` are those of `web/tests/run.mjs`.
pub fn test(arguments: &[String]) -> Result<()> {
    build()?;
    machine::ensure_browser()?;
    run_tests(arguments)
}

/// Whether a browser is there to test the page in; in CI it must be.
fn is_found(found: Result<()>, browser: &str) -> Result<bool> {
    match found {
        Err(failure) if is_ci() => Err(failure),
        Err(failure) => {
            eprintln!("The page is not tested in {browser}: {}", failure.text);
            Ok(false)
        }
        Ok(()) => Ok(true),
    }
}

/// Runs tests of what is built, with the tools and models that they need.
fn run_tests(arguments: &[String]) -> Result<()> {
    // The runner leaves out its tests where it is not there.
    is_found(machine::ensure_firefox(), "Firefox")?;
    let node = machine::ensure_node()?;
    ensure_packages(&steps::root().join("web"))?;
    // One that answers at once, for tests that do not care what it says, and one with experts.
    let (model, tiny) = (model::ensure()?, small_model("tiny.gguf", &LlamaShape::tiny(), 1)?);
    let experts = small_model("experts.gguf", &LlamaShape::small_experts(), 5)?;
    steps::run(&mut steps::cargo(&["build", "--release"]))?;
    let files = [("--model", model), ("--tiny", tiny), ("--experts", experts), ("--program", steps::tierflow())];
    let named = files.map(|(name, path)| [name.into(), path.into_os_string()]);
    steps::run(runner(&node, arguments).args(named.as_flattened()))
}

/// Installs what the list of packages in `folder` names, where that is not there.
pub fn ensure_packages(folder: &Path) -> Result<()> {
    if has_packages(folder) { Ok(()) } else { steps::run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(folder)) }
}

/// Whether the packages in `folder` are those that its list names now: npm writes its own list once all are there.
fn has_packages(folder: &Path) -> bool {
    let written = |name: &str| fs::metadata(folder.join(name)).and_then(|metadata| metadata.modified());
    matches!((written("package-lock.json"), written("node_modules/.package-lock.json")), (Ok(wanted), Ok(there)) if there >= wanted)
}

/// Whether a machine runs this for others, who would not see what it leaves out.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// The runner of the tests, in `web/`.
fn runner(node: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new(node);
    command.arg("tests/run.mjs").args(arguments).current_dir(steps::root().join("web"));
    command
}

/// A model with random weights, for tests.
fn small_model(name: &str, shape: &LlamaShape, seed: u64) -> Result<PathBuf> {
    let path = steps::target().join("web-tests").join(name);
    let written = fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| write_gguf(&path, shape, seed, GgufType::Q8_0));
    written.map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))?;
    Ok(path)
}

fn bundler(arguments: &[&str]) -> Command {
    let mut command = steps::cargo(&["run", "--quiet", "--release", "--package", "web-bundle", "--"]);
    command.args(arguments);
    command
}

/// Without the standard library for wasm nothing compiles; rustup has it.
fn ensure_target() -> Result<()> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).current_dir(steps::root()).output();
    let sysroot = sysroot.map_err(|error| Failure::new(format!("cannot start rustc: {error}")))?;
    let library = Path::new(String::from_utf8_lossy(&sysroot.stdout).trim()).join("lib/rustlib").join(TARGET);
    if library.exists() { Ok(()) } else { steps::run(Command::new("rustup").args(["target", "add", TARGET])) }
}

/// Makes the wasm smaller where binaryen's `wasm-opt` is installed; it runs as well without.
fn shrink(name: &str) -> Result<()> {
    let wasm = &steps::root().join(name);
    if steps::succeeds("wasm-opt", &["--version"]) {
        let features = ["--enable-bulk-memory", "--enable-nontrapping-float-to-int", "--enable-reference-types"];
        let more = ["--enable-sign-ext", "--enable-mutable-globals", "--enable-multivalue", "--enable-simd", "--enable-threads"];
        steps::run(Command::new("wasm-opt").arg("-Os").args(features).args(more).arg(wasm).arg("-o").arg(wasm))?;
    }
    let size = fs::metadata(wasm).map_err(|error| Failure::new(format!("cannot open {}: {error}", wasm.display())))?.len();
    eprintln!("{name}: {size} bytes");
    Ok(())
}
