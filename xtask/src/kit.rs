//! `cargo xtask gpu-kit`: a folder that measures tierflow on a machine with a GPU and nothing else, tried here on a software adapter.

mod libraries;
mod report;
mod results;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::steps::{self, Failure, Outcome, Result, announce};
pub use report::write_report;

/// Where the kit goes unless told otherwise, in the repository.
pub const FOLDER: &str = "gpu-kit";
/// No kit is larger: it travels by slow ways.
const MAX_BYTES: u64 = 60 << 20;
/// What makes its programs: those of the tests, so that nothing is compiled twice. The profile strips them.
const BUILD: &str = "test --release --workspace --no-run --test engine --bench kernels --bench uploads --message-format=json";
/// Kind and name of each target among cargo's messages, and what it is called in the kit.
const PROGRAMS: [(&str, &str, &str); 4] =
    [("bin", "tierflow", "tierflow"), ("test", "engine", "tests"), ("bench", "kernels", "kernels"), ("bench", "uploads", "uploads")];
/// The files that are as they are in the repository.
const SCRIPTS: [(&str, &str); 2] = [("run.sh", include_str!("kit/run.sh")), ("peers.py", include_str!("kit/peers.py"))];
const README: &str = include_str!("kit/README.md");

/// Makes the kit in `folder`, in place of one that is there.
///
/// # Errors
/// Where this is no x86-64 Linux, something does not build or is missing, `folder` holds something else, or the kit is too large.
pub fn make(folder: &Path) -> Result<()> {
    if !is_possible_here() {
        return Err(Failure::new("the kit is for x86-64 Linux, and is made there"));
    }
    let failed = |what: &str, path: &Path, error: std::io::Error| Failure::new(format!("cannot {what} {}: {error}", path.display()));
    let is_other = folder.exists() && !folder.join("kit.env").exists();
    if is_other && !fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(Failure::new(format!("{} is there and is no kit; name another folder", folder.display())));
    }
    let programs = build()?;
    announce(&format!("packing {}", folder.display()));
    // Results beside them stay.
    let lib = folder.join("lib");
    if lib.exists() {
        fs::remove_dir_all(&lib).map_err(|error| failed("replace", &lib, error))?;
    }
    fs::create_dir_all(&lib).map_err(|error| failed("create", &lib, error))?;
    libraries::collect(&lib)?;
    let glibc = pack(&programs, &folder.join("bin.tar.gz"))?.max(glibc_of(&lib).map_err(|error| failed("read", &lib, error))?);
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).map_err(|error| failed("write", &folder.join(name), error));
    for (name, text) in SCRIPTS {
        write(name, text)?;
    }
    make_runnable(&folder.join("run.sh")).map_err(|error| failed("write", folder, error))?;
    write("README.md", &README.replace("@GLIBC@", &glibc.to_string()))?;
    write("kit.env", &format!("KIT_COMMIT={}\nKIT_GLIBC={glibc}\n", commit()))?;
    let size = size_of(folder).and_then(|files| Ok(files + size_of(&lib)?)).map_err(|error| failed("read", folder, error))?;
    eprintln!(
        "{}: {:.1} MiB; needs glibc {glibc}; `run.sh` there measures, `run.sh --rehearse` tries it here",
        folder.display(),
        mib(size)
    );
    if size > MAX_BYTES {
        return Err(Failure::new(format!("the kit has {:.1} MiB, where {:.0} are the limit", mib(size), mib(MAX_BYTES))));
    }
    Ok(())
}

/// Makes a kit among the build outputs and rehearses it, as part of the tests.
///
/// # Errors
/// As of [`make`]; where a step of the rehearsal gave no figures.
pub fn rehearse() -> Result<Outcome> {
    if !is_possible_here() {
        eprintln!("left out: the kit is for x86-64 Linux");
        return Ok(Outcome::LeftOut);
    }
    let folder = steps::target().join(FOLDER);
    make(&folder)?;
    steps::run(Command::new(folder.join("run.sh")).arg("--rehearse").env("OUT", steps::target().join("gpu-kit-results")))?;
    Ok(Outcome::Passed)
}

fn is_possible_here() -> bool {
    cfg!(all(target_os = "linux", target_arch = "x86_64"))
}

