//! What was measured, as JSON and as a markdown table.

use std::fmt::Write;

use serde_json::{Value, json};

/// Name and version of the JSON's schema.
const SCHEMA: &str = "tierflow.peers/1";

/// Everything that one run has found.
pub struct Report {
    /// Rounds of each case.
    pub rounds: usize,
    /// Threads of every program.
    pub threads: usize,
    /// The machine's devices, as tierflow names them.
    pub devices: Vec<String>,
    /// Programs that wanted to run in the minute before, as Linux counts them: above 0 the figures are of a busy machine.
    load: Option<f64>,
    /// Programs and their versions.
    pub versions: Vec<String>,
    /// What was measured.
    pub rows: Vec<Row>,
    left_out: Vec<(String, String)>,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// One prompt of so many tokens.
    Prompt(u32),
    /// So many tokens, one by one.
    Decode(u32),
}

impl Test {
    /// "prompt of 512", "decode".
    pub fn title(self) -> String {
        match self {
            Test::Prompt(n_tokens) => format!("prompt of {n_tokens}"),
            Test::Decode(_) => "decode".into(),
        }
    }

    fn to_json(self) -> Value {
        match self {
            Test::Prompt(n_tokens) => json!({ "prompt": n_tokens }),
            Test::Decode(n_tokens) => json!({ "decode": n_tokens }),
        }
    }

    fn from_json(json: &Value) -> Option<Test> {
        let number = |key: &str| json[key].as_u64().and_then(|number| u32::try_from(number).ok());
        number("prompt").map(Test::Prompt).or_else(|| number("decode").map(Test::Decode))
    }
}

/// One test of one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Dtype of the weights.
    pub weights: String,
    /// Where they lie and who computes.
    pub place: String,
    /// What is timed.
    pub test: Test,
    /// Those that took part; ratios are of the first one's median to that of the others.
    pub outcomes: Vec<Outcome>,
}

/// What one contestant reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Who.
    pub name: String,
    /// Tokens per second, one for each round.
    pub samples_ts: Vec<f64>,
}

impl Outcome {
    /// The middle of the sorted samples, or the mean of the two in the middle; 0 without samples.
    pub fn median(&self) -> f64 {
        let mut sorted = self.samples_ts.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        if sorted.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 }
    }
}

impl Report {
    /// An empty report.
    pub fn new(rounds: usize, threads: usize) -> Report {
        let load = std::fs::read_to_string("/proc/loadavg").ok().and_then(|text| text.split(' ').next()?.parse().ok());
        let versions = vec![format!("tierflow {}", env!("CARGO_PKG_VERSION"))];
        Report { rounds, threads, devices: Vec::new(), load, versions, rows: Vec::new(), left_out: Vec::new() }
    }

    /// Notes, and says at once, that `what` is left out and why.
    pub fn leave_out(&mut self, what: &str, why: &str) {
        eprintln!("left out: {what}: {why}");
        self.left_out.push((what.to_owned(), why.to_owned()));
    }

    /// The whole report.
    pub fn to_json(&self) -> Value {
        let left_out: Vec<Value> = self.left_out.iter().map(|(what, why)| json!({ "what": what, "why": why })).collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::to_json).collect();
        json!({ "schema": SCHEMA, "devices": self.devices, "threads": self.threads, "rounds": self.rounds, "load": self.load, "versions": self.versions, "left_out": left_out, "rows": rows })
    }

    /// A heading of the machine and the versions, the table, and a line for each thing that is left out.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "{}; {} threads{}; {}. Tokens per second, medians of {} rounds in which the programs take turns; the ratio is the first program's median to that of the others.\n\n\
             | weights, place | test | program | median t/s | min – max | ratio |\n| --- | --- | --- | ---: | ---: | ---: |\n",
            self.devices.join("; "),
            self.threads,
            self.load.map_or(String::new(), |load| format!("; load average {load} before the run")),
            self.versions.join("; "),
            self.rounds
        );
        for row in &self.rows {
            row.write_markdown(&mut text);
        }
        for (what, why) in &self.left_out {
            let _ = write!(text, "\nLeft out: {what}: {why}\n");
        }
        text
    }
}

