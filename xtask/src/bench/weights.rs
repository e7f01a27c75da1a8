//! The small model in the dtypes that are measured, made from the fetched one by the peers' own tools, once.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::contest::Field;
use super::peer::Program;
use super::report::Report;
use crate::model;
use crate::steps::{self, Failure, Result, announce};

/// The file of each dtype; `None` for one that could not be made.
pub struct Weights {
    /// GGUF files by the name of their dtype.
    pub gguf: Vec<(&'static str, PathBuf)>,
    /// A folder of safetensors in f32.
    pub safetensors: Option<PathBuf>,
}

/// Fetches the model in Q4_1 and makes the other files where they are missing.
pub fn prepare(field: &Field, report: &mut Report) -> Result<Weights> {
    let source = model::ensure()?;
    let cache = steps::root().join(".cache/smollm2");
    fs::create_dir_all(&cache).map_err(|error| Failure::new(format!("cannot create {}: {error}", cache.display())))?;
    let mut gguf = vec![("Q4_1", source.clone())];
    for form in ["Q8_0", "F16"] {
        let out = cache.join(format!("SmolLM2-135M-Instruct.{form}.gguf"));
        let command = |out: &Path| json!({ "do": "requantise", "source": source, "out": out, "to": form });
        match make(field, Program::LlamaCpp, &out, command) {
            Some(Ok(())) => gguf.push((form, out)),
            Some(Err(reason)) => report.leave_out(&format!("the model in {form}"), &reason),
            None => report.leave_out(&format!("the model in {form}"), "llama.cpp writes it, and is left out"),
        }
    }
    let folder = cache.join("SmolLM2-135M-Instruct-f32");
    let made = make(field, Program::Accelerate, &folder, |out| json!({ "do": "safetensors", "source": source, "out": out }));
    if let Some(Err(reason)) = &made {
        report.leave_out("the model as safetensors", reason);
    }
    Ok(Weights { gguf, safetensors: matches!(made, Some(Ok(()))).then_some(folder) })
}

/// Has `program` write `out` where it is missing; it appears whole or not at all. `None` where the program is left out.
fn make(field: &Field, program: Program, out: &Path, command: impl Fn(&Path) -> Value) -> Option<std::result::Result<(), String>> {
    if out.exists() {
        return Some(Ok(()));
    }
    announce(&format!("making {}", out.display()));
    let unfinished = out.with_extension("part");
    let peer = field.environments.start(program, &[])?;
    let made = peer.and_then(|mut peer| peer.ask(command(&unfinished)));
    Some(made.and_then(|_| fs::rename(&unfinished, out).map_err(|error| format!("cannot move to {}: {error}", out.display()))))
}
