//! `tierflow pull`: fetches a model and prints where it lies.

use crate::cli::args::PullArgs;
use crate::cli::terminal::{Progress, Visibility, note, print_json, print_path};
use crate::error::Result;
use crate::hub::{self, HubConfig, ModelRef, Pulled};

/// Fetches what `args` name. The path goes to stdout, all else to stderr.
///
/// # Errors
/// As [`hub::pull`].
pub fn run(args: &PullArgs) -> Result<()> {
    let mut model = hub::parse_model_ref(&args.model)?;
    model.revision.clone_from(&args.revision);
    let visibility = if args.quiet { Visibility::Hidden } else { Visibility::Auto };
    let fetch = if args.force { Fetch::Anew } else { Fetch::Missing };
    let pulled = pull_with_bar(&HubConfig::from_env()?, &model, fetch, visibility)?;
    if args.json {
        return print_json(&serde_json::json!({
            "schema": "tierflow.pull/1",
            "model": model.to_string(),
            "commit": pulled.commit,
            "path": pulled.path.to_string_lossy(),
            "fetched_bytes": pulled.fetched,
        }));
    }
    if !args.quiet {
        note(&format!("{model} at {}: fetched {}\n", pulled.commit, pulled.fetched));
    }
    print_path(&pulled.path)
}

/// What is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// What the cache lacks.
    Missing,
    /// All files.
    Anew,
}

/// Fetches `model` with a bar on stderr.
///
/// # Errors
/// As [`hub::pull`].
pub fn pull_with_bar(config: &HubConfig, model: &ModelRef, fetch: Fetch, visibility: Visibility) -> Result<Pulled> {
    let bar = Progress::new(visibility);
    let mut update = |progress: hub::Progress<'_>| match progress.waiting {
        Some(wait) => bar.update(&format!("{} (waiting {:.0} s)", progress.file, wait.as_secs_f64()), progress.done, progress.total),
        None => bar.update(progress.file, progress.done, progress.total),
    };
    let outcome = match fetch {
        Fetch::Missing => hub::pull(config, model, &mut update),
        Fetch::Anew => hub::pull_anew(config, model, &mut update),
    };
    bar.finish();
    outcome
}
