//! One case of the comparison: its contestants take turns, and each round measures every one of them once.

use std::process::Command;

use serde_json::{Value, json};

use super::peer::{Environments, Peer, Program};
use super::report::{Outcome, Report, Row, Test};
use crate::machine;
use crate::steps::{self, Failure, Result};

/// What there is to measure with.
pub struct Field {
    /// Environments of the other programs.
    pub environments: Environments,
    /// Threads that every program computes with on the host.
    pub threads: usize,
    /// The adapter on which tierflow computes by `--device gpu`.
    pub adapter: Option<Adapter>,
    /// llama.cpp's backend for GPUs, as "Vulkan"; `None` where its build has none.
    pub llama_gpu: Option<String>,
}

/// A GPU, or its stand-in in software.
pub struct Adapter {
    /// As its driver says.
    pub name: String,
    /// Whether the host computes for it.
    pub is_software: bool,
}

impl Field {
    /// Asks tierflow and llama.cpp for their devices; `report` gets the machine's.
    pub fn survey(environments: Environments, threads: usize, report: &mut Report) -> Result<Field> {
        let devices = tierflow_json(&["devices", "--json"]).map_err(Failure::new)?;
        let devices = devices["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |device: &Value, key: &str| device[key].as_str().unwrap_or_default().to_owned();
        let computing = devices.iter().filter(|device| text(device, "device") != "disk");
        report.devices = computing.map(|device| ["device", "name", "driver"].map(|key| text(device, key)).join(" ")).collect();
        let gpu = devices.iter().find(|device| text(device, "device") == "gpu:0");
        let adapter = gpu.map(|device| Adapter { name: text(device, "name"), is_software: text(device, "kind") == "software" });
        let mut field = Field { environments, threads, adapter, llama_gpu: None };
        match field.llama_backend() {
            Some(Ok(backend)) => field.llama_gpu = Some(backend),
            Some(Err(reason)) => report.leave_out("llama.cpp on the GPU", &reason),
            None => {}
        }
        Ok(field)
    }

    /// The name of llama.cpp's backend for the adapter, `None` where there is no llama.cpp.
    fn llama_backend(&self) -> Option<std::result::Result<String, String>> {
        let described = match self.start_llama(Place::Gpu)? {
            Ok(mut peer) => peer.ask(json!({ "do": "describe" })),
            Err(reason) => return Some(Err(reason)),
        };
        Some(described.and_then(|described| {
            let device = described["devices"][0].as_str().and_then(|device| device.split(' ').next());
            let backend = device.map(|device| device.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned());
            backend.ok_or_else(|| "this build has no backend for it; with CMAKE_ARGS=-DGGML_VULKAN=on it gets one".to_owned())
        }))
    }

    fn start_llama(&self, place: Place) -> Option<std::result::Result<Peer, String>> {
        let visible = match place {
            // Without this a build with a GPU backend computes prompts there even if all layers are the CPU's.
            Place::Cpu => "",
            // It passes over an adapter in software unless that is named.
            Place::Gpu => "0",
        };
        let is_chosen = place == Place::Gpu && std::env::var_os("GGML_VK_VISIBLE_DEVICES").is_some();
        let needs_word = place == Place::Cpu || self.adapter.as_ref().is_some_and(|adapter| adapter.is_software);
        let variables = [("GGML_VK_VISIBLE_DEVICES", visible)];
        self.environments.start(Program::LlamaCpp, if needs_word && !is_chosen { &variables } else { &[] })
    }
}

/// Where llama.cpp computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the host.
    Cpu,
    /// All layers on the adapter.
    Gpu,
}

/// Who computes, and how.
pub enum Runner {
    /// `tierflow bench` with these arguments.
    Tierflow(Vec<String>),
    /// llama.cpp on this file.
    LlamaCpp(String, Place),
    /// Accelerate on this folder, offloaded as `peers.py` names it.
    Accelerate(String, &'static str),
}

/// One contestant of a case.
pub struct Contestant {
    /// Its name in the report.
    pub name: String,
    /// How it is measured.
    pub runner: Runner,
}

/// Contestants that do the same work; the ratios are of the first one's rates to those of the others.
pub struct Case {
    /// Dtype of the weights.
    pub weights: String,
    /// Where they lie and who computes.
    pub place: String,
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// Tokens that are decoded one by one after an empty context; 0 for none.
    pub n_gen: u32,
    /// Who takes part.
    pub contestants: Vec<Contestant>,
}

impl Case {
    /// As `--only` matches it and the log shows it; begins as the report's rows do.
    pub fn title(&self) -> String {
        format!("{}, {}, prompt {}, decode {}", self.weights, self.place, self.n_prompt, self.n_gen)
    }

