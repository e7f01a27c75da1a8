//! Writes files that the user names: regular files are replaced whole or not at all, other kinds are written to directly.
//!
//! A new text is written under a temporary name beside the file and renamed, so that nobody ever sees half of it. That replaces what
//! stands at the path, which is right for a regular file alone: devices, FIFOs, sockets and open descriptors (`/dev/stdout`,
//! `/dev/fd/N`, a shell's `>(…)`) are written to, and of a link its target is replaced. A file keeps mode and owner; a new one has
//! the mode that the umask leaves.
//!
//! Some files cannot be replaced without loss, and are written in place: those with several names, since the others would go on
//! showing the old text, those whose owner would change, and those in a folder that takes no new file or that are mounted themselves,
//! as a container mounts single files. A file that may not be written is refused, although its folder would let it be replaced.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Links that are followed from one path.
const MAX_LINKS: usize = 40;

/// Writes `bytes` to what stands at `path`, or to a new file in a folder that is there.
///
/// # Errors
/// [`Error::Io`] naming the file, and the folder where there is none.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, &mut |target| target.write_all(bytes)).map_err(|source| Error::io("write", path.display(), source))
}

/// What writes a file from its first byte to its last.
type Fill<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<()>;

/// As [`write_atomically`], for what is too large to be held: `fill` writes it, and may be asked again from the start, where a file can
/// after all be written in place only.
///
/// # Errors
/// [`Error::Io`] naming the file; those of `fill`, after which nothing has changed where the file could be replaced.
pub fn write_atomically_by(path: &Path, mut fill: impl FnMut(&mut Checked<'_>) -> Result<()>) -> Result<()> {
    let mut failure = None;
    let written = write(path, &mut |target| {
        let mut checked = Checked { target, path };
        fill(&mut checked).map_err(|error| {
            failure = Some(error);
            io::Error::other("what is written could not be made")
        })
    });
    match (written, failure) {
        (_, Some(error)) => Err(error),
        (written, None) => written.map_err(|source| Error::io("write", path.display(), source)),
    }
}

/// A file that is being written; errors name it.
pub struct Checked<'a> {
    target: &'a mut dyn Write,
    path: &'a Path,
}

impl Checked<'_> {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.target.write_all(bytes).map_err(|source| Error::io("write", self.path.display(), source))
    }
}

/// Whether both paths lead to one file.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let same_path = || one.canonicalize().ok().zip(other.canonicalize().ok()).is_some_and(|(one, other)| one == other);
    same_path() || has_same_identity(one, other)
}

/// As [`write_atomically`], for what the program itself keeps: its folder is made where there is none.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write_with_folder(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::create_dir_all(folder_of(path)).map_err(|source| Error::io("write", path.display(), source))?;
    write_atomically(path, bytes)
}

/// Refuses a path whose folder is not there, before work is done whose outcome could not be written.
///
/// # Errors
/// [`Error::Io`] naming the file and the folder.
#[cfg(feature = "cli")]
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let checked = destination(path).and_then(|destination| match destination {
        Destination::Path(target) => folder_that_is_there(&target).map(|_| ()),
        Destination::Descriptor(_) => Ok(()),
    });
    checked.map_err(|source| Error::io("write", path.display(), source))
}

fn write(path: &Path, fill: Fill<'_>) -> io::Result<()> {
    let target = match destination(path)? {
        Destination::Descriptor(mut stream) => return fill(&mut stream),
        Destination::Path(target) => target,
    };
    match std::fs::metadata(path) {
        Ok(there) if there.is_file() => replace(&target, &there, fill),
        // What it is, its opening will say.
        Ok(_) => fill(&mut OpenOptions::new().write(true).open(path)?),
        Err(reason) if reason.kind() == ErrorKind::NotFound => create(&target, fill),
        Err(reason) => Err(reason),
    }
}

/// What a path leads to.
enum Destination {
    /// An open descriptor of this process.
    Descriptor(File),
    /// This path, which is no link.
    Path(PathBuf),
}

/// Follows links, also to what is not there yet.
fn destination(path: &Path) -> io::Result<Destination> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if let Some(stream) = own_descriptor(&path)? {
            return Ok(Destination::Descriptor(stream));
        }
        match std::fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // No link, or nothing at all.
            Err(_) => return Ok(Destination::Path(path)),
        }
    }
    Err(io::Error::other("too many links"))
}

/// The stream behind `/dev/fd/N` and its like. Opened by its name again, a file behind it would be written over from its start, and
/// a terminal or socket may refuse.
#[cfg(unix)]
fn own_descriptor(path: &Path) -> io::Result<Option<File>> {
    use std::os::fd::AsFd;
    let Some(number) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok()) else { return Ok(None) };
    let Some(folder) = path.parent().and_then(|folder| folder.canonicalize().ok()) else { return Ok(None) };
    let is_descriptors = |known: &str| Path::new(known).canonicalize().is_ok_and(|known| known == folder);
    if !is_descriptors("/proc/self/fd") && !is_descriptors("/dev/fd") {
        return Ok(None);
    }
    let stream = match number {
        1 => io::stdout().as_fd().try_clone_to_owned()?.into(),
        2 => io::stderr().as_fd().try_clone_to_owned()?.into(),
        _ => OpenOptions::new().append(true).open(path)?,
    };
    Ok(Some(stream))
}

