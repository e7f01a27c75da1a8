//! The standard cache of a Hugging Face hub on disk. Layout as `huggingface_hub` documents it:
//! `models--ORG--NAME/blobs/ETAG`, `…/refs/REVISION` (holds a commit), `…/snapshots/COMMIT/FILE` (links to blobs).
//! Asks no server.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::config::HubConfig;
use super::model_ref::{is_safe_file_name, is_safe_revision};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Folders deeper than this in a snapshot are not looked into.
const MAX_DEPTH: u32 = 8;

/// A snapshot in the cache that holds weights.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CachedModel {
    /// `ORG/NAME`.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// Names of its files, sorted.
    pub files: Vec<String>,
    /// Bytes of its files.
    pub size: Bytes,
    /// The snapshot's folder.
    pub path: PathBuf,
}

/// All snapshots in the cache that hold `.gguf` or `.safetensors` files, by name and commit.
///
/// # Errors
/// [`Error::Io`] where the cache is there and cannot be read.
pub fn list_cached(config: &HubConfig) -> Result<Vec<CachedModel>> {
    let mut models = Vec::new();
    for folder in entries(&config.cache_dir)? {
        let Some(repo) = folder.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else { continue };
        let cache = RepoCache::new(&config.cache_dir, &repo);
        for commit in entries(&cache.root.join("snapshots"))? {
            let files = cache.files(&commit)?;
            if files.iter().any(|name| name.ends_with(".gguf") || name.ends_with(".safetensors")) {
                let size = files.iter().filter_map(|file| cache.snapshot_file_size(&commit, file)).sum();
                models.push(CachedModel { repo: repo.clone(), path: cache.snapshot(&commit), commit, files, size });
            }
        }
    }
    Ok(models)
}

/// The part of the cache that belongs to one repository.
pub(super) struct RepoCache {
    repo: String,
    root: PathBuf,
    locks: PathBuf,
}

/// A blob under way. While it is open, no other process writes to it.
pub(super) struct Partial {
    pub file: File,
    pub path: PathBuf,
    ownership: Ownership,
}

/// Who else may use a partial file later.
enum Ownership {
    /// The next fetch goes on with it; the lock keeps others away until this one ends.
    Shared(#[expect(dead_code, reason = "held, never read: the system releases the lock when it closes")] File),
    /// Only this process.
    Own,
}

impl RepoCache {
    pub fn new(cache_dir: &Path, repo: &str) -> RepoCache {
        let folder = format!("models--{}", repo.replace('/', "--"));
        RepoCache { repo: repo.to_owned(), root: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(folder) }
    }

