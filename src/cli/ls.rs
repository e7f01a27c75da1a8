//! `tierflow ls`: the models in the Hugging Face cache.

use crate::cli::args::LsArgs;
use crate::cli::terminal::{Align, fits, note, print, print_json, table};
use crate::error::Result;
use crate::hub::{CachedModel, HubConfig, list_cached};

/// Prints a table, or JSON.
///
/// # Errors
/// [`crate::error::Error::Io`] where the cache cannot be read.
pub fn run(args: &LsArgs) -> Result<()> {
    let config = HubConfig::from_env()?;
    let models = list_cached(&config)?;
    if args.json {
        return print_json(&serde_json::json!({ "schema": "tierflow.ls/1", "models": models }));
    }
    if models.is_empty() {
        note(&format!("no models in {}; fetch one with: tierflow pull ORG/NAME\n", config.cache_dir.display()));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = models.iter().flat_map(rows_of).collect();
    let columns = [("MODEL", Align::Left), ("SIZE", Align::Right), ("PATH", Align::Left)];
    if fits(&columns, &rows) {
        return print(&table(&columns, &rows));
    }
    // A path in pieces can be neither read nor copied.
    print(&table(&columns[..2], &rows.into_iter().map(|row| row[..2].to_vec()).collect::<Vec<_>>()))?;
    note(&format!("paths: tierflow ls --json (they lie in {})\n", config.cache_dir.display()));
    Ok(())
}

/// One row for each thing that can be opened: every `.gguf`, and the folder where there are safetensors.
fn rows_of(model: &CachedModel) -> Vec<Vec<String>> {
    let ggufs = model.files.iter().filter(|file| file.ends_with(".gguf"));
    let mut rows: Vec<Vec<String>> = ggufs
        .map(|file| {
            let path = model.path.join(file);
            let size = std::fs::metadata(&path).map_or(0, |data| data.len());
            vec![format!("{}:{file}", model.repo), crate::units::Bytes(size).to_string(), path.display().to_string()]
        })
        .collect();
    if model.files.iter().any(|file| file.ends_with(".safetensors")) {
        rows.push(vec![model.repo.clone(), model.size.to_string(), model.path.display().to_string()]);
    }
    rows
}
