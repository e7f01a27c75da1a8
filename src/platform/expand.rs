//! Paths as users write them in environment variables: `~`, `~user` and `$VARIABLE`, by the rules of Python's `os.path`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// `text` with the home folder in place of a leading `~`, that of another user in place of `~user`, and then the values of `$name` and
/// `${name}`, as Python's `expandvars(expanduser(text))` on a POSIX system. What is not known stays as it is written.
pub(crate) fn expanded(text: &OsStr, home: Option<&Path>, variable: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let bytes = with_home(bytes_of(text), home);
    from_bytes(with_variables(&bytes, variable)).into()
}

fn with_home(text: Vec<u8>, home: Option<&Path>) -> Vec<u8> {
    let Some(rest) = text.strip_prefix(b"~") else { return text };
    let (user, behind) = rest.split_at(rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len()));
    let found = if user.is_empty() { home.map(Path::to_owned) } else { home_of(user) };
    let Some(mut path) = found.map(|found| bytes_of(found.as_os_str())) else { return text };
    while path.last() == Some(&b'/') {
        path.pop();
    }
    path.extend_from_slice(behind);
    if path.is_empty() { b"/".to_vec() } else { path }
}

fn with_variables(text: &[u8], variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<u8> {
    let mut written = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'$') {
        let (before, from) = rest.split_at(at);
        written.extend_from_slice(before);
        let (name, len) = name_after(&from[1..]);
        let value = std::str::from_utf8(name).ok().filter(|name| !name.is_empty()).and_then(variable);
        match value {
            Some(value) => written.extend(bytes_of(&value)),
            None => written.extend_from_slice(&from[..1 + len]),
        }
        rest = &from[1 + len..];
    }
    written.extend_from_slice(rest);
    written
}

/// The name that stands behind a `$`, and how many bytes it takes there.
fn name_after(text: &[u8]) -> (&[u8], usize) {
    if let Some(inner) = text.strip_prefix(b"{") {
        return match inner.iter().position(|byte| *byte == b'}') {
            Some(end) => (&inner[..end], end + 2),
            None => (b"", 0),
        };
    }
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').unwrap_or(text.len());
    (&text[..end], end)
}

#[cfg(unix)]
fn bytes_of(text: &OsStr) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(text).to_vec()
}

#[cfg(unix)]
fn from_bytes(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

#[cfg(not(unix))]
fn bytes_of(text: &OsStr) -> Vec<u8> {
    text.to_string_lossy().into_owned().into_bytes()
}

#[cfg(not(unix))]
fn from_bytes(bytes: Vec<u8>) -> OsString {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// The home folder of `user`, as the system's list of users has it.
#[cfg(unix)]
fn home_of(user: &[u8]) -> Option<PathBuf> {
    /// Larger than an entry of any list of users.
    const ENTRY_BYTES: usize = 64 << 10;
    let name = std::ffi::CString::new(user).ok()?;
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut texts = vec![0; ENTRY_BYTES];
    let mut found = std::ptr::null_mut();
    #[expect(unsafe_code, reason = "the standard library knows the home of the program's own user alone")]
    // SAFETY: every pointer is to memory of our own that outlives the call, and the length is that of `texts`.
    let failed = unsafe { libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), texts.as_mut_ptr(), texts.len(), &raw mut found) };
    if failed != 0 || found.is_null() {
        return None;
    }
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: the call succeeded, so `found` is `entry`, which it filled, and whose texts end in zero and lie in `texts`.
    let home = unsafe { std::ffi::CStr::from_ptr((*found).pw_dir) };
    Some(from_bytes(home.to_bytes().to_vec()).into())
}

#[cfg(not(unix))]
fn home_of(_user: &[u8]) -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> String {
        let variable = |name: &str| match name {
            "HOME" => Some("/h/me".into()),
            "X_1" => Some("$HOME".into()),
            "EMPTY" => Some("".into()),
            _ => None,
        };
        expanded(OsStr::new(text), Some(Path::new("/h/me/")), &variable).to_str().unwrap().to_owned()
    }

    #[test]
    fn paths_are_expanded_as_python_expands_them() {
        // Each by CPython 3.11: expandvars(expanduser(text)) with HOME=/h/me, X_1=$HOME, EMPTY=.
        for (text, expected) in [
            ("/plain", "/plain"),
            ("~", "/h/me"),
            ("~/x", "/h/me/x"),
            ("x/~", "x/~"),
            ("$HOME/hfx", "/h/me/hfx"),
            ("${HOME}hfx", "/h/mehfx"),
            ("$HOME$HOME", "/h/me/h/me"),
            ("$X_1/a", "$HOME/a"),
            ("a$EMPTY-b", "a-b"),
            ("$NONE/x", "$NONE/x"),
            ("${NONE}/x", "${NONE}/x"),
            ("${HOME", "${HOME"),
            ("$", "$"),
            ("$$HOME", "$/h/me"),
            ("${}x", "${}x"),
            ("~no-such-user-here/x", "~no-such-user-here/x"),
        ] {
            assert_eq!(expand(text), expected, "{text}");
        }
        assert_eq!(expanded(OsStr::new("~/x"), None, &|_| None), Path::new("~/x"));
        assert_eq!(expanded(OsStr::new("~"), Some(Path::new("/")), &|_| None), Path::new("/"));
    }

    #[cfg(unix)]
    #[test]
    fn another_user_has_a_home_and_bytes_stay_what_they_are() {
        assert_ne!(expand("~root/x"), "~root/x");
        assert!(expand("~root/x").ends_with("/x"));
        let latin_1 = from_bytes(b"$V/caf\xe9".to_vec());
        let value = |_: &str| Some(from_bytes(b"/\xff".to_vec()));
        assert_eq!(bytes_of(expanded(&latin_1, None, &value).as_os_str()), b"/\xff/caf\xe9");
    }
}