    fn tests(&self) -> Vec<Test> {
        let decode = (self.n_gen > 0).then_some(Test::Decode(self.n_gen));
        [Some(Test::Prompt(self.n_prompt)), decode].into_iter().flatten().collect()
    }
}

/// Measures a case over `rounds` rounds. A contestant that fails is left out; without the first one there is nothing to compare.
pub fn run(case: Case, field: &Field, rounds: usize, report: &mut Report) {
    let (title, tests) = (case.title(), case.tests());
    let Case { weights, place, n_prompt, n_gen, contestants } = case;
    let first = contestants.first().map(|contestant| contestant.name.clone());
    let mut running = Vec::new();
    for contestant in contestants {
        match Running::start(contestant, field, n_prompt, n_gen) {
            Ok(started) => running.push(started),
            Err((name, reason)) => report.leave_out(&format!("{name} ({title})"), &reason),
        }
    }
    take_turns(&mut running, rounds, n_prompt, n_gen);
    running.retain(|contestant| {
        contestant.reason.as_ref().inspect(|reason| report.leave_out(&format!("{} ({title})", contestant.name), reason)).is_none()
    });
    if running.first().map(|contestant| &contestant.name) != first.as_ref() {
        return;
    }
    for test in tests {
        let outcomes = running.iter().map(|contestant| Outcome { name: contestant.name.clone(), samples_ts: contestant.samples_of(test) });
        report.rows.push(Row { weights: weights.clone(), place: place.clone(), test, outcomes: outcomes.collect() });
    }
}

/// Every round measures each contestant once, and another one comes first.
fn take_turns(running: &mut [Running], rounds: usize, n_prompt: u32, n_gen: u32) {
    for round in 0..rounds {
        let (later, sooner) = running.split_at_mut(round % running.len().max(1));
        for contestant in sooner.iter_mut().chain(later).filter(|contestant| contestant.reason.is_none()) {
            match contestant.measure(n_prompt, n_gen) {
                Ok(rates) => {
                    let figures = rates.map(|rate| rate.map_or(String::new(), |rate| format!("{rate:10.2}"))).concat();
                    eprintln!("  round {} {:32} {figures}", round + 1, contestant.name);
                    contestant.samples.push(rates);
                }
                Err(reason) => contestant.reason = Some(reason),
            }
        }
    }
}

/// Tokens per second of the prompt and of decoding.
type Rates = [Option<f64>; 2];

/// A contestant with its model loaded.
struct Running {
    name: String,
    measured: Measured,
    samples: Vec<Rates>,
    reason: Option<String>,
}

enum Measured {
    Tierflow(Vec<String>),
    Peer(Peer),
}

impl Running {
    /// Loads what is loaded once and measures once for nothing, as `tierflow bench` does by itself.
    fn start(contestant: Contestant, field: &Field, n_prompt: u32, n_gen: u32) -> std::result::Result<Running, (String, String)> {
        let (name, threads) = (contestant.name, field.threads);
        let positions = n_prompt.max(n_gen);
        let load = |model: String, placement: &str| json!({ "do": "load", "model": model, "threads": threads, "placement": placement, "positions": positions });
        let (peer, command) = match contestant.runner {
            Runner::Tierflow(mut arguments) => {
                arguments.extend(["--threads".into(), threads.to_string()]);
                return Ok(Running { name, measured: Measured::Tierflow(arguments), samples: Vec::new(), reason: None });
            }
            Runner::LlamaCpp(model, place) => (field.start_llama(place), load(model, if place == Place::Cpu { "cpu" } else { "gpu" })),
            Runner::Accelerate(model, placement) => (field.environments.start(Program::Accelerate, &[]), load(model, placement)),
        };
        let loaded = peer.unwrap_or_else(|| Err("it is not installed".into())).and_then(|mut peer| peer.ask(command).map(|_| peer));
        let peer = loaded.map_err(|reason| (name.clone(), reason))?;
        let mut running = Running { name, measured: Measured::Peer(peer), samples: Vec::new(), reason: None };
        running.reason = running.measure(n_prompt, n_gen).err();
        Ok(running)
    }

    fn measure(&mut self, n_prompt: u32, n_gen: u32) -> std::result::Result<Rates, String> {
        match &mut self.measured {
            Measured::Tierflow(arguments) => {
                let tests = ["-p".into(), n_prompt.to_string(), "-n".into(), n_gen.to_string(), "-r".into(), "1".into(), "--json".into()];
                let words: Vec<&str> = ["bench"].into_iter().chain(arguments.iter().chain(&tests).map(String::as_str)).collect();
                let measured = tierflow_json(&words)?;
                let rows = measured["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
                let rate = |key: &str| rows.iter().find(|row| row[key].as_u64() > Some(0)).and_then(|row| row["median_ts"].as_f64());
                Ok([rate("n_prompt"), rate("n_gen")])
            }
            Measured::Peer(peer) => {
                let rates = peer.ask(json!({ "do": "measure", "n_prompt": n_prompt, "n_gen": n_gen }))?;
                Ok([rates["prompt"].as_f64(), rates["decode"].as_f64()])
            }
        }
    }

    fn samples_of(&self, test: Test) -> Vec<f64> {
        let index = usize::from(matches!(test, Test::Decode(_)));
        self.samples.iter().filter_map(|rates| rates[index]).collect()
    }
}

/// What tierflow prints as JSON.
fn tierflow_json(arguments: &[&str]) -> std::result::Result<Value, String> {
    let mut command = Command::new(steps::tierflow());
    command.args(arguments);
    machine::ensure_runtime_folder(&mut command);
    let output = command.output().map_err(|error| format!("cannot start tierflow: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`tierflow {}` failed: {}", arguments.join(" "), said.lines().last().unwrap_or_default()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("`tierflow {}`: {error}", arguments.join(" ")))
}
