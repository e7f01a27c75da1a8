//! `tierflow serve` with several models: those that are named, and those of a folder. Each is loaded when a request names it.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::cli::args::{ModelSource, ServeArgs};
use crate::cli::locate::locate_or_fetch;
use crate::cli::model::{Placement, load_with_draft};
use crate::cli::plan_text::note_plan;
use crate::cli::serve::{N_READERS, checked_listener, names_of, prepare_any, reopen, runtime, shared_settings, stop};
use crate::cli::terminal::{Visibility, note};
use crate::device::MaxMemory;
use crate::engine::Prepared;
use crate::error::{Error, Result};
use crate::handle::EngineHandle;
use crate::plan::PlanOptions;
use crate::server::{ModelsSettings, Room, ServedModel, serve_models};

/// A model that takes so many times as long as with all memory to itself had better have more.
const MUCH_SLOWER: f64 = 1.1;

/// Serves until Ctrl-C or SIGTERM, as a server of one model does.
///
/// # Errors
/// [`Error::InvalidArgument`] for options that are of one model, or where there is none; those of listening.
pub fn run(args: &ServeArgs) -> Result<()> {
    let visibility = if args.quiet { Visibility::Hidden } else { Visibility::Auto };
    let invalid = |option: &str, reason: &str| Err(Error::InvalidArgument { option: option.into(), reason: reason.into() });
    if args.alias.is_some() {
        return invalid("--alias", "is a name for one model; several have those of their files");
    }
    if !args.placement.lora.lora.is_empty() {
        return invalid("--lora", "is of one model, and several are served");
    }
    if args.placement.plan.is_some() {
        return invalid("--plan", "is of one model, and several are served");
    }
    if args.placement.drafts.model_draft.is_some() {
        return invalid("--model-draft", "drafts for one model, and several are served");
    }
    if args.placement.expert_profile.is_some() {
        return invalid("--expert-profile", "is of one model, and several are served");
    }
    Placement::of(&args.placement, PlanOptions::default())?;
    let listener = checked_listener(args)?;
    let found = find(args, visibility)?;
    let names: Vec<String> = found.iter().map(|(model, _)| format!("`{}`", model.name)).collect();
    let of_loader = args.clone();
    let (models, paths): (Vec<ServedModel>, Vec<PathBuf>) = found.into_iter().unzip();
    let notes: Vec<String> = names.iter().map(|name| format!("loading {name}\n")).collect();
    let load = move |index: usize, room: &Room| load(&of_loader, &paths[index], &notes[index], room);
    let settings =
        ModelsSettings { models, load: Box::new(load), keep_alive: args.keep_alive.unwrap_or_default(), server: shared_settings(args)? };
    // One more for loading.
    let runtime = runtime(N_READERS + 1)?;
    let address = listener.local_addr().map_err(|error| Error::io("listen on", &args.host, error))?;
    let verb = if names.len() == 1 { "is" } else { "are" };
    note(&format!("{} {verb} served on http://{address}\n", names.join(", ")));
    let served = runtime.block_on(serve_models(listener, settings, stop(args.quiet)));
    // Requests that are being read have no client any more.
    runtime.shutdown_background();
    served
}

/// The models that are named, then those of the folder.
fn find(args: &ServeArgs, visibility: Visibility) -> Result<Vec<(ServedModel, PathBuf)>> {
    let mut found = Vec::new();
    let is_named = args.model.model.is_some() || args.model.model_flag.is_some() || args.model.hf_repo.is_some();
    let first = if is_named { Some(args.model.source()?) } else { None };
    let named = first.into_iter().chain(args.more_models.iter().map(|name| ModelSource::Named(name.clone())));
    for source in named {
        let path = locate_or_fetch(&source, visibility)?;
        found.push((served(names_of(None, &source, &path), &path), path));
    }
    if let Some(folder) = &args.models_dir {
        for path in models_in(folder)? {
            let source = ModelSource::Named(path.clone().into_os_string());
            found.push((served(names_of(None, &source, &path), &path), path));
        }
    }
    let mut names: Vec<&str> = found.iter().map(|(model, _)| model.name.as_str()).collect();
    names.sort_unstable();
    let invalid = |reason: String| Err(Error::InvalidArgument { option: "MODEL".into(), reason });
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return invalid(format!("two models are called `{}`; rename one of them", twice[0]));
    }
    match (&args.models_dir, found.is_empty()) {
        (Some(folder), true) => invalid(format!("{} has no models: no .gguf files, and no folders with config.json", folder.display())),
        _ => Ok(found),
    }
}

