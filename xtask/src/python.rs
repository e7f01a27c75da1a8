//! `cargo xtask python`: the wheels of the Python packages, built, installed into an environment under `target/`, and tested there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::models::{GgufType, LlamaShape, Stored, write_gguf, write_hf, write_hf_headers};

use crate::steps::{self, Failure, Result, announce};
use crate::{machine, model};

/// What builds the wheels.
const BUILDERS: &[&str] = &["maturin>=1.7,<2", "hatchling>=1.26,<2"];
/// What their tests need.
const REQUIREMENTS: &str = "python/tests/requirements.txt";
/// No wheel is larger.
const MAX_BYTES: u64 = 25_000_000;
/// The oldest Python that the package runs on.
const OLDEST: (u32, u32) = (3, 10);

/// Builds the program, whose answers the package's are compared with, then as [`check`].
pub fn run() -> Result<()> {
    machine::ensure_adapter()?;
    steps::run(&mut steps::cargo(&["build", "--release"]))?;
    check(&model::ensure()?)
}

/// Builds the wheel and tests it with `model`, beside the program as it is built; then Haystack's components.
pub fn check(model: &Path) -> Result<()> {
    let folder = steps::target().join("python");
    let python = environment(&folder.join("venv"), BUILDERS, REQUIREMENTS)?;
    let wheel = build(&python, &folder.join("wheels"))?;
    install(&python, &wheel, &[])?;
    // What it needs to be built is there.
    install(&python, &steps::root().join("python/haystack"), &["--no-build-isolation"])?;
    let models = folder.join("models");
    make_models(&models).map_err(|error| Failure::new(format!("cannot write models into {}: {error}", models.display())))?;
    for tests in ["python/tests", "python/haystack/tests"] {
        let mut command = Command::new(&python);
        // From the tests' folder: in the package's, its sources would be imported, which lack the native module.
        command.args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider", "."]).current_dir(steps::root().join(tests));
        command.env("TIERFLOW_SMOLLM2", model).env("TIERFLOW_TEST_MODELS", &models).env("TIERFLOW_PROGRAM", steps::tierflow());
        command.env("TIERFLOW_CACHE", steps::target().join("test-cache")).env("PYTHONDONTWRITEBYTECODE", "1");
        // Haystack tells its makers who uses it, unless it is told not to.
        command.env("HAYSTACK_TELEMETRY_ENABLED", "False");
        machine::ensure_runtime_folder(&mut command);
        steps::run(&mut command)?;
    }
    Ok(())
}

/// Installs a wheel, or a folder with a package, in place of what was there.
fn install(python: &Path, package: &Path, options: &[&str]) -> Result<()> {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall", "--no-deps"]).args(options);
    steps::run(command.arg(package))
}

/// The python of an environment with `packages` and those that the file `requirements` lists, which is made where it is missing.
pub fn environment(folder: &Path, packages: &[&str], requirements: &str) -> Result<PathBuf> {
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let list = steps::root().join(requirements);
    let listed = fs::read_to_string(&list).map_err(|error| Failure::new(format!("cannot read {requirements}: {error}")))?;
    let (stamp, stamp_file) = (format!("{}\n{listed}", packages.join("\n")), folder.join("installed.txt"));
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) && steps::succeeds(&python.to_string_lossy(), &["--version"]) {
        return Ok(python);
    }
    announce(&format!("making an environment in {}", folder.display()));
    let make = |base: &str| steps::run(Command::new(base).args(["-m", "venv", "--clear"]).arg(folder));
    // Debian's venv is there without what makes an environment, until its package is.
    if base().is_none_or(|base| make(base).is_err()) {
        machine::install(&["python3", "python3-venv"], &format!("python3 {}.{} or newer with its module venv", OLDEST.0, OLDEST.1))?;
        make(base().ok_or_else(|| Failure::new(format!("python3 is older than {}.{}", OLDEST.0, OLDEST.1)))?)?;
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    steps::run(pip.arg("-r").arg(&list))?;
    fs::write(&stamp_file, stamp).map_err(|error| Failure::new(format!("cannot write {}: {error}", stamp_file.display())))?;
    Ok(python)
}

/// A python that is new enough.
fn base() -> Option<&'static str> {
    let (major, minor) = OLDEST;
    let script = format!("import sys, venv; sys.exit(sys.version_info < ({major}, {minor}))");
    ["python3", "python"].into_iter().find(|python| steps::succeeds(python, &["-c", &script]))
}

/// The wheel, whose size is checked.
fn build(python: &Path, folder: &Path) -> Result<PathBuf> {
    let failed = |error: std::io::Error| Failure::new(format!("cannot use {}: {error}", folder.display()));
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    let mut command = Command::new(python);
    command.args(["-m", "maturin", "build", "--release", "--locked", "--interpreter"]).arg(python).arg("--out").arg(folder);
    steps::run(command.arg("--manifest-path").arg("python/Cargo.toml").current_dir(steps::root()))?;
    let wheels = fs::read_dir(folder).map_err(failed)?.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = wheels.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.ok_or_else(|| Failure::new(format!("maturin has left no wheel in {}", folder.display())))?;
    let size = fs::metadata(&wheel).map_err(failed)?.len();
    eprintln!("{}: {:.1} MB", wheel.display(), size as f64 / 1e6);
    if size > MAX_BYTES {
        return Err(Failure::new(format!("the wheel has {size} bytes, where {MAX_BYTES} are the limit")));
    }
    Ok(wheel)
}

/// Models of the tests: seeded random weights, and headers of a large one.
fn make_models(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    write_gguf(&folder.join("tiny.gguf"), &LlamaShape::tiny(), 1, GgufType::Q8_0)?;
    write_hf(&folder.join("tiny"), &LlamaShape::tiny(), 1, Stored::F32, 1)?;
    write_hf_headers(&folder.join("llama-8b"), &LlamaShape::eight_billion(), Stored::BF16, 4)
}
