//! Pointers of Git LFS, which stand where a clone without it has no weights.

use crate::error::{Error, Result};
use crate::platform::ByteSource;

/// How every pointer begins.
const BEGIN: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses a file that only says where its bytes are.
pub(super) fn refuse_pointer(source: &dyn ByteSource) -> Result<()> {
    let mut begin = [0; BEGIN.len()];
    if source.len() < BEGIN.len() as u64 {
        return Ok(());
    }
    source.read_at(0, &mut begin)?;
    match begin == BEGIN {
        false => Ok(()),
        true => Err(Error::invalid_file(source.path(), "is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder")),
    }
}
