//! The libraries that a bare machine may lack: Vulkan's loader, and what NVIDIA's driver links beside its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine;
use crate::steps::{self, Failure, Result};

/// Without it nothing finds an adapter.
const LOADER: &str = "libvulkan.so.1";
/// Libraries and the Debian packages that hold them.
const LIBRARIES: [(&str, &str); 11] = [
    (LOADER, "libvulkan1"),
    ("libGLdispatch.so.0", "libglvnd0"),
    ("libEGL.so.1", "libegl1"),
    ("libGLX.so.0", "libglx0"),
    ("libX11.so.6", "libx11-6"),
    ("libXext.so.6", "libxext6"),
    ("libxcb.so.1", "libxcb1"),
    ("libXau.so.6", "libxau6"),
    ("libXdmcp.so.6", "libxdmcp6"),
    ("libbsd.so.0", "libbsd0"),
    ("libmd.so.0", "libmd0"),
];
const FOLDERS: [&str; 4] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"];

/// Copies the libraries into `folder`: those of this machine, and the others out of Debian's packages, which are not installed.
/// What cannot be had is told; the machine with the GPU must have it.
///
/// # Errors
/// Where the loader cannot be had, or `folder` cannot be written.
pub(super) fn collect(folder: &Path) -> Result<()> {
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        LIBRARIES.into_iter().map(|(name, package)| (name, package, find(Path::new("/"), name))).partition(|(.., path)| path.is_some());
    let packages: Vec<&str> = elsewhere.iter().map(|(_, package, _)| *package).collect();
    let unpacked = if packages.is_empty() { None } else { unpack(&packages) };
    let fetched = elsewhere.into_iter().map(|(name, package, _)| {
        let path = unpacked.as_ref().and_then(|root| find(root.path(), name));
        (name, package, path)
    });
    for (name, package, path) in here.into_iter().chain(fetched) {
        let Some(path) = path else {
            if name == LOADER {
                machine::install(&[package], "Vulkan's loader libvulkan.so.1")?;
                return collect(folder);
            }
            eprintln!("{name} ({package}) is missing here and cannot be fetched: the machine with the GPU must have it");
            continue;
        };
        // A copy of what a link points to.
        fs::copy(&path, folder.join(name)).map_err(|error| Failure::new(format!("cannot copy {}: {error}", path.display())))?;
    }
    Ok(())
}

fn find(root: &Path, name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| root.join(folder).join(name)).find(|path| path.exists())
}

/// Fetches and unpacks Debian packages into a folder that is gone when its holder is.
fn unpack(packages: &[&str]) -> Option<tempfile::TempDir> {
    if !steps::succeeds("apt-get", &["--version"]) || !steps::succeeds("dpkg-deb", &["--version"]) {
        return None;
    }
    let folder = tempfile::tempdir().ok()?;
    // Each alone: one that is unknown would keep the others away.
    for package in packages {
        let mut download = Command::new("apt-get");
        let _ = steps::run(download.args(["download", "--quiet", package]).current_dir(folder.path()).stdout(std::io::stderr()));
    }
    for entry in fs::read_dir(folder.path()).ok()?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            let _ = steps::run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(folder.path()));
        }
    }
    Some(folder)
}
