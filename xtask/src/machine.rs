//! What the machine lacks for a run: an adapter, a package. Installs on Debian, and elsewhere says what to install.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::{self, Failure, Result, announce};

/// The packages that give Debian a Vulkan adapter in software.
const LAVAPIPE: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// Where Debian puts the browsers.
const BROWSER: &str = "/usr/bin/chromium";
const FIREFOX: &str = "/usr/bin/firefox-esr";

/// The oldest Node.js with what the tests use: `File`, `crypto`, what Playwright needs.
const OLDEST_NODE: u32 = 20;

/// The package of npm that brings Node.js itself.
const NEWER_NODE: &str = "node@22";

/// Folders in which Vulkan drivers announce themselves.
const DRIVER_FOLDERS: [&str; 4] =
    ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/usr/local/etc/vulkan/icd.d"];

/// Makes sure that wgpu has an adapter to find. macOS and Windows bring one; on Linux it takes a Vulkan driver.
pub fn ensure_adapter() -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    announce("looking for a Vulkan driver");
    if let Some(driver) = vulkan_driver() {
        eprintln!("found {driver}");
        return Ok(());
    }
    eprintln!("found none; lavapipe, Mesa's Vulkan driver in software, will do");
    install(&LAVAPIPE, "a Vulkan driver (that of your GPU, or Mesa's lavapipe) and its loader libvulkan.so.1")
}

/// The Node.js that runs the tests of package and page. Where the system's is too old, as Debian 12's, npm fetches one into the
/// folder of build outputs.
pub fn ensure_node() -> Result<PathBuf> {
    ensure_programs(&[("nodejs", "node"), ("npm", "npm")], "Node.js with npm")?;
    if node_version("node").is_some_and(|version| version >= OLDEST_NODE) {
        return Ok("node".into());
    }
    let folder = steps::target().join("node");
    let node = folder.join("node_modules/.bin/node");
    if !steps::succeeds(&node.to_string_lossy(), &["--version"]) {
        eprintln!("found Node.js older than {OLDEST_NODE}");
        let arguments = ["install", "--no-save", "--no-audit", "--no-fund", NEWER_NODE, "--prefix"];
        steps::run(Command::new("npm").args(arguments).arg(&folder).stdout(std::io::stderr())).map_err(|failure| Failure {
            text: format!("{}; this needs Node.js {OLDEST_NODE} or newer", failure.text),
            exit_code: failure.exit_code,
        })?;
    }
    Ok(node)
}

/// The major version of a Node.js that starts.
fn node_version(program: &str) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Makes sure that there is a Chromium to test the page in.
pub fn ensure_browser() -> Result<()> {
    ensure_programs(&[("chromium", BROWSER)], "Chromium at /usr/bin/chromium")
}

/// Makes sure that there is a Firefox to test the page in as well.
pub fn ensure_firefox() -> Result<()> {
    ensure_programs(&[("firefox-esr", FIREFOX)], "Firefox at /usr/bin/firefox-esr")
}

/// Installs the packages whose programs do not start. `need` is for other systems than Debian.
fn ensure_programs(programs: &[(&'static str, &str)], need: &str) -> Result<()> {
    announce(&format!("looking for {need}"));
    let is_missing = |&&(_, program): &&(&str, &str)| !steps::succeeds(program, &["--version"]);
    let missing: Vec<&str> = programs.iter().filter(is_missing).map(|(package, _)| *package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing, need) }
}

/// A driver that will work: lavapipe, or another one beside a GPU's device file.
fn vulkan_driver() -> Option<String> {
    let has_loader = ["x86_64-linux-gnu", "aarch64-linux-gnu", "lib64", "lib", "."]
        .iter()
        .flat_map(|folder| [format!("/usr/lib/{folder}/libvulkan.so.1"), format!("/usr/{folder}/libvulkan.so.1")])
        .any(|path| Path::new(&path).exists());
    if let Ok(named) = std::env::var("VK_DRIVER_FILES").or_else(|_| std::env::var("VK_ICD_FILENAMES")) {
        return Some(named).filter(|_| has_loader);
    }
    let drivers: Vec<String> = DRIVER_FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path().display().to_string())))
        .collect();
    let has_gpu = std::fs::read_dir("/dev/dri").is_ok_and(|mut entries| entries.next().is_some()) || Path::new("/dev/nvidia0").exists();
    let lavapipe = drivers.iter().find(|path| path.contains("lvp_icd"));
    let driver = lavapipe.or(if has_gpu { drivers.first() } else { None });
    driver.filter(|_| has_loader).cloned()
}

/// Installs Debian packages, as root or through sudo. `need` says in words what is missing, for other systems.
pub fn install(packages: &[&str], need: &str) -> Result<()> {
    let by_hand = format!(
        "this needs {need}; on Debian or Ubuntu: apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !Path::new("/etc/debian_version").exists() || !steps::succeeds("apt-get", &["--version"]) {
        return Err(Failure::new(by_hand));
    }
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if !is_root && !steps::succeeds("sudo", &["-n", "true"]) {
        return Err(Failure::new(format!("{by_hand} (as root: this user is not, and may not use sudo without a password)")));
    }
    let apt_get = |arguments: &[&str]| {
        let mut command = if is_root { Command::new("apt-get") } else { Command::new("sudo") };
        if !is_root {
            command.args(["-n", "apt-get"]);
        }
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        // What the caller prints on stdout is for reading; apt's talk is not.
        steps::run(command.stdout(std::io::stderr()))
    };
    // Stale lists of one mirror must not stop an installation that the others can serve.
    let updated = apt_get(&["update"]);
    let arguments = [&["install", "-y", "--no-install-recommends"], packages].concat();
    apt_get(&arguments).map_err(|failure| {
        let network = if updated.is_err() { " (the package lists could not be fetched either: is there a network?)" } else { "" };
        Failure { text: format!("{}{network}; {by_hand}", failure.text), exit_code: failure.exit_code }
    })
}

/// Gives Mesa the folder that it complains about where no desktop has made one.
pub fn ensure_runtime_folder(command: &mut Command) {
    if std::env::var_os("XDG_RUNTIME_DIR").is_some() {
        return;
    }
    let folder = steps::root().join("target").join("runtime");
    let made = std::fs::create_dir_all(&folder);
    #[cfg(unix)]
    let made = made.and_then(|()| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))
    });
    if made.is_ok() {
        command.env("XDG_RUNTIME_DIR", folder);
    }
}
