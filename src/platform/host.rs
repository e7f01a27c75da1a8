//! What the operating system says of the host: memory, cores, folders.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use super::write::{Checked, ScratchFile, is_same_file, write_atomically, write_atomically_by, write_with_folder};
use super::{HostMemory, cgroup, process_limits};
use crate::error::Result;
use crate::units::Bytes;

/// Threads can be started, and one may wait for what others do.
pub const MAY_BLOCK: bool = true;

/// Memory of the host: what the machine has, and of it what the groups of this process and its own limits leave.
pub fn host_memory() -> HostMemory {
    let machine = machine_memory();
    let granted = [cgroup::memory(), process_limits::memory()];
    granted.into_iter().flatten().fold(machine, HostMemory::and)
}

/// The machine's memory. Where `/proc` is hidden, the system call says less: page cache counts as used there.
fn machine_memory() -> HostMemory {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let memory = HostMemory { total: Bytes(system.total_memory()), available: Bytes(system.available_memory()) };
    if memory.total > Bytes::ZERO { memory } else { process_limits::machine_memory().unwrap_or(memory) }
}

/// The processor's largest cache, where the system tells (Linux: Documentation/ABI/testing/sysfs-devices-system-cpu).
pub fn largest_cache() -> Option<Bytes> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let kib = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().strip_suffix('K')?.parse::<u32>().ok();
    let sizes = caches.flatten().filter_map(|cache| kib(cache.path().join("size")));
    Some(Bytes::kib(sizes.max()?.into()))
}

/// What the maker calls the processor.
pub fn cpu_name() -> String {
    let mut system = sysinfo::System::new();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let brand = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default();
    if brand.is_empty() { std::env::consts::ARCH.to_owned() } else { brand }
}

/// Threads that run at once.
pub fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The folder that the program's user has chosen.
static CHOSEN_CACHE_FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Makes `folder` the [`cache_folder`] for the rest of the process. The first choice stays; an empty path is none.
pub fn choose_cache_folder(folder: PathBuf) {
    if !folder.as_os_str().is_empty() {
        let _ = CHOSEN_CACHE_FOLDER.set(folder);
    }
}

/// Where measured rates are kept: the chosen folder, else `$TIERFLOW_CACHE`, else `tierflow` in the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    if let Some(folder) = CHOSEN_CACHE_FOLDER.get() {
        return Some(folder.clone());
    }
    match std::env::var_os("TIERFLOW_CACHE") {
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => Some(dirs::cache_dir()?.join("tierflow")),
    }
}

/// What was kept in the [`cache_folder`] as `name`.
pub fn kept(name: &str) -> Option<Vec<u8>> {
    std::fs::read(cache_folder()?.join(name)).ok()
}

/// Keeps `bytes` in the [`cache_folder`] as `name`; nothing happens where there is none.
///
/// # Errors
/// Those of [`write_with_folder`].
pub fn keep(name: &str, bytes: &[u8]) -> Result<()> {
    cache_folder().map_or(Ok(()), |folder| write_with_folder(&folder.join(name), bytes))
}

/// The folder for files that must last: `tierflow` in the user's folder for state, or for data where the system has none.
#[cfg(feature = "cli")]
pub(crate) fn state_folder() -> Option<PathBuf> {
    Some(dirs::state_dir().or_else(dirs::data_local_dir)?.join("tierflow"))
}

/// Makes the folder `path`, and what it lies in, for nobody but the user; one that is there stays as it is.
///
/// # Errors
/// Those of the system.
#[cfg(feature = "cli")]
pub(crate) fn create_private_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// The file system on which `path` lies, by a name that lasts until the machine is started anew; `None` where `path` is nothing.
#[cfg(unix)]
pub fn file_system_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    Some(format!("file system {:x}", std::fs::metadata(path).ok()?.dev()))
}

/// As above; here it is the drive, or the share of a network.
#[cfg(not(unix))]
pub fn file_system_of(path: &Path) -> Option<String> {
    let whole = std::fs::canonicalize(path).ok()?;
    Some(format!("file system {}", whole.components().next()?.as_os_str().to_string_lossy()))
}

/// The folder for temporary files.
pub fn temporary_folder() -> PathBuf {
    std::env::temp_dir()
}

/// Makes a file in `folder`, lets `fill` write it, brings it to its disk, and shows it to `read`; then it is gone.
///
/// # Errors
/// Those of the system; the result of `read` is returned as it is.
pub fn with_temporary_file<T>(
    folder: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    read: impl FnOnce(&Path) -> T,
) -> std::io::Result<T> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    fill(&mut file)?;
    file.as_file().sync_all()?;
    Ok(read(file.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_memory_and_threads() {
        let memory = host_memory();
        assert!(memory.total >= memory.available && memory.available > Bytes::ZERO, "{memory:?}");
        assert!(n_threads() > 0);
    }
}