#[cfg(not(unix))]
fn own_descriptor(_path: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// Gives the regular file `target` a new content.
fn replace(target: &Path, there: &Metadata, fill: Fill<'_>) -> io::Result<()> {
    drop(OpenOptions::new().write(true).open(target)?);
    let new = if has_other_names(there) { None } else { beside(target, there)? };
    if let Some(mut new) = new {
        fill_whole(new.as_file_mut(), fill)?;
        match new.persist(target) {
            Ok(_) => return Ok(()),
            Err(reason) if !cannot_be_replaced(&reason.error) => return Err(reason.error),
            Err(_) => {}
        }
    }
    let mut old = OpenOptions::new().write(true).truncate(true).open(target)?;
    fill_whole(&mut old, fill)
}

/// A temporary file in the folder of `target` with the mode and owner of what is `there`; `None` where it cannot have them.
fn beside(target: &Path, there: &Metadata) -> io::Result<Option<NamedTempFile>> {
    let new = match temporary_in(folder_of(target)) {
        Ok(new) => new,
        Err(reason) if cannot_be_replaced(&reason) => return Ok(None),
        Err(reason) => return Err(reason),
    };
    let is_alike = take_owner(new.as_file(), there) && new.as_file().set_permissions(there.permissions()).is_ok();
    Ok(is_alike.then_some(new))
}

/// Makes the file `target`.
fn create(target: &Path, fill: Fill<'_>) -> io::Result<()> {
    let mut new = temporary_in(folder_that_is_there(target)?)?;
    fill_whole(new.as_file_mut(), fill)?;
    new.persist(target).map(|_| ()).map_err(|reason| reason.error)
}

fn fill_whole(file: &mut File, fill: Fill<'_>) -> io::Result<()> {
    fill(file)?;
    file.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn folder_that_is_there(path: &Path) -> io::Result<&Path> {
    let folder = folder_of(path);
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(io::Error::new(ErrorKind::NotFound, format!("there is no folder {}", folder.display())))
}

/// Whether the error means that the file cannot be replaced because of its folder or its mount, but may still be written in place.
fn cannot_be_replaced(reason: &io::Error) -> bool {
    matches!(
        reason.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ResourceBusy | ErrorKind::CrossesDevices | ErrorKind::ReadOnlyFilesystem
    )
}

/// A file in `folder` under a temporary name, with the mode that a plain new file has. It goes when it is dropped.
pub(crate) fn temporary_in(folder: &Path) -> io::Result<NamedTempFile> {
    temporary_called(".tmp", "", folder)
}

/// As [`temporary_in`], with six letters or digits between `prefix` and `suffix`.
pub(crate) fn temporary_called(prefix: &str, suffix: &str, folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).suffix(suffix);
    if let Some(mode) = plain_mode() {
        builder.permissions(mode);
    }
    builder.tempfile_in(folder)
}

/// What a program asks for that makes a plain file; the umask takes its part.
#[cfg(unix)]
fn plain_mode() -> Option<Permissions> {
    use std::os::unix::fs::PermissionsExt;
    Some(Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn plain_mode() -> Option<Permissions> {
    None
}

/// A file without a name, for what has no room in memory. It is gone once it is closed, however the program ends.
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    folder: PathBuf,
}

impl ScratchFile {
    /// Makes one on the disk of `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder.
    pub fn create(folder: &Path) -> Result<ScratchFile> {
        let made = tempfile::tempfile_in(folder);
        let file = made.map_err(|source| Error::io("make a temporary file in", folder.display(), source))?;
        Ok(ScratchFile { file, folder: folder.to_owned() })
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|source| Error::io("write a temporary file in", self.folder.display(), source))
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(buffer));
        read.map_err(|source| Error::io("read a temporary file in", self.folder.display(), source))
    }
}

#[cfg(unix)]
fn has_other_names(there: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(there) > 1
}

#[cfg(not(unix))]
fn has_other_names(_there: &Metadata) -> bool {
    false
}

