//! `tierflow inspect`: what a model is made of and what it would need, from its headers alone.

use crate::cli::args::InspectArgs;
use crate::cli::locate::locate;
use crate::cli::terminal::{Align, Stream, Visibility, print_json, print_report, table};
use crate::engine::{Inspection, Needs};
use crate::error::Result;
use crate::model::{Checkpoint, Model};
use crate::platform::IoMode;
use crate::units::counted;

/// Prints the inspection.
///
/// # Errors
/// Those of reading headers.
pub fn run(args: &InspectArgs) -> Result<()> {
    let path = locate(&args.model.source()?, Visibility::Auto)?;
    let checkpoint = Checkpoint::open(&path, IoMode::Pread)?;
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape))?;
    let inspection = Inspection::new(&checkpoint, &model);
    if args.json { print_json(&inspection) } else { print_report(&report(&inspection)) }
}

fn report(inspection: &Inspection<'_>) -> String {
    let config = inspection.config;
    let mut text = format!(
        "{}\n  {:?}, {:.1} M parameters, {} in {} tensors ({})\n",
        if config.name.is_empty() { inspection.path } else { &config.name },
        config.family,
        inspection.n_parameters as f64 / 1e6,
        inspection.size_bytes,
        inspection.n_tensors,
        inspection.bytes_by_dtype.iter().map(|(dtype, bytes)| format!("{dtype} {bytes}")).collect::<Vec<_>>().join(", "),
    );
    text.push_str(&format!(
        "  {}, hidden {}, ffn {}, {} heads of {} ({} for keys and values), vocabulary {}, context {}{}{}\n",
        counted(config.n_layers, "layer"),
        config.hidden_size,
        config.ffn_size,
        config.n_heads,
        config.head_size,
        config.n_kv_heads,
        config.vocab_size,
        config.context_length,
        config.sliding_window.map(|window| format!(", window {window}")).unwrap_or_default(),
        if config.tied_embeddings { ", head tied to the embedding" } else { "" },
    ));
    text.push_str(&format!(
        "  largest unit {} ({}), largest tensor {} ({})\n",
        inspection.largest_unit.name,
        inspection.largest_unit.size_bytes,
        inspection.largest_tensor.name,
        inspection.largest_tensor.size_bytes
    ));
    let kv: Vec<String> = inspection.kv_bytes_per_token.iter().map(|(dtype, bytes)| format!("{bytes} in {dtype}")).collect();
    text.push_str(&format!("  KV cache per token: {}\n\n", kv.join(", ")));
    let mut text = Stream::Stdout.shown(&text).into_owned();
    let columns = [("STORED AS", Align::Left), ("WEIGHTS", Align::Right), ("LARGEST LAYER", Align::Right), ("ALL ON A GPU", Align::Right)];
    let row = |name: String, needs: &Needs| {
        let on_gpu = needs.resident.map_or_else(|| "–".into(), |used| used.total().to_string());
        vec![name, needs.weights.to_string(), needs.largest_layer.to_string(), on_gpu]
    };
    let as_stored = row("as it is".into(), &inspection.as_stored);
    let in_dtypes = inspection.at_dtype.iter().map(|at| row(at.dtype.to_string(), &at.needs));
    text.push_str(&table(&columns, &[as_stored].into_iter().chain(in_dtypes).collect::<Vec<_>>()));
    if let Some(used) = inspection.as_stored.resident {
        text.push_str(&format!(
            "All on a GPU: with the f16 KV cache of {} positions ({}) and activations ({}); the host keeps the embedding.\n",
            inspection.ctx_size(),
            used.kv_cache,
            used.activations
        ));
    }
    text
}