impl Row {
    /// How often this outcome's median goes into the first one's; `None` for the first itself.
    fn ratio(&self, index: usize) -> Option<f64> {
        let first = self.outcomes.first()?.median();
        let median = self.outcomes.get(index)?.median();
        (index > 0 && median > 0.0).then(|| first / median)
    }

    fn to_json(&self) -> Value {
        let outcome = |(index, outcome): (usize, &Outcome)| json!({ "name": outcome.name, "median_ts": outcome.median(), "ratio": self.ratio(index), "samples_ts": outcome.samples_ts });
        let outcomes: Vec<Value> = self.outcomes.iter().enumerate().map(outcome).collect();
        json!({ "weights": self.weights, "place": self.place, "test": self.test.to_json(), "outcomes": outcomes })
    }

    fn from_json(json: &Value) -> Option<Row> {
        let outcome = |json: &Value| {
            let samples: Option<Vec<f64>> = json["samples_ts"].as_array()?.iter().map(Value::as_f64).collect();
            Some(Outcome { name: json["name"].as_str()?.to_owned(), samples_ts: samples? })
        };
        let outcomes: Option<Vec<Outcome>> = json["outcomes"].as_array()?.iter().map(outcome).collect();
        let text = |key: &str| Some(json[key].as_str()?.to_owned());
        Some(Row { weights: text("weights")?, place: text("place")?, test: Test::from_json(&json["test"])?, outcomes: outcomes? })
    }

    fn write_markdown(&self, text: &mut String) {
        for (index, outcome) in self.outcomes.iter().enumerate() {
            let smallest = outcome.samples_ts.iter().copied().fold(f64::INFINITY, f64::min);
            let largest = outcome.samples_ts.iter().copied().fold(0.0, f64::max);
            let ratio = self.ratio(index).map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(
                text,
                "| {}, {} | {} | {} | {} | {} – {} | {ratio} |",
                self.weights,
                self.place,
                self.test.title(),
                outcome.name,
                rate(outcome.median()),
                rate(smallest),
                rate(largest)
            );
        }
    }
}

/// A rate with as many decimals as it needs.
pub fn rate(tokens_per_sec: f64) -> String {
    if tokens_per_sec < 20.0 { format!("{tokens_per_sec:.2}") } else { format!("{tokens_per_sec:.0}") }
}

/// The rows of a report that was written as JSON; `None` where it is none.
pub fn rows_of(json: &Value) -> Option<Vec<Row>> {
    if json["schema"] != SCHEMA {
        return None;
    }
    json["rows"].as_array()?.iter().map(Row::from_json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(3, 2);
        let outcome = |name: &str, samples: &[f64]| Outcome { name: name.into(), samples_ts: samples.to_vec() };
        report.rows.push(Row {
            weights: "Q8_0".into(),
            place: "CPU".into(),
            test: Test::Prompt(512),
            outcomes: vec![outcome("tierflow", &[30.0, 90.0, 60.0]), outcome("llama.cpp", &[50.0, 30.0])],
        });
        report
    }

    #[test]
    fn the_ratio_is_of_medians() {
        let json = report().to_json();
        let outcomes = &json["rows"][0]["outcomes"];
        assert_eq!((outcomes[0]["median_ts"].as_f64(), outcomes[1]["median_ts"].as_f64()), (Some(60.0), Some(40.0)));
        assert_eq!((outcomes[0]["ratio"].as_f64(), outcomes[1]["ratio"].as_f64()), (None, Some(1.5)));
    }

    #[test]
    fn rows_survive_json() {
        let report = report();
        assert_eq!(rows_of(&report.to_json()), Some(report.rows));
        assert_eq!(rows_of(&json!({ "schema": "tierflow.bench/1", "rows": [] })), None);
    }

    #[test]
    fn the_table_names_what_is_left_out() {
        let mut report = report();
        report.leave_out("accelerate", "no torch");
        let text = report.markdown();
        assert!(text.contains("| Q8_0, CPU | prompt of 512 | llama.cpp | 40 | 30 – 50 | 1.50 |"), "{text}");
        assert!(text.contains("Left out: accelerate: no torch"), "{text}");
    }
}
