//! The library without the program: it builds, and what it pulls in stays small.

use std::collections::BTreeSet;

use crate::steps::{self, Failure, Result, announce};

/// Crates that the library may need, itself left out.
const MAX_CRATES: usize = 135;
/// What only the program needs.
const OF_PROGRAM: [&str; 7] = ["clap", "comfy-table", "indicatif", "rustyline", "ctrlc", "toml_edit", "ureq"];

/// Checks the library with no features, and counts the crates that it then needs.
pub fn check() -> Result<()> {
    steps::run(&mut steps::cargo(&["clippy", "--release", "--lib", "--no-default-features", "--", "-D", "warnings"]))?;
    let arguments = ["tree", "--no-default-features", "--edges", "normal", "--prefix", "none", "--package", "tierflow"];
    announce(&format!("cargo {}", arguments.join(" ")));
    let output = steps::cargo(&arguments).output().map_err(|error| Failure::new(format!("cannot start cargo tree: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `name version`, then marks; the first line is the package itself.
    let crates: BTreeSet<(&str, &str)> = text.lines().skip(1).filter_map(|line| line.split_once(' ')).map(version_of).collect();
    eprintln!("{} crates", crates.len());
    if let Some((name, _)) = crates.iter().find(|(name, _)| OF_PROGRAM.contains(name)) {
        return Err(Failure::new(format!("the library needs {name}, which only the program should")));
    }
    if crates.is_empty() || crates.len() > MAX_CRATES {
        return Err(Failure::new(format!("the library needs {} crates, where {MAX_CRATES} are the limit", crates.len())));
    }
    Ok(())
}

fn version_of<'a>((name, rest): (&'a str, &'a str)) -> (&'a str, &'a str) {
    (name, rest.split(' ').next().unwrap_or_default())
}