/// Builds the programs; where each lies and what the kit calls it. This very program is one of them.
fn build() -> Result<Vec<(PathBuf, &'static str)>> {
    let this = std::env::current_exe().map_err(|error| Failure::new(format!("this program is not found: {error}")))?;
    announce(&format!("cargo {BUILD}"));
    let output = steps::cargo(&BUILD.split(' ').collect::<Vec<_>>()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| Failure::new(format!("cannot start cargo: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!("the programs do not build: {}", output.status)));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = vec![(this, "xtask")];
    for (kind, target, name) in PROGRAMS {
        let path = messages.lines().rev().find_map(|line| executable(line, kind, target));
        let missing = || Failure::new(format!("cargo names no program of the {kind} {target}"));
        programs.push((path.ok_or_else(missing)?, name));
    }
    Ok(programs)
}

/// The program of a target, where `line` is cargo's message of it.
fn executable(line: &str, kind: &str, target: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_wanted = message["target"]["kind"][0] == kind && message["target"]["name"] == target;
    // Of a bin there may be another one, with its own tests.
    let is_itself = kind != "bin" || message["profile"]["test"] == false;
    (is_wanted && is_itself).then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
}

/// Packs the programs into a file that `run.sh` unpacks; the version of the C library that they need.
fn pack(programs: &[(PathBuf, &'static str)], archive: &Path) -> Result<Glibc> {
    let folder = tempfile::tempdir().map_err(|error| Failure::new(format!("cannot create a folder: {error}")))?;
    let mut glibc = Glibc::default();
    for (path, name) in programs {
        let failed = |error| Failure::new(format!("cannot copy {}: {error}", path.display()));
        glibc = glibc.max(Glibc::needed_by(&fs::read(path).map_err(failed)?));
        // With the bits by which it may run.
        fs::copy(path, folder.path().join(name)).map_err(failed)?;
    }
    let mut tar = Command::new("tar");
    steps::run(tar.args(["--create", "--gzip", "--file"]).arg(archive).arg("--directory").arg(folder.path()).arg("."))?;
    Ok(glibc)
}

/// The version of the C library that the libraries in `folder` need.
fn glibc_of(folder: &Path) -> std::io::Result<Glibc> {
    let needs = fs::read_dir(folder)?.map(|entry| Ok(Glibc::needed_by(&fs::read(entry?.path())?)));
    needs.collect::<std::io::Result<Vec<Glibc>>>().map(|all| all.into_iter().max().unwrap_or_default())
}

/// A version of the C library.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Glibc(u32, u32);

impl Glibc {
    /// The newest whose symbols a program asks for, by the names of versions in its text.
    fn needed_by(program: &[u8]) -> Glibc {
        const MARK: &[u8] = b"GLIBC_";
        let version = |at: usize| {
            let digits = &program[at + MARK.len()..program.len().min(at + MARK.len() + 8)];
            let text = digits.split(|byte| *byte == 0).next().and_then(|text| std::str::from_utf8(text).ok())?;
            let mut numbers = text.split('.').map(str::parse::<u32>);
            Some(Glibc(numbers.next()?.ok()?, numbers.next()?.ok()?))
        };
        let marks = program.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
        marks.filter_map(|(at, _)| version(at)).max().unwrap_or_default()
    }
}

impl std::fmt::Display for Glibc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The commit that the kit is made from, marked where files differ from it.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]).current_dir(steps::root()).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "unknown".into())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Bytes of the files in `folder`, without those in folders there.
fn size_of(folder: &Path) -> std::io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?.metadata()?;
        size += if entry.is_file() { entry.len() } else { 0 };
    }
    Ok(size)
}

#[cfg(unix)]
fn make_runnable(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_runnable(_file: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_that_is_named_is_needed() {
        let program = b"\0GLIBC_2.2.5\0memcpy\0GLIBC_2.34\0GLIBC_2.4\0GLIBC_PRIVATE\0GLIBC_x";
        assert_eq!(Glibc::needed_by(program).to_string(), "2.34");
        assert_eq!(Glibc::needed_by(b"static"), Glibc(0, 0));
    }

    #[test]
    fn the_script_refuses_what_it_does_not_know_and_tells_its_options() {
        if !is_possible_here() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("run.sh");
        fs::write(&script, SCRIPTS[0].1).unwrap();
        let run = |argument: &str| Command::new("bash").arg(&script).arg(argument).output().unwrap();
        let (help, refusal) = (run("--help"), run("--rehearsal"));
        assert_eq!((help.status.code(), refusal.status.code()), (Some(0), Some(2)));
        assert!(refusal.stdout.is_empty() && help.stdout == refusal.stderr, "{}", String::from_utf8_lossy(&refusal.stderr));
        assert!(String::from_utf8_lossy(&help.stdout).contains("./run.sh --rehearse"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is written");
    }

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let message = |kind: &str, test: bool| {
            format!(r#"{{"target": {{"kind": ["{kind}"], "name": "a"}}, "profile": {{"test": {test}}}, "executable": "/x/a"}}"#)
        };
        assert_eq!(executable(&message("test", true), "test", "a"), Some("/x/a".into()));
        assert_eq!(executable(&message("bin", false), "bin", "a"), Some("/x/a".into()));
        assert_eq!(executable(&message("bin", true), "bin", "a"), None);
        assert_eq!(executable(&message("bench", true), "test", "a"), None);
        assert_eq!(executable("   Compiling a", "test", "a"), None);
    }
}
