//! The rate at which a disk is read the way streaming reads it: two threads, a few MiB at a time, past the page cache.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::effort::{Effort, middle, time};
use crate::device::Rates;
use crate::error::{Error, Result};
use crate::platform::clock::Instant;
use crate::platform::{self, ByteSource, DirectBuffer, IoMode};
use crate::units::{Bytes, BytesPerSec};

/// Threads that read and bytes that each asks for at once: as the workers of `stream::uploader`.
const N_READERS: usize = 2;
const STEP: u64 = 4 << 20;
/// Small reads that are timed.
const N_REQUESTS: u64 = 9;
/// Size of a file that is made for reading, and of the smallest that can stand for its disk.
const TEMPORARY: Bytes = Bytes::mib(64);
const LEAST: Bytes = Bytes::mib(16);
/// Most bytes that are read, however fast.
const MOST: Bytes = Bytes::mib(512);

/// What is read.
#[derive(Debug)]
pub(super) enum Subject {
    /// A file of a model.
    File(PathBuf),
    /// A file to be made in this folder.
    NewIn(PathBuf),
}

impl Subject {
    /// The file system on which it lies, as a name that stays the same.
    pub(super) fn file_system(&self) -> String {
        let (Subject::File(path) | Subject::NewIn(path)) = self;
        platform::file_system_of(path).unwrap_or_else(|| "default".into())
    }
}

/// What stands for the disk of `model`: the file, or the largest file of the folder; where that is too small or there is no
/// model, a new file beside the user's caches (the temporary folder is memory on many systems).
pub(super) fn subject(model: Option<&Path>) -> Subject {
    let own = model.and_then(largest_file).filter(|(_, size)| *size >= LEAST.0);
    if let Some((path, _)) = own {
        return Subject::File(path);
    }
    let caches = platform::cache_folder().filter(|folder| std::fs::create_dir_all(folder).is_ok());
    Subject::NewIn(caches.unwrap_or_else(platform::temporary_folder))
}

/// `path` itself, or the largest file in it, with its size.
fn largest_file(path: &Path) -> Option<(PathBuf, u64)> {
    let sized = |path: PathBuf| std::fs::metadata(&path).ok().filter(|it| it.is_file()).map(|it| (path, it.len()));
    if !path.is_dir() {
        return sized(path.to_owned());
    }
    std::fs::read_dir(path).ok()?.filter_map(|entry| sized(entry.ok()?.path())).max_by_key(|(_, size)| *size)
}

/// Reads for as long as `effort` allows.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written or read.
pub(super) fn measure(subject: &Subject, effort: &Effort) -> Result<Rates> {
    match subject {
        Subject::File(path) => of_file(path, effort),
        Subject::NewIn(folder) => {
            let failed = |source| Error::io("write a file to measure the disk in", folder.display(), source);
            platform::with_temporary_file(folder, fill, |file| of_file(file, effort)).map_err(failed)?
        }
    }
}

/// Writes what is to be read.
fn fill(file: &mut dyn Write) -> std::io::Result<()> {
    // Some file systems compress: what is read must not be small on disk.
    let mut state = 1_u64;
    let mut block = vec![0_u8; 1 << 20];
    for _ in 0..TEMPORARY.0 / block.len() as u64 {
        for word in block.as_chunks_mut::<8>().0 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = (state ^ state >> 33).to_le_bytes();
        }
        file.write_all(&block)?;
    }
    Ok(())
}

fn of_file(path: &Path, effort: &Effort) -> Result<Rates> {
    let source = platform::open_source(path, IoMode::Pread)?;
    source.drop_behind(0, source.len());
    let request_secs = request_secs(source.as_ref())?;
    Ok(Rates { disk_read: Some(read_rate(source.as_ref(), effort)?), disk_request_secs: Some(request_secs), ..Rates::default() })
}

/// What a read of next to nothing takes, at the median of a few places far from each other.
fn request_secs(source: &dyn ByteSource) -> Result<f64> {
    let mut buffer = DirectBuffer::default();
    let stride = source.len() / N_REQUESTS;
    let one = |index: u64, buffer: &mut DirectBuffer| time(|| source.read_direct(index * stride, 1, buffer).map(drop));
    (0..N_REQUESTS).map(|index| one(index, &mut buffer)).collect::<Result<_>>().map(middle)
}

fn read_rate(source: &dyn ByteSource, effort: &Effort) -> Result<BytesPerSec> {
    let n_steps = (source.len().min(MOST.0) / STEP).max(1);
    let next_step = AtomicU64::new(0);
    let begin = Instant::now();
    let disk_secs = effort.disk_secs;
    let in_time = |step| step < n_steps && begin.elapsed().as_secs_f64() < disk_secs;
    let read = || -> Result<u64> {
        let mut buffer = DirectBuffer::default();
        let mut n_bytes = 0;
        loop {
            let step = next_step.fetch_add(1, Ordering::Relaxed);
            if !in_time(step) {
                return Ok(n_bytes);
            }
            let len = STEP.min(source.len() - step * STEP);
            n_bytes += source.read_direct(step * STEP, len as usize, &mut buffer)?.len() as u64;
        }
    };
    let n_bytes = std::thread::scope(|scope| {
        // Readers that the system refuses are left out; where it refuses all of them, this thread reads.
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, read).ok();
        let readers: Vec<_> = (0..N_READERS).filter_map(start).collect();
        if readers.is_empty() {
            return read();
        }
        readers.into_iter().try_fold(0, |sum, reader| Ok(sum + reader.join().unwrap_or(Ok(0))?))
    })?;
    Ok(BytesPerSec::from_transfer(Bytes(n_bytes), begin.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Measure;

    #[test]
    fn the_largest_file_of_a_model_is_read_and_small_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert!(matches!(subject(Some(folder.path())), Subject::NewIn(_)));
        let weights = folder.path().join("model.safetensors");
        // Not whole steps: the last one is not read past its end.
        std::fs::write(&weights, vec![7; LEAST.0 as usize + 1000]).unwrap();
        for model in [folder.path(), &weights] {
            let Subject::File(file) = subject(Some(model)) else { panic!("{} is large enough", model.display()) };
            assert_eq!(file, weights);
        }
        let rates = measure(&subject(Some(&weights)), &Effort::of(Measure::Quick).unwrap()).unwrap();
        assert!(rates.figures().len() == 2 && rates.figures().iter().all(|(_, figure)| figure.is_finite() && *figure > 0.0), "{rates:?}");
    }
}
