//! Running programs step by step, each announced on stderr.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a task ended early.
#[derive(Debug)]
pub struct Failure {
    /// What is missing or failed, and what to do.
    pub text: String,
    /// The exit code of the program that failed, else 1.
    pub exit_code: u8,
}

impl Failure {
    /// A failure of the task itself.
    pub fn new(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), exit_code: 1 }
    }
}

/// Outcome of a step.
pub type Result<T> = std::result::Result<T, Failure>;

/// How a step ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Passed,
    /// This machine lacks what it needs, which was reported.
    LeftOut,
}

/// Says on stderr what comes next.
pub fn announce(text: &str) {
    eprintln!("\n==> {text}");
}

/// Announces `command` as a user would type it and runs it; its output goes where this program's goes.
pub fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    announce(&line);
    let status = command.status().map_err(|error| Failure::new(format!("cannot start `{line}`: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let exit_code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).max(1);
    Err(Failure { text: format!("`{line}` failed: {status}"), exit_code })
}

/// Whether `program` starts with these arguments and succeeds; prints nothing.
pub fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The folder of build outputs.
pub fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// tierflow's program, as `cargo build --release` leaves it.
pub fn tierflow() -> PathBuf {
    target().join("release").join(format!("tierflow{}", std::env::consts::EXE_SUFFIX))
}

/// The cargo that runs this, in the root of the repository.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

fn command_line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.contains(' ') { format!("{word:?}") } else { word.into_owned() }
    });
    std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ")
}