#[cfg(unix)]
fn has_same_identity(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

#[cfg(not(unix))]
fn has_same_identity(_one: &Path, _other: &Path) -> bool {
    false
}

/// Whether `new` has the owner and the group of what is `there`, if need be from now on.
#[cfg(unix)]
fn take_owner(new: &File, there: &Metadata) -> bool {
    use std::os::unix::fs::{MetadataExt, fchown};
    let is_alike = |found: Metadata| (found.uid(), found.gid()) == (there.uid(), there.gid());
    new.metadata().is_ok_and(is_alike) || fchown(new, Some(there.uid()), Some(there.gid())).is_ok()
}

#[cfg(not(unix))]
fn take_owner(_new: &File, _there: &Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub").join("file.json");
        let refusal = write_atomically(&path, b"one").unwrap_err().to_string();
        let missing = format!("there is no folder {}", path.parent().unwrap().display());
        assert!(refusal.contains(&path.display().to_string()) && refusal.ends_with(&missing), "{refusal}");
        assert!(!path.parent().unwrap().exists());
        write_with_folder(&path, b"one").unwrap();
        let mut first = File::open(&path).unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        let mut before = String::new();
        io::Read::read_to_string(&mut first, &mut before).unwrap();
        assert_eq!(before, "one", "a reader that had it open keeps what it had");
        assert!(write_atomically(folder.path(), b"three").unwrap_err().to_string().starts_with("cannot write "));
    }

    #[cfg(unix)]
    mod unix {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

        use super::super::*;

        fn mode(path: &Path) -> u32 {
            std::fs::metadata(path).unwrap().mode() & 0o7777
        }

        #[test]
        fn a_new_file_has_the_mode_of_any_new_file_and_an_old_one_keeps_its_own() {
            let folder = tempfile::tempdir().unwrap();
            let (plain, ours) = (folder.path().join("plain"), folder.path().join("ours"));
            File::create(&plain).unwrap();
            write_atomically(&ours, b"one").unwrap();
            assert_eq!(mode(&ours), mode(&plain));
            for odd in [0o600, 0o664, 0o751] {
                std::fs::set_permissions(&ours, Permissions::from_mode(odd)).unwrap();
                let inode = std::fs::metadata(&ours).unwrap().ino();
                write_atomically(&ours, b"two").unwrap();
                assert_eq!(mode(&ours), odd);
                assert_ne!(std::fs::metadata(&ours).unwrap().ino(), inode, "replaced, not overwritten");
            }
        }

        #[test]
        fn links_stay_links_whether_their_target_is_there_or_not() {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            std::fs::create_dir(at("sub")).unwrap();
            symlink("sub/target", at("first")).unwrap();
            symlink(at("first"), at("second")).unwrap();
            for text in ["made", "replaced"] {
                write_atomically(&at("second"), text.as_bytes()).unwrap();
                assert_eq!(std::fs::read_to_string(at("sub/target")).unwrap(), text);
                assert!(at("first").is_symlink() && at("second").is_symlink() && !at("sub/target").is_symlink());
            }
            symlink("round", at("round")).unwrap();
            assert!(write_atomically(&at("round"), b"").unwrap_err().to_string().contains("round"));
        }

        #[test]
        fn a_file_with_two_names_keeps_both() {
            let folder = tempfile::tempdir().unwrap();
            let (one, two) = (folder.path().join("one"), folder.path().join("two"));
            std::fs::write(&one, "a longer text").unwrap();
            std::fs::hard_link(&one, &two).unwrap();
            write_atomically(&one, b"short").unwrap();
            assert_eq!((std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap()), (b"short".to_vec(), b"short".to_vec()));
        }

        #[test]
        fn a_fifo_gets_the_text_and_stays_one() {
            use std::os::unix::fs::FileTypeExt;
            let folder = tempfile::tempdir().unwrap();
            let fifo = folder.path().join("fifo");
            assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
            let link = folder.path().join("link");
            symlink("fifo", &link).unwrap();
            for path in [&fifo, &link] {
                let reader = std::thread::spawn({
                    let fifo = fifo.clone();
                    move || std::fs::read_to_string(fifo).unwrap()
                });
                write_atomically(path, b"through").unwrap();
                assert_eq!(reader.join().unwrap(), "through");
                assert!(std::fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
            }
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else was made");
        }

        #[test]
        fn a_device_is_written_to_and_stays_one() {
            use std::os::unix::fs::FileTypeExt;
            let folder = tempfile::tempdir().unwrap();
            let device = folder.path().join("null");
            // Only root may make one, and nobody else could harm the system's own.
            let made = std::process::Command::new("mknod").arg(&device).args(["c", "1", "3"]).output().unwrap();
            if !made.status.success() {
                symlink("/dev/null", &device).unwrap();
            }
            let link = folder.path().join("link");
            symlink("null", &link).unwrap();
            for path in [&device, &link] {
                write_atomically(path, b"away").unwrap();
                assert!(std::fs::metadata(&device).unwrap().file_type().is_char_device());
            }
            assert!(link.is_symlink());
        }

        #[test]
        fn an_open_descriptor_is_written_to_where_it_stands() {
            use std::os::fd::AsRawFd;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(b"before ").unwrap();
            write_atomically(Path::new(&format!("/dev/fd/{}", file.as_raw_fd())), b"ours ").unwrap();
            file.write_all(b"after").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "before ours after");
        }

        #[test]
        fn a_file_whose_folder_takes_no_other_is_written_in_place() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            std::fs::write(&path, "a longer text").unwrap();
            std::fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).unwrap();
            let inode = std::fs::metadata(&path).unwrap().ino();
            // Root may write anywhere; then the file is replaced, with the same content in the end.
            let is_root = File::create(folder.path().join("probe")).is_ok();
            write_atomically(&path, b"short").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"short");
            assert_eq!(std::fs::metadata(&path).unwrap().ino() == inode, !is_root);
            std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        }
    }
}
