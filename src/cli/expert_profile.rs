//! The file of `--expert-profile`, which runs begin with and write anew.

use std::path::Path;

use crate::error::Result;
use crate::plan::ExpertProfile;
use crate::platform::{self, write_atomically};

/// The longest profile that is read; one of a hundred thousand experts has some megabytes.
const PROFILE_BYTES_MAX: u64 = 64 << 20;

/// What runs before have written; `None` where there is no such file yet.
///
/// # Errors
/// Those of reading, and of a file that is no profile.
pub fn read(file: &Path) -> Result<Option<ExpertProfile>> {
    if !file.exists() {
        return Ok(None);
    }
    ExpertProfile::from_json(&platform::read_text(file, PROFILE_BYTES_MAX)?, &file.display().to_string()).map(Some)
}

/// Writes which experts tokens took, as the engine tells it, where any pass through a cache.
///
/// # Errors
/// Those of writing.
pub fn write(file: &Path, profile: Option<&ExpertProfile>) -> Result<()> {
    match profile {
        Some(profile) => write_atomically(file, profile.to_json().as_bytes()),
        None => {
            tracing::warn!("--expert-profile has no effect: no experts pass through a cache");
            Ok(())
        }
    }
}