    /// `ORG/NAME`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for at the last pull; a commit stands for itself.
    pub fn commit(&self, revision: &str) -> Result<Option<String>> {
        if !is_safe_revision(revision) {
            return Ok(None);
        }
        if !revision.contains('/') && self.snapshot(revision).is_dir() {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.root.join("refs").join(revision);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|commit| is_safe_file_name(commit) && !commit.contains('/'))),
            Err(source) if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) => Ok(None),
            Err(source) => Err(Error::io("read", path.display(), source)),
        }
    }

    /// Notes that `revision` stands for `commit`.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || fs::read_to_string(self.root.join("refs").join(revision)).is_ok_and(|text| text == commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let folder = create_parent(&path)?;
        let write = || {
            let temporary = tempfile::NamedTempFile::new_in(&folder)?;
            fs::write(temporary.path(), commit)?;
            temporary.persist(&path).map_err(|failed| failed.error)
        };
        write().map(|_| ()).map_err(|source| Error::io("write", path.display(), source))
    }

    /// Names of the files of a commit that are here, sorted, with `/` between folders. A dangling link is not here.
    pub fn files(&self, commit: &str) -> Result<Vec<String>> {
        let mut files = Vec::new();
        collect_files(&self.snapshot(commit), "", MAX_DEPTH, &mut files)?;
        files.sort();
        Ok(files)
    }

    /// The size of a file of a commit, where it is here.
    pub fn snapshot_file_size(&self, commit: &str, file: &str) -> Option<Bytes> {
        file_size(&self.snapshot(commit).join(file))
    }

    /// The size of a whole blob, where it is here.
    pub fn blob_size(&self, etag: &str) -> Option<Bytes> {
        file_size(&self.blob(etag))
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Opens the blob's `.incomplete` file, to go on where an earlier fetch ended. It is guarded by the lock that
    /// `huggingface_hub` takes, which the system releases when a process dies. Where another process holds it, this one
    /// does not wait but writes a file of its own: the work is done twice, nothing breaks and nothing hangs.
    pub fn open_partial(&self, etag: &str) -> Result<Partial> {
        let path = self.root.join("blobs").join(format!("{etag}.incomplete"));
        let folder = create_parent(&path)?;
        if let Some(lock) = self.try_lock(etag) {
            let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path);
            let file = file.map_err(|source| Error::io("create", path.display(), source))?;
            return Ok(Partial { file, path, ownership: Ownership::Shared(lock) });
        }
        let own = tempfile::Builder::new().prefix(etag).suffix(".incomplete").tempfile_in(&folder);
        let (file, path) =
            own.and_then(|own| own.keep().map_err(|failed| failed.error)).map_err(|source| Error::io("create", path.display(), source))?;
        Ok(Partial { file, path, ownership: Ownership::Own })
    }

    /// `None` where the lock is held elsewhere, or the file system knows no locks.
    fn try_lock(&self, etag: &str) -> Option<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path).ok()?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).ok()?;
        file.try_lock().ok().map(|()| file)
    }

    /// Gives a partial blob, now whole, its name.
    pub fn keep_partial(&self, partial: Partial, etag: &str) -> Result<()> {
        let blob = self.blob(etag);
        fs::rename(&partial.path, &blob).map_err(|source| Error::io("name", blob.display(), source))
    }

    /// Lets `file` of `commit` show the blob: by a relative link, else by a second name, else by a copy.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(file);
        create_parent(&pointer)?;
        let blob = self.blob(etag);
        let depth = file.matches('/').count() + 2;
        let relative: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", etag]).collect();
        let attempt = || -> io::Result<()> {
            match symlink(&relative, &pointer) {
                Err(fault) if fault.kind() == ErrorKind::AlreadyExists => {
                    if fs::read_link(&pointer).is_ok_and(|target| target == relative) {
                        return Ok(());
                    }
                    // A link to nothing, or what is left of a failed copy.
                    fs::remove_file(&pointer)?;
                    symlink(&relative, &pointer)
                }
                outcome => outcome,
            }
        };
        attempt()
            .or_else(|_| fs::hard_link(&blob, &pointer))
            .or_else(|_| fs::copy(&blob, &pointer).map(|_| ()))
            .map_err(|source| Error::io("link", pointer.display(), source))
    }
}

impl Partial {
    /// Bytes that are there.
    pub fn len(&self) -> Result<Bytes> {
        self.file.metadata().map(|data| Bytes(data.len())).map_err(|source| self.io("measure", source))
    }

    /// Forgets what has arrived.
    pub fn discard(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|source| self.io("truncate", source))
    }

    /// An error about this file.
    pub fn io(&self, action: &str, source: io::Error) -> Error {
        Error::io(action, self.path.display(), source)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Of no use to a later fetch. Once the blob has its name, this one is free and nothing happens.
        if matches!(self.ownership, Ownership::Own) || file_size(&self.path) == Some(Bytes::ZERO) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

fn file_size(path: &Path) -> Option<Bytes> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|data| Bytes(data.len()))
}

/// Makes the folder that `path` is to lie in, and names it.
fn create_parent(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
    fs::create_dir_all(&folder).map_err(|source| Error::io("create", folder.display(), source))?;
    Ok(folder)
}

/// Names in a folder, sorted; none where there is no such folder.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(source) if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(source) => return Err(Error::io("read", folder.display(), source)),
    };
    let mut names: Vec<String> = read.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn collect_files(folder: &Path, prefix: &str, depth: u32, files: &mut Vec<String>) -> Result<()> {
    for name in entries(folder)? {
        let path = folder.join(&name);
        if path.is_file() {
            files.push(format!("{prefix}{name}"));
        } else if depth > 0 && path.is_dir() {
            collect_files(&path, &format!("{prefix}{name}/"), depth - 1, files)?;
        }
    }
    Ok(())
}
