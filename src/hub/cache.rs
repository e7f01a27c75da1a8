//! The standard cache of a Hugging Face hub on disk. Layout as `huggingface_hub` documents it:
//! `models--ORG--NAME/blobs/ETAG`, `…/refs/REVISION` (holds a commit), `…/snapshots/COMMIT/FILE` (links to blobs).
//! Asks no server.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::client::hex;
use super::config::HubConfig;
use super::model_ref::{is_safe_file_name, is_safe_revision};
use crate::error::{Error, Result};
use crate::platform::{temporary_called, temporary_in};
use crate::units::Bytes;

/// Folders deeper than this in a snapshot are not looked into.
const MAX_DEPTH: u32 = 8;
/// How the name of a blob under way ends.
const INCOMPLETE: &str = ".incomplete";
/// Letters and digits between a blob's name and that ending where a process writes a file of its own.
const OWN_LETTERS: usize = 6;
/// Bytes that are read at once for a digest.
const DIGEST_BYTES: usize = 1 << 20;

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
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
}

/// A path need not be UTF-8, which JSON is.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// All snapshots in the cache that hold `.gguf` or `.safetensors` files, by name and commit. A repository that cannot be read is left
/// out with a warning in the log, and so is a cache of which it is not even known whether it exists.
///
/// # Errors
/// [`Error::Io`] where the cache is there and cannot be read.
pub fn list_cached(config: &HubConfig) -> Result<Vec<CachedModel>> {
    let mut models = Vec::new();
    let folders = match entries(&config.cache_dir) {
        Err(error) if config.cache_dir.metadata().is_err() => {
            tracing::warn!("{error}");
            Vec::new()
        }
        folders => folders?,
    };
    for folder in folders {
        let Some(repo) = folder.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else { continue };
        match snapshots(&RepoCache::new(&config.cache_dir, &repo)) {
            Ok(found) => models.extend(found),
            Err(error) => tracing::warn!("{repo} is left out: {error}"),
        }
    }
    Ok(models)
}

