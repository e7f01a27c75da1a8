//! Model files are untrusted input: whatever is wrong with them, opening ends within seconds in an error that names the file and the cause.

mod changed;
mod gguf;
mod hugging_face;
mod mutated;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tierflow::model::Checkpoint;
use tierflow::platform::IoMode;

/// Opens `path` both ways and collects what is not as it must be: an error that names `file` and says `reason`.
fn must_refuse(row: &str, path: &Path, file: &str, reason: &str, failures: &mut Vec<String>) {
    for io in [IoMode::Pread, IoMode::Mmap] {
        match catch_unwind(AssertUnwindSafe(|| Checkpoint::open(path, io))) {
            Err(_) => failures.push(format!("{row} ({io}): panicked")),
            Ok(Ok(_)) => failures.push(format!("{row} ({io}): was accepted")),
            Ok(Err(error)) => {
                let text = error.to_string();
                if !text.contains(file) || !text.contains(reason) {
                    failures.push(format!("{row} ({io}): `{text}` lacks `{file}` or `{reason}`"));
                }
                if error.exit_code() != 1 {
                    failures.push(format!("{row} ({io}): exit code {}", error.exit_code()));
                }
            }
        }
    }
}
