//! `tierflow launch`: a Python script over one worker or several, by the launcher of the Python package, which takes this program's place.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::platform::run_instead;

/// Pythons that are looked for, in this order, where `TIERFLOW_PYTHON` names none.
const PYTHONS: [&str; 2] = ["python3", "python"];

/// What comes after `launch`, if `arguments` (program name first) are for the launcher; it reads them itself, in Accelerate's spellings.
pub fn arguments(arguments: &[OsString]) -> Option<&[OsString]> {
    let (verb, rest) = arguments.get(1..)?.split_first()?;
    (verb == "launch").then_some(rest)
}

/// Becomes the launcher.
///
/// # Errors
/// [`Error::InvalidArgument`] where no Python has the package; [`Error::Io`] where it cannot be started.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let named = env::var_os("TIERFLOW_PYTHON").filter(|name| !name.is_empty());
    let python = match &named {
        Some(name) => Some(name.as_os_str()).filter(|name| has_package(name)),
        None => PYTHONS.iter().map(OsStr::new).find(|name| has_package(name)),
    };
    let Some(python) = python else {
        let tried = named.map_or_else(|| PYTHONS.join(" and "), |name| name.to_string_lossy().into_owned());
        let reason = format!("needs the Python package `tierflow`, which {tried} cannot import; TIERFLOW_PYTHON names the Python that can");
        return Err(Error::InvalidArgument { option: "launch".into(), reason });
    };
    let mut command = Command::new(python);
    command.args(["-m", "tierflow.launch"]).args(arguments);
    // `main` sets it for drivers, to a folder that does not exist.
    if env::var_os("XDG_RUNTIME_DIR").is_some_and(|folder| !Path::new(&folder).is_dir()) {
        command.env_remove("XDG_RUNTIME_DIR");
    }
    Err(Error::io("start", python.to_string_lossy(), run_instead(&mut command)))
}

/// Whether `python` runs, and finds the package.
fn has_package(python: &OsStr) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", "import tierflow.launch"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
