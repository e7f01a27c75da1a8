//! What a run of the kit wrote: `results.jsonl`, a step a line.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::steps::{Failure, Result};

/// All steps of a run, in their order.
#[derive(Debug, Default)]
pub(super) struct Results(pub Vec<Step>);

/// One step.
#[derive(Debug)]
pub(super) struct Step {
    /// Its name in `run.sh`.
    pub name: String,
    /// Why it was not run, if it was not.
    pub left_out: Option<String>,
    /// Its exit code; 124 or 137 where its time was up.
    pub exit_code: i64,
    /// Seconds that it took.
    pub secs: f64,
    /// What it printed: an object, objects, or a text.
    pub output: Value,
    /// The end of what it complained about, where it failed.
    pub complaint: String,
}

impl Results {
    /// Reads `results.jsonl` in `folder`. A line that was cut short is left out.
    ///
    /// # Errors
    /// Where there is no such file.
    pub(super) fn read(folder: &Path) -> Result<Results> {
        let path = folder.join("results.jsonl");
        let bytes = fs::read(&path).map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
        Ok(Results::parse(&String::from_utf8_lossy(&bytes)))
    }

    pub(super) fn parse(text: &str) -> Results {
        Results(text.lines().filter_map(|line| serde_json::from_str(line).ok()).map(Step::of).collect())
    }

    pub(super) fn step(&self, name: &str) -> Option<&Step> {
        self.0.iter().find(|step| step.name == name)
    }

    /// The objects that a step printed.
    pub(super) fn rows(&self, name: &str) -> &[Value] {
        self.step(name).map(Step::rows).unwrap_or_default()
    }

    /// The objects that a step printed of this kind.
    pub(super) fn rows_of<'a>(&'a self, name: &str, what: &'a str) -> impl Iterator<Item = &'a Value> {
        self.rows(name).iter().filter(move |row| row["what"] == what)
    }

    /// What a step printed; null where it did not.
    pub(super) fn output(&self, name: &str) -> &Value {
        self.step(name).map_or(&Value::Null, |step| &step.output)
    }
}

impl Step {
    fn of(line: Value) -> Step {
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        Step {
            name: text("step").unwrap_or_default(),
            left_out: text("left_out"),
            exit_code: line["rc"].as_i64().unwrap_or(0),
            secs: line["secs"].as_f64().unwrap_or(0.0),
            complaint: text("stderr").unwrap_or_default(),
            output: line["output"].clone(),
        }
    }

    /// The objects that it printed.
    pub(super) fn rows(&self) -> &[Value] {
        self.output.as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The text that it printed.
    pub(super) fn text(&self) -> &str {
        self.output.as_str().unwrap_or_default()
    }
}
