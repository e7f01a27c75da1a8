//! `tierflow pull`: fetches a model and prints where it lies.

use crate::cli::args::PullArgs;
use crate::cli::terminal::{Progress, Visibility, note, print, print_json};
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
    let pulled = pull_with_bar(&HubConfig::from_env()?, &model, visibility)?;
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
    print(&format!("{}\n", pulled.path.display()))
}

/// Fetches `model` with a bar on stderr.
///
/// # Errors
/// As [`hub::pull`].
pub fn pull_with_bar(config: &HubConfig, model: &ModelRef, visibility: Visibility) -> Result<Pulled> {
    let bar = Progress::new(visibility);
    let outcome = hub::pull(config, model, &mut |progress| bar.update(progress.file, progress.done, progress.total));
    bar.finish();
    outcome
}
