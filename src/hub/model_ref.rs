//! How a user names a model on a hub: `ORG/NAME`, `ORG/NAME:Q4_0`, `ORG/NAME:file.gguf`. Knows no server and no cache.

use std::fmt;

use crate::error::{Error, Result};

/// A model on a hub, and which of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    /// `ORG/NAME`.
    pub repo: String,
    /// Branch, tag or commit; `main` where none is named.
    pub revision: String,
    /// A quantisation (`Q4_0`) or a file of the repository; `None` leaves the choice to tierflow.
    pub wanted: Option<String>,
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wanted {
            Some(wanted) => write!(f, "{}:{wanted}", self.repo),
            None => f.write_str(&self.repo),
        }
    }
}

/// Reads `ORG/NAME[:QUANT-or-FILE]`, also as `hf.co/…` or `https://huggingface.co/…` as the hub's pages show it.
///
/// # Errors
/// [`Error::InvalidArgument`] where a part is missing or holds characters that no hub allows.
pub fn parse_model_ref(text: &str) -> Result<ModelRef> {
    let invalid = |reason: &str| Error::InvalidArgument {
        option: "model".into(),
        reason: format!("`{text}` {reason}; write ORG/NAME, ORG/NAME:Q8_0 or ORG/NAME:FILE"),
    };
    let bare = text.strip_prefix("https://").unwrap_or(text);
    let bare = ["hf.co/", "huggingface.co/"].iter().find_map(|host| bare.strip_prefix(host)).unwrap_or(bare);
    let (repo, wanted) = match bare.split_once(':') {
        Some((_, "")) => return Err(invalid("ends in a colon")),
        Some((repo, wanted)) => (repo, Some(wanted)),
        None => (bare, None),
    };
    let parts: Vec<&str> = repo.split('/').collect();
    if parts.len() != 2 || !parts.iter().all(|part| is_repo_part(part)) {
        return Err(invalid("is no name on a hub"));
    }
    if wanted.is_some_and(|wanted| !is_safe_file_name(wanted)) {
        return Err(invalid("names no file inside the repository"));
    }
    Ok(ModelRef { repo: repo.into(), revision: "main".into(), wanted: wanted.map(str::to_owned) })
}

/// Whether `text` reads as `ORG/NAME[:…]` and cannot be meant as a path (`./x/y`, `/x/y`, `x/y/z`).
pub fn looks_like_model_ref(text: &str) -> bool {
    parse_model_ref(text).is_ok()
}

/// The hub's rule for the two parts of a repository id: letters, digits, `-`, `_`, `.`; no `..`, no `--`, at most 96.
fn is_repo_part(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 96
        && !part.starts_with(['.', '-'])
        && !part.ends_with(['.', '-'])
        && !part.contains("..")
        && !part.contains("--")
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Whether a file name from a server or a user stays inside the folder it is joined to, on every system.
pub(super) fn is_safe_file_name(name: &str) -> bool {
    let is_safe_part = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.ends_with(['.', ' ']);
    name.len() <= 1024
        && name.split('/').all(is_safe_part)
        && !name.chars().any(|letter| letter.is_control() || "\\:*?\"<>|".contains(letter))
}

/// Whether a revision can stand in an address and as a file under `refs/`: a branch, a tag, a commit, `refs/pr/1`.
pub(super) fn is_safe_revision(revision: &str) -> bool {
    is_safe_file_name(revision) && !revision.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_the_hub_shows_them() {
        for (text, repo, wanted) in [
            ("org/name", "org/name", None),
            ("org/name:Q4_0", "org/name", Some("Q4_0")),
            ("hf.co/org/na.me-1B:sub/m.gguf", "org/na.me-1B", Some("sub/m.gguf")),
            ("https://huggingface.co/o/n", "o/n", None),
        ] {
            let read = parse_model_ref(text).unwrap();
            assert_eq!((read.repo.as_str(), read.wanted.as_deref(), read.revision.as_str()), (repo, wanted, "main"), "{text}");
        }
        for text in
            ["", "name", "a/b/c", "./b", "/a/b", "../b", "a/..", "a/b:", "a/b:../x", "a/b:/x", "a/b:c\\d", "a b/c", "a--b/c", "a/b.."]
        {
            assert!(parse_model_ref(text).is_err(), "{text} must be refused");
        }
    }

    #[test]
    fn file_names_stay_inside() {
        for name in ["config.json", "sub/model-00001-of-00002.safetensors", "a b.txt", "..a/b"] {
            assert!(is_safe_file_name(name), "{name}");
        }
        for name in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "C:x", "a\\b", "a\0b", "a/./b", "a/b.", "a\nb"] {
            assert!(!is_safe_file_name(name), "{name:?} must be refused");
        }
    }
}
