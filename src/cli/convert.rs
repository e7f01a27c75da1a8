//! `tierflow convert`: a model as a GGUF file.

use std::sync::atomic::Ordering;

use crate::cli::args::{ConvertArgs, LoraArg};
use crate::cli::ctrl_c::stopped_by_ctrl_c;
use crate::cli::locate::locate;
use crate::cli::terminal::{Progress, Visibility, note, print_json, print_path};
use crate::convert::{ConvertOptions, convert_with};
use crate::error::{Error, Result};
use crate::units::listed;

/// Writes the file that `args` name. Its path goes to stdout, all else to stderr. After Ctrl-C nothing is left of what was written.
///
/// # Errors
/// As [`convert_with`], and those of finding the model; [`Error::Interrupted`].
pub fn run(args: &ConvertArgs) -> Result<()> {
    let (source, out) = (args.source()?, args.out()?);
    crate::platform::check_folder(&out)?;
    let model = locate(&source, Visibility::Auto)?;
    let loras = LoraArg::read(&args.merge_lora)?;
    let options = ConvertOptions { file_type: args.file_type, pure: args.pure };
    let bar = Progress::new(Visibility::Auto);
    let interrupted = stopped_by_ctrl_c();
    let outcome = convert_with(&model, &loras, &out, options, &mut |done, total| {
        bar.update("converting", done, total);
        if interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    });
    bar.finish();
    let written = outcome?;
    if args.json {
        let tensors = written.tensors.iter().map(|(dtype, count)| (dtype.to_string(), serde_json::json!(count)));
        return print_json(&serde_json::json!({
            "schema": "tierflow.convert/1",
            "path": out.to_string_lossy(),
            "type": args.file_type.to_string(),
            "architecture": written.architecture,
            "size_bytes": written.size.0,
            "tensors": tensors.collect::<serde_json::Map<_, _>>(),
            "notes": written.notes,
        }));
    }
    written.notes.iter().for_each(|line| note(&format!("{line}\n")));
    let counts: Vec<String> = written.tensors.iter().map(|(dtype, count)| format!("{count} in {dtype}")).collect();
    note(&format!("{}: {}, tensors: {}\n", written.architecture, written.size, listed(&counts)));
    print_path(&out)
}
