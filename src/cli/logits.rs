//! `tierflow logits`: the logits of given tokens, for checks against other engines.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use crate::cli::args::LogitsArgs;
use crate::cli::locate::locate;
use crate::cli::model::{Placement, load_with_bar};
use crate::cli::terminal::{Visibility, print, print_json};
use crate::engine::{Prepared, TextFiles};
use crate::error::{Error, Result};
use crate::plan::PlanOptions;
use crate::platform::write_atomically;
use crate::stream::{Logits, LogitsRequest};

/// Rows of logits that one forward yields where every position is asked for.
const ROWS_PER_FORWARD: usize = 16;

/// Computes and prints, or writes a file.
///
/// # Errors
/// Those of the engine; [`Error::TokenOutOfVocabulary`].
pub fn run(args: &LogitsArgs) -> Result<()> {
    let source = args.model.source()?;
    let options = match args.all {
        true => PlanOptions { logit_rows: ROWS_PER_FORWARD, ..PlanOptions::default() },
        false => PlanOptions::default(),
    };
    let placement = Placement::of(&args.placement, options)?.of_one_sequence();
    let builder = placement.builder(&locate(&source, Visibility::Auto)?)?;
    let prepared = pollster::block_on(builder.text(TextFiles::Skip).prepare())?;
    check_tokens(args, &prepared)?;
    let mut engine = load_with_bar(prepared, Visibility::Auto)?;
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let mut session = engine.session();
    if args.all {
        pollster::block_on(session.append_scoring_all(&args.tokens, |row| rows.push(row)))?;
    } else if let Logits::All(row) = pollster::block_on(session.append(&args.tokens, LogitsRequest::All))? {
        rows.push(row);
    }
    for row in &rows {
        if let Some((token, &value)) = row.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite { token, value });
        }
    }
    if let Some(file) = &args.out {
        return write_safetensors(file, &rows);
    }
    let first = args.tokens.len() - rows.len();
    if args.json { print_json(&json(args, first, &rows)) } else { print(&text(args, first, &rows)) }
}

/// Refuses tokens that the model does not know and more than the context holds, before weights are loaded.
fn check_tokens(args: &LogitsArgs, prepared: &Prepared) -> Result<()> {
    let vocab_size = prepared.model.config.vocab_size;
    if let Some(&token) = args.tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(Error::TokenOutOfVocabulary { token, vocab_size });
    }
    prepared.check_room(args.tokens.len())
}

/// The highest logits of a row with their tokens, best first.
fn top(row: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut scored: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.truncate(k);
    scored
}

fn json(args: &LogitsArgs, first: usize, rows: &[Vec<f32>]) -> serde_json::Value {
    let positions = rows.iter().enumerate().map(|(index, row)| {
        let mut position = serde_json::json!({ "position": first + index });
        match args.top {
            Some(k) => {
                position["top"] = top(row, k).iter().map(|(token, logit)| serde_json::json!({"token": token, "logit": logit})).collect()
            }
            None => position["logits"] = serde_json::json!(row),
        }
        position
    });
    serde_json::json!({ "schema": "tierflow.logits/1", "tokens": args.tokens, "positions": positions.collect::<Vec<_>>() })
}

fn text(args: &LogitsArgs, first: usize, rows: &[Vec<f32>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let best = top(row, args.top.unwrap_or(10));
        let best: Vec<String> = best.iter().map(|(token, logit)| format!("{token}:{logit:.4}")).collect();
        text.push_str(&format!("{}\t{}\n", first + index, best.join(" ")));
    }
    text
}

/// One tensor `logits`, F32, `[n_rows, vocab_size]`, in the safetensors format.
fn write_safetensors(file: &Path, rows: &[Vec<f32>]) -> Result<()> {
    let data: Vec<u8> = rows.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
    let bytes = TensorView::new(Dtype::F32, shape.to_vec(), &data).and_then(|logits| safetensors::serialize([("logits", logits)], None));
    let bytes = bytes.map_err(|reason| Error::internal(format!("the logits cannot be written: {reason}")))?;
    write_atomically(file, &bytes)
}