/// The snapshots of one repository that hold weights.
fn snapshots(cache: &RepoCache) -> Result<Vec<CachedModel>> {
    let mut models = Vec::new();
    for commit in entries(&cache.root.join("snapshots"))? {
        let files = cache.files(&commit)?;
        if files.iter().any(|name| name.ends_with(".gguf") || name.ends_with(".safetensors")) {
            let size = files.iter().filter_map(|file| cache.snapshot_file_size(&commit, file)).sum();
            models.push(CachedModel { repo: cache.repo.clone(), path: cache.snapshot(&commit), commit, files, size });
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
    digest: Sha256,
    /// Bytes from the start on that `digest` has seen.
    n_digested: Bytes,
}

/// Who else may use a partial file later.
enum Ownership {
    /// The next fetch goes on with it; the lock keeps others away until this one ends.
    Shared(#[expect(dead_code, reason = "held, never read: the system releases the lock when it closes")] File),
    /// Only this process. It holds a lock on the file itself, so that other processes can distinguish it from what a dead process left.
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
            let mut temporary = temporary_in(&folder)?;
            temporary.write_all(commit.as_bytes())?;
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
    pub fn blob_size(&self, blob: &str) -> Option<Bytes> {
        file_size(&self.blob(blob))
    }

    fn blob(&self, blob: &str) -> PathBuf {
        self.root.join("blobs").join(blob)
    }

    /// Opens the blob's `.incomplete` file, to go on where an earlier fetch ended. It is guarded by the lock that
    /// `huggingface_hub` takes, which the system releases when a process dies. Where another process holds it, or the file is another
    /// user's, this one does not wait but writes a file of its own: the work is done twice, nothing breaks and nothing hangs.
    pub fn open_partial(&self, blob: &str) -> Result<Partial> {
        let path = self.blob(&format!("{blob}{INCOMPLETE}"));
        let folder = create_parent(&path)?;
        if let Some(lock) = self.try_lock(blob) {
            self.adopt_orphan(blob, &path);
            if let Ok(file) = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path) {
                return Ok(Partial::new(file, path, Ownership::Shared(lock)));
            }
        }
        let own = temporary_called(blob, INCOMPLETE, &folder);
        let (file, path) =
            own.and_then(|own| own.keep().map_err(|failed| failed.error)).map_err(|source| Error::io("create", path.display(), source))?;
        if let Err(reason) = file.try_lock() {
            tracing::debug!("{} is not locked: {reason}", path.display());
        }
        Ok(Partial::new(file, path, Ownership::Own))
    }

    /// Lets the fetch under `path` resume from the longest file that a process left when it died while it wrote a file of its own; the
    /// others go.
    fn adopt_orphan(&self, blob: &str, path: &Path) {
        let mut orphans = self.orphans(blob);
        orphans.sort_by_key(|orphan| file_size(orphan));
        if orphans.last().is_some_and(|longest| file_size(longest) > file_size(path))
            && let Some(longest) = orphans.pop()
            && let Err(reason) = fs::rename(&longest, path)
        {
            tracing::debug!("{} is left alone: {reason}", longest.display());
        }
        orphans.iter().for_each(|orphan| remove(orphan));
    }

    /// Removes what fetches left of a blob that is whole by now.
    pub fn remove_orphans(&self, blob: &str) {
        let rest = self.blob(&format!("{blob}{INCOMPLETE}"));
        let orphans = self.orphans(blob);
        if orphans.is_empty() && !rest.exists() {
            return;
        }
        if let Some(_lock) = self.try_lock(blob) {
            orphans.iter().chain(rest.exists().then_some(&rest)).for_each(|orphan| remove(orphan));
        }
    }

    /// Files that processes wrote for themselves, and that nobody holds any more.
    fn orphans(&self, blob: &str) -> Vec<PathBuf> {
        let is_own = |name: &str| {
            let letters = name.strip_prefix(blob).and_then(|rest| rest.strip_suffix(INCOMPLETE));
            letters.is_some_and(|letters| letters.len() == OWN_LETTERS && letters.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        };
        // One that is empty may have been made this moment, and be locked the next.
        let is_begun = |path: &PathBuf| file_size(path).is_some_and(|size| size > Bytes::ZERO);
        let is_free =
            |path: &PathBuf| is_begun(path) && OpenOptions::new().write(true).open(path).is_ok_and(|file| file.try_lock().is_ok());
        let names = entries(&self.root.join("blobs")).unwrap_or_default();
        names.iter().filter(|name| is_own(name)).map(|name| self.blob(name)).filter(is_free).collect()
    }

    /// `None` where the lock is held elsewhere, or the file system knows no locks.
    fn try_lock(&self, blob: &str) -> Option<File> {
        let path = self.locks.join(format!("{blob}.lock"));
        create_parent(&path).ok()?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).ok()?;
        file.try_lock().ok().map(|()| file)
    }

    /// Gives a partial blob, now whole, its name.
    pub fn keep_partial(&self, partial: Partial, blob: &str) -> Result<()> {
        let blob = self.blob(blob);
        fs::rename(&partial.path, &blob).map_err(|source| Error::io("name", blob.display(), source))
    }

    /// Lets `file` of `commit` show the blob: by a relative link, else by a second name. Where the file system has neither, the blob
    /// itself goes there if it `is_new`, as with `huggingface_hub`, so that no model lies there twice; else a copy, which appears
    /// whole.
    pub fn link(&self, commit: &str, file: &str, blob: &str, is_new: bool) -> Result<()> {
        let pointer = self.snapshot(commit).join(file);
        let folder = create_parent(&pointer)?;
        let depth = file.matches('/').count() + 2;
        let relative: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", blob]).collect();
        if fs::read_link(&pointer).is_ok_and(|target| target == relative) {
            return Ok(());
        }
        let blob = self.blob(blob);
        let linked = in_place_of(&pointer, &folder, |path| symlink(&relative, path));
        linked
            .or_else(|_| in_place_of(&pointer, &folder, |path| fs::hard_link(&blob, path)))
            .or_else(|_| without_links(&blob, &pointer, &folder, is_new))
            .map_err(|source| Error::io("link", pointer.display(), source))
    }
}

/// Lets `make` make something in `folder` under a temporary name, and renames it to `path`.
fn in_place_of(path: &Path, folder: &Path, make: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let made = tempfile::Builder::new().make_in(folder, make)?;
    made.persist(path).map(|_| ()).map_err(|failed| failed.error)
}

/// Brings a blob to `path` in `folder`: itself where it `is_new`, else a copy, which appears whole.
fn without_links(blob: &Path, path: &Path, folder: &Path, is_new: bool) -> io::Result<()> {
    if is_new {
        return fs::rename(blob, path);
    }
    let mut copy = temporary_in(folder)?;
    io::copy(&mut File::open(blob)?, &mut copy)?;
    copy.as_file().sync_all()?;
    copy.persist(path).map(|_| ()).map_err(|failed| failed.error)
}

/// Removes what nobody needs; where that fails, it stays.
fn remove(path: &Path) {
    if let Err(reason) = fs::remove_file(path) {
        tracing::debug!("{} is left alone: {reason}", path.display());
    }
}

impl Partial {
    fn new(file: File, path: PathBuf, ownership: Ownership) -> Partial {
        Partial { file, path, ownership, digest: Sha256::new(), n_digested: Bytes::ZERO }
    }

    /// Bytes that are there.
    pub fn len(&self) -> Result<Bytes> {
        self.file.metadata().map(|data| Bytes(data.len())).map_err(|source| self.io("measure", source))
    }

    /// Writes what arrived for the place `at`.
    pub fn write(&mut self, at: Bytes, block: &[u8]) -> Result<()> {
        let written = self.file.seek(SeekFrom::Start(at.0)).and_then(|_| self.file.write_all(block));
        written.map_err(|source| self.io("write", source))?;
        if at == Bytes::ZERO {
            self.forget_digest();
        }
        if at == self.n_digested {
            self.digest.update(block);
            self.n_digested += Bytes(block.len() as u64);
        }
        Ok(())
    }

    /// The SHA-256 of what is there, in hexadecimal digits. What did not all arrive through [`Partial::write`] is read once more.
    pub fn sha256(&mut self) -> Result<String> {
        if self.n_digested != self.len()? {
            self.forget_digest();
            self.digest_file().map_err(|source| self.io("read", source))?;
        }
        Ok(hex(&self.digest.clone().finalize()))
    }

    fn digest_file(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut block = vec![0; DIGEST_BYTES];
        loop {
            let n_read = self.file.read(&mut block)?;
            if n_read == 0 {
                return Ok(());
            }
            self.digest.update(&block[..n_read]);
            self.n_digested += Bytes(n_read as u64);
        }
    }

    fn forget_digest(&mut self) {
        (self.digest, self.n_digested) = (Sha256::new(), Bytes::ZERO);
    }

    /// Forgets what has arrived.
    pub fn discard(&mut self) -> Result<()> {
        self.forget_digest();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_are_no_links_a_new_blob_moves_and_an_old_one_is_copied_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (blob, path) = (folder.path().join("blob"), folder.path().join("file"));
        // What a copy left that ran out of space.
        fs::write(&path, "th").unwrap();
        fs::write(&blob, "the model").unwrap();
        without_links(&blob, &path, folder.path(), false).unwrap();
        assert_eq!((fs::read(&blob).unwrap(), fs::read(&path).unwrap()), (b"the model".to_vec(), b"the model".to_vec()));
        fs::write(&blob, "another").unwrap();
        without_links(&blob, &path, folder.path(), true).unwrap();
        assert_eq!((blob.exists(), fs::read(&path).unwrap()), (false, b"another".to_vec()));
        assert!(without_links(&blob, &path, folder.path(), false).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left, and the old one is whole");
        assert_eq!(fs::read(&path).unwrap(), b"another");
    }

    #[test]
    fn links_replace_what_stands_in_their_place() {
        let cache = tempfile::tempdir().unwrap();
        let repo = RepoCache::new(cache.path(), "org/name");
        let pointer = repo.snapshot("c").join("sub/m.gguf");
        for old in [None, Some("half a copy")] {
            let blob = repo.blob("b");
            create_parent(&blob).unwrap();
            fs::write(&blob, "the model").unwrap();
            create_parent(&pointer).unwrap();
            if let Some(old) = old {
                fs::remove_file(&pointer).unwrap();
                fs::write(&pointer, old).unwrap();
            }
            repo.link("c", "sub/m.gguf", "b", false).unwrap();
            assert_eq!(fs::read(&pointer).unwrap(), b"the model");
            assert_eq!(fs::read_dir(pointer.parent().unwrap()).unwrap().count(), 1);
        }
    }
}
