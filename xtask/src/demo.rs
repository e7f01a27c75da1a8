//! `cargo xtask demo`: from a bare machine to an answer of a model that is larger than its GPU budget.

use std::process::Command;

use crate::steps::{self, Result, announce};
use crate::{machine, model};

/// Less than half of what the model takes, on the GPU alone: without the word, the planner would let the host compute
/// what does not fit wherever that is faster.
const PLACEMENT: [&str; 4] = ["--device", "gpu", "--max-memory", "gpu:0=40MiB"];

/// Finds or installs an adapter, fetches the model, builds, and shows devices, plan and one answer.
pub fn run() -> Result<()> {
    machine::ensure_adapter()?;
    let model = model::ensure()?;
    steps::run(&mut steps::cargo(&["build", "--release"]))?;
    let program = steps::tierflow();
    let tierflow = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments);
        machine::ensure_runtime_folder(&mut command);
        command
    };
    steps::run(&mut tierflow(&["devices"]))?;
    steps::run(tierflow(&["plan"]).arg(&model).args(PLACEMENT))?;
    let question = "What is the capital of France?";
    steps::run(tierflow(&["run"]).arg(&model).args(PLACEMENT).args(["--temp", "0", "-p", question]))?;
    announce("done: the model answered with less GPU memory than it needs");
    Ok(())
}
