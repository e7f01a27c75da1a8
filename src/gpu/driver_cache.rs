//! The driver's compiled shaders, kept on disk from run to run where the driver hands them out. A cache: without it,
//! or with one that was damaged or made by another driver, everything is compiled again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::platform;

/// A larger file was not written by this program.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The checksum that the file begins with.
const CHECKSUM_BYTES: usize = 8;

/// The driver's cache of one open adapter, and its file.
#[derive(Debug)]
pub(super) struct DriverCache {
    cache: wgpu::PipelineCache,
    /// One for each adapter and driver.
    path: Option<PathBuf>,
    /// Of what the file holds; 0 where there is none.
    kept: Mutex<u64>,
}

impl DriverCache {
    /// Reads what an earlier run kept; `None` where the driver does not hand out compiled shaders.
    pub(super) fn open(device: &wgpu::Device, adapter: &wgpu::AdapterInfo) -> Option<DriverCache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = file_name(adapter).and_then(|name| Some(platform::cache_folder()?.join("pipelines").join(name)));
        let data = path.as_ref().and_then(|path| {
            let is_plausible = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_FILE_BYTES);
            unsealed(&is_plausible.then(|| std::fs::read(path).ok())??).map(<[u8]>::to_vec)
        });
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("tierflow"), data: data.as_deref(), fallback: true };
        #[expect(unsafe_code, reason = "drivers believe the data, so wgpu asks its user to vouch for it")]
        // SAFETY: the data came from `get_data` of this adapter and driver, by the file's name, and is whole, by its checksum;
        // wgpu's own header names device and driver once more. The file lies among this user's own.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(DriverCache { cache, path, kept: Mutex::new(data.as_deref().map_or(0, checksum)) })
    }

    /// What pipelines are made with.
    pub(super) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the file anew where there is something new. A cache that cannot be written is no error.
    pub(super) fn keep(&self) {
        let (Some(path), Some(data)) = (&self.path, self.cache.get_data()) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if *kept == checksum(&data) {
            return;
        }
        match platform::write_with_folder(path, &sealed(&data)) {
            Ok(()) => *kept = checksum(&data),
            Err(error) => tracing::debug!("the compiled kernels were not kept: {error}"),
        }
    }
}

/// A file name for what this adapter's driver compiles, of letters, digits and lines alone; `None` where drivers of its API
/// do not hand out compiled shaders.
fn file_name(adapter: &wgpu::AdapterInfo) -> Option<String> {
    let key = wgpu::util::pipeline_cache_key(adapter)?;
    let whole = format!("{key}_{}_{}", adapter.driver, adapter.driver_info);
    Some(whole.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).take(200).collect())
}

fn checksum(data: &[u8]) -> u64 {
    // Another version of the standard library may compute another sum: then the file counts as damaged, once.
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    hasher.finish()
}

/// The data behind its checksum.
fn sealed(data: &[u8]) -> Vec<u8> {
    [&checksum(data).to_le_bytes(), data].concat()
}

/// The data of a file that is whole.
fn unsealed(file: &[u8]) -> Option<&[u8]> {
    let (sum, data) = file.split_at_checked(CHECKSUM_BYTES)?;
    (sum == checksum(data).to_le_bytes()).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_believed() {
        let file = sealed(b"what a driver made");
        assert_eq!(unsealed(&file), Some(&b"what a driver made"[..]));
        for damaged in [&file[..file.len() - 1], &file[1..], &file[..4], b""] {
            assert_eq!(unsealed(damaged), None);
        }
        let mut flipped = file;
        flipped[12] ^= 1;
        assert_eq!(unsealed(&flipped), None);
    }
}