/// The .gguf files and the folders of `folder` that are models, by name. Of a file in parts, the first stands for all.
fn models_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("list", folder.display(), error);
    let mut models = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_file = name.ends_with(".gguf") && !name.starts_with("mmproj") && is_first_part(&name) && path.is_file();
        if is_file || path.join("config.json").is_file() {
            models.push(path);
        }
    }
    models.sort();
    Ok(models)
}

/// Whether `name` is not that of a further part of a file, `…-00002-of-00003.gguf`.
fn is_first_part(name: &str) -> bool {
    let part = name.strip_suffix(".gguf").and_then(|stem| {
        let (rest, n_parts) = stem.rsplit_once("-of-")?;
        let (_, part) = rest.rsplit_once('-')?;
        n_parts.parse::<u32>().ok().and(part.parse::<u32>().ok())
    });
    part.is_none_or(|part| part == 1)
}

fn served((name, other_names): (String, Vec<String>), path: &Path) -> ServedModel {
    let files: Vec<PathBuf> = match std::fs::read_dir(path) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(_) => vec![path.to_owned()],
    };
    let all: Vec<std::fs::Metadata> = files.iter().filter_map(|file| std::fs::metadata(file).ok()).collect();
    let seconds = |metadata: &std::fs::Metadata| metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    let modified = all.iter().filter_map(seconds).max().unwrap_or_default();
    ServedModel { name, other_names, size_bytes: all.iter().map(std::fs::Metadata::len).sum(), modified }
}

/// Loads a model, which begins with a note, into what others leave of the budgets; `None` where it had better wait until there is more.
fn load(args: &ServeArgs, path: &Path, beginning: &str, room: &Room) -> Result<Option<EngineHandle>> {
    let mut args = args.clone();
    let budgets = args.placement.max_memory.clone().unwrap_or_default();
    let mut left = MaxMemory::default();
    for (device, budget) in budgets.iter() {
        left.insert(device, budget.saturating_sub(room.taken.get(&device).copied().unwrap_or_default()));
    }
    let has_others = !room.taken.is_empty();
    if has_others && !left.is_empty() {
        args.placement.max_memory = Some(left);
    }
    let (prepared, draft, makes_embeddings) = match prepare_any(&args, path) {
        Err(Error::DoesNotFit { .. }) if room.can_grow => return Ok(None),
        prepared => prepared?,
    };
    if room.can_grow && (prepared.plan.streamed_chunks().next().is_some() || is_much_slower(&args, &budgets, path, &prepared)?) {
        return Ok(None);
    }
    if !args.quiet {
        note(beginning);
        note_plan(&prepared.summary());
    }
    let engine = load_with_draft(prepared, draft, Visibility::Hidden)?.spawn_reopening(reopen(&args, path, makes_embeddings))?;
    Ok(Some(engine))
}

/// Whether a model would be much faster with all of the budgets.
fn is_much_slower(args: &ServeArgs, budgets: &MaxMemory, path: &Path, prepared: &Prepared) -> Result<bool> {
    if budgets.is_empty() {
        return Ok(false);
    }
    let mut alone = args.clone();
    alone.placement.max_memory = Some(budgets.clone());
    let (alone, ..) = prepare_any(&alone, path)?;
    let rate = |prepared: &Prepared| prepared.forecast.decode.tokens_per_sec();
    Ok(rate(prepared) * MUCH_SLOWER < rate(&alone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_a_folder_are_found() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "mmproj-b.gguf", "notes.txt", "UP.GGUF", "x-of-y.gguf"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        for name in ["hf", "empty"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("hf/config.json"), "{}").unwrap();
        let names: Vec<String> =
            models_in(folder.path()).unwrap().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["UP.GGUF", "a-00001-of-00002.gguf", "b.gguf", "hf", "x-of-y.gguf"]);
        assert!(models_in(&folder.path().join("missing")).is_err());
    }
}
