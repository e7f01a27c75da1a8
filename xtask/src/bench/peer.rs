//! The other programs: their Python environments, and a process of each that `peers.py` runs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::report::Report;
use crate::steps::{self, announce};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// llama.cpp, as the Python package llama-cpp-python carries it.
    LlamaCpp,
    /// Accelerate's offloading of a model of transformers.
    Accelerate,
}

impl Program {
    /// Its name in reports and as the argument of `peers.py`.
    pub fn name(self) -> &'static str {
        match self {
            Program::LlamaCpp => "llama.cpp",
            Program::Accelerate => "accelerate",
        }
    }

    /// The packages of its environment. On Linux and Windows torch's wheel for the CPU alone has a version of its own;
    /// the plain one there brings gigabytes of CUDA.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Program::LlamaCpp => &["llama-cpp-python==0.3.36"],
            Program::Accelerate if cfg!(target_os = "macos") => {
                &["torch==2.15.0", "accelerate==1.15.0", "transformers==5.23.0", "gguf==0.19.0"]
            }
            Program::Accelerate => &["torch==2.15.0+cpu", "accelerate==1.15.0", "transformers==5.23.0", "gguf==0.19.0"],
        }
    }

    /// What to do where the packages do not install.
    fn advice(self) -> &'static str {
        match self {
            Program::LlamaCpp => "it is built from source and needs a C++ compiler; --llama-venv DIR names an environment that has it",
            Program::Accelerate => {
                "torch for the CPU comes from PyTorch's own package index: name it in PIP_EXTRA_INDEX_URL; \
                 --accelerate-venv DIR names an environment that has torch, transformers, accelerate and gguf"
            }
        }
    }
}

/// The Python programs of the environments that are there.
#[derive(Debug, Default)]
pub struct Environments(Vec<(Program, PathBuf)>);

impl Environments {
    /// Takes the environments that are given and makes the others under `target/`; says in `report` what is left out.
    pub fn prepare<const N: usize>(wanted: [(Program, Option<&Path>); N], report: &mut Report) -> Environments {
        let mut found = Vec::new();
        for (program, given) in wanted {
            let python = match given {
                Some(folder) => Ok(python_of(folder)),
                None => install(program).map_err(|reason| format!("{reason}; {}", program.advice())),
            };
            match python.and_then(|python| Ok((Peer::start(program, &python, &[])?.ask(json!({ "do": "describe" }))?, python))) {
                Ok((described, python)) => {
                    report.versions.push(described["version"].as_str().unwrap_or_default().to_owned());
                    found.push((program, python));
                }
                Err(reason) => report.leave_out(program.name(), &reason),
            }
        }
        Environments(found)
    }

    /// Starts a process of `program` with these variables in its environment; `None` where the program is left out.
    pub fn start(&self, program: Program, variables: &[(&str, &str)]) -> Option<Result<Peer, String>> {
        let (_, python) = self.0.iter().find(|(found, _)| *found == program)?;
        Some(Peer::start(program, python, variables))
    }
}

/// Installs a program's packages into its environment under `target/`, once; the environment's python.
fn install(program: Program) -> Result<PathBuf, String> {
    let folder = steps::target().join("peers").join(program.name());
    let python = python_of(&folder);
    // llama.cpp's build goes by this variable: with another value it is another program.
    let stamp = format!("{}\nCMAKE_ARGS={}\n", program.packages().join("\n"), std::env::var("CMAKE_ARGS").unwrap_or_default());
    let stamp_file = folder.join("installed.txt");
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(python);
    }
    announce(&format!("installing {} (some minutes)", program.name()));
    let base = ["python3", "python"].into_iter().find(|python| steps::succeeds(python, &["-m", "venv", "--help"]));
    let base = base.ok_or("python3 with its module venv is missing")?;
    let step = |command: &mut Command| steps::run(command.stdout(std::io::stderr())).map_err(|failure| failure.text);
    step(Command::new(base).args(["-m", "venv", "--clear"]).arg(&folder))?;
    step(Command::new(&python).args(["-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir"]).args(program.packages()))?;
    fs::write(&stamp_file, stamp).map_err(|error| format!("cannot write {}: {error}", stamp_file.display()))?;
    Ok(python)
}

fn python_of(environment: &Path) -> PathBuf {
    environment.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
}

/// How long a process may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// One running process of `peers.py`.
pub struct Peer {
    process: Child,
    /// `None` once it is to end.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(program: Program, python: &Path, variables: &[(&str, &str)]) -> Result<Peer, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/peers.py");
        let mut command = Command::new(python);
        command.arg(script).arg(program.name()).envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|error| format!("cannot start {}: {error}", python.display()))?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(commands), Some(answers)) => Ok(Peer { process, commands: Some(commands), answers: BufReader::new(answers) }),
            _ => Err(format!("{} has no pipes", python.display())),
        }
    }

    /// Sends one command of `peers.py` and waits for its answer.
    pub fn ask(&mut self, command: Value) -> Result<Value, String> {
        let mut line = String::new();
        let commands = self.commands.as_mut().ok_or("it was told to end")?;
        writeln!(commands, "{command}").and_then(|()| self.answers.read_line(&mut line)).map_err(|error| format!("it ended: {error}"))?;
        let mut reply: Value = serde_json::from_str(&line).map_err(|_| format!("it ended during {command}"))?;
        match reply["error"].as_str() {
            Some(reason) => Err(reason.to_owned()),
            None => Ok(reply["answer"].take()),
        }
    }
}

impl Drop for Peer {
    /// The process ends where its commands do, and takes its temporary files along; one that does not is killed.
    fn drop(&mut self) {
        self.commands = None;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
