//! `tierflow inspect`: what a model is made of and what it would need, from its headers alone.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::args::InspectArgs;
use crate::cli::locate::locate;
use crate::cli::terminal::{Align, Visibility, print, print_json, table};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::{Model, Unit};
use crate::plan::KvDType;
use crate::plan::sizes::kv_bytes_per_position;
use crate::platform::IoMode;
use crate::units::Bytes;
use crate::weights::{Catalog, Checkpoint, ModelConfig};

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Inspection<'a> {
    schema: &'static str,
    path: &'a str,
    config: &'a ModelConfig,
    n_parameters: u64,
    size_bytes: Bytes,
    n_tensors: usize,
    bytes_by_dtype: BTreeMap<String, Bytes>,
    largest_unit: Sized,
    largest_tensor: Sized,
    kv_bytes_per_token: BTreeMap<String, Bytes>,
    at_dtype: Vec<AtDType>,
}

#[derive(Debug, Serialize)]
struct Sized {
    name: String,
    size_bytes: Bytes,
}

/// What the model would need if its matrices were stored so.
#[derive(Debug, Serialize)]
struct AtDType {
    dtype: DType,
    weights: Bytes,
    largest_layer: Bytes,
    /// With an f16 cache of 4096 positions, all resident.
    resident_4k: Bytes,
}

/// Prints the inspection.
///
/// # Errors
/// Those of reading headers.
pub fn run(args: &InspectArgs) -> Result<()> {
    let path = locate(&args.model.source()?, Visibility::Auto)?;
    let checkpoint = Checkpoint::open(&path, IoMode::Pread)?;
    let model = Model::new(&checkpoint.config, &|name, shape| checkpoint.expect(name, shape))?;
    let inspection = inspect(&checkpoint, &model);
    if args.json { print_json(&inspection) } else { print(&inspection.report()) }
}

fn inspect<'a>(checkpoint: &'a Checkpoint, model: &'a Model) -> Inspection<'a> {
    let catalog = &checkpoint.catalog;
    let mut bytes_by_dtype = BTreeMap::new();
    for tensor in &catalog.tensors {
        *bytes_by_dtype.entry(tensor.dtype.to_string()).or_insert(Bytes::ZERO) += tensor.size_bytes;
    }
    let stored = |unit: &Unit| -> Bytes { unit.matrices().map(|id| catalog[id].size_bytes).sum() };
    let largest_unit = model.units.iter().max_by_key(|unit| stored(unit));
    let largest_tensor = catalog.tensors.iter().max_by_key(|tensor| tensor.size_bytes);
    let kv = [KvDType::F32, KvDType::F16].map(|dtype| (dtype.to_string(), kv_bytes_per_position(&model.config, dtype)));
    Inspection {
        schema: "tierflow.inspect/1",
        path: &checkpoint.path,
        config: &model.config,
        n_parameters: catalog.tensors.iter().map(|tensor| tensor.n_values()).sum(),
        size_bytes: catalog.size_bytes(),
        n_tensors: catalog.tensors.len(),
        bytes_by_dtype,
        largest_unit: largest_unit.map_or(Sized { name: String::new(), size_bytes: Bytes::ZERO }, |unit| Sized {
            name: unit.name.clone(),
            size_bytes: stored(unit),
        }),
        largest_tensor: largest_tensor.map_or(Sized { name: String::new(), size_bytes: Bytes::ZERO }, |tensor| Sized {
            name: tensor.name.clone(),
            size_bytes: tensor.size_bytes,
        }),
        kv_bytes_per_token: kv.into(),
        at_dtype: DType::ALL.iter().filter_map(|&dtype| at_dtype(catalog, model, dtype)).collect(),
    }
}

/// `None` where a matrix' rows are no whole number of the dtype's blocks.
fn at_dtype(catalog: &Catalog, model: &Model, dtype: DType) -> Option<AtDType> {
    let bytes_of = |unit: &Unit| -> Option<Bytes> {
        let sizes: Option<Vec<u64>> =
            unit.matrices().map(|id| dtype.size_bytes(catalog[id].n_columns())?.checked_mul(catalog[id].n_rows())).collect();
        Some(Bytes(sizes?.into_iter().sum()))
    };
    let units: Option<Vec<Bytes>> = model.units.iter().map(bytes_of).collect();
    let (units, config) = (units?, &model.config);
    let layers = model.units.iter().zip(&units).filter(|(unit, _)| unit.kind.layer().is_some());
    let largest_layer = layers.map(|(_, bytes)| *bytes).collect::<Vec<_>>().chunks(2).map(|parts| parts.iter().copied().sum()).max();
    let embedding = if config.tied_embeddings { 0 } else { dtype.size_bytes((config.vocab_size * config.hidden_size) as u64)? };
    let resident: Bytes = units.iter().copied().sum();
    let cache = Bytes(kv_bytes_per_position(config, KvDType::F16).0 * 4096);
    Some(AtDType {
        dtype,
        weights: resident + Bytes(embedding),
        largest_layer: largest_layer.unwrap_or_default(),
        resident_4k: resident + cache,
    })
}

impl Inspection<'_> {
    fn report(&self) -> String {
        let config = self.config;
        let mut text = format!(
            "{}\n  {:?}, {:.1} M parameters, {} in {} tensors ({})\n",
            if config.name.is_empty() { self.path } else { &config.name },
            config.architecture,
            self.n_parameters as f64 / 1e6,
            self.size_bytes,
            self.n_tensors,
            self.bytes_by_dtype.iter().map(|(dtype, bytes)| format!("{dtype} {bytes}")).collect::<Vec<_>>().join(", "),
        );
        text.push_str(&format!(
            "  {} layers, hidden {}, ffn {}, {} heads of {} ({} for keys and values), vocabulary {}, context {}{}{}\n",
            config.n_layers,
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
            self.largest_unit.name, self.largest_unit.size_bytes, self.largest_tensor.name, self.largest_tensor.size_bytes
        ));
        let kv: Vec<String> = self.kv_bytes_per_token.iter().map(|(dtype, bytes)| format!("{bytes} in {dtype}")).collect();
        text.push_str(&format!("  KV cache per token: {}\n\n", kv.join(", ")));
        let columns =
            [("DTYPE", Align::Left), ("WEIGHTS", Align::Right), ("LARGEST LAYER", Align::Right), ("GPU FOR ALL, 4K CONTEXT", Align::Right)];
        let rows: Vec<Vec<String>> = self
            .at_dtype
            .iter()
            .map(|row| vec![row.dtype.to_string(), row.weights.to_string(), row.largest_layer.to_string(), row.resident_4k.to_string()])
            .collect();
        text.push_str(&table(&columns, &rows));
        text
    }
}
