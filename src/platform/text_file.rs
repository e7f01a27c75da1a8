//! Small texts that a user names: JSON from a file, a pipe or `<(…)`, in the encodings that shells and editors write.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a text of at most `cap` bytes from whatever stands at `path`, a FIFO too, as [`decode_text`] does.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] for a text that is longer or in no encoding that is known.
pub fn read_text(path: &Path, cap: u64) -> Result<String> {
    let failed = |source| Error::io("read", path.display(), source);
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(cap.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    let invalid = |reason: String| Error::invalid_file(path.display().to_string(), reason);
    if bytes.len() as u64 > cap {
        return Err(invalid(format!("has more than the {cap} bytes that are allowed for this file")));
    }
    decode_text(&bytes).map_err(invalid)
}

/// The text of UTF-8 or UTF-16 with or without a byte order mark, which PowerShell writes before what it redirects. Without one,
/// UTF-16 is known by its first character, which in JSON is of ASCII.
///
/// # Errors
/// What is wrong with it.
pub fn decode_text(bytes: &[u8]) -> Result<String, String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks::<2>();
        let text = String::from_utf16(&units.iter().map(|&pair| unit(pair)).collect::<Vec<_>>());
        text.ok().filter(|_| rest.is_empty()).ok_or_else(|| "is UTF-16 that is damaged or cut short".to_owned())
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [first, 0, ..] if *first != 0 => utf16(bytes, u16::from_le_bytes),
        [0, second, ..] if *second != 0 => utf16(bytes, u16::from_be_bytes),
        _ => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let text = std::str::from_utf8(bytes).map_err(|error| format!("is no UTF-8 text: byte {} is wrong", error.valid_up_to()))?;
            Ok(text.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"\": \"cpu é 🦀\"}";

    #[test]
    fn every_encoding_of_json_is_read() {
        let utf16 = |mark: bool, to_bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            let mark = mark.then_some(0xfeff);
            mark.into_iter().chain(TEXT.encode_utf16()).flat_map(to_bytes).collect()
        };
        let with_mark = [b"\xef\xbb\xbf", TEXT.as_bytes()].concat();
        for bytes in [
            TEXT.as_bytes().to_vec(),
            with_mark,
            utf16(true, u16::to_le_bytes),
            utf16(true, u16::to_be_bytes),
            utf16(false, u16::to_le_bytes),
            utf16(false, u16::to_be_bytes),
        ] {
            assert_eq!(decode_text(&bytes).as_deref(), Ok(TEXT), "{bytes:?}");
        }
        assert_eq!(decode_text(b"").as_deref(), Ok(""));
    }

    #[test]
    fn what_is_no_text_is_reported() {
        for (bytes, part) in [(&b"abc\xe9"[..], "byte 3"), (b"\xff\xfea\0b", "cut short"), (b"\xff\xfe\x00\xd8", "damaged")] {
            assert!(decode_text(bytes).unwrap_err().contains(part), "{bytes:?}");
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TEXT).unwrap();
        assert_eq!(read_text(file.path(), TEXT.len() as u64).unwrap(), TEXT);
        let error = read_text(file.path(), TEXT.len() as u64 - 1).unwrap_err().to_string();
        assert!(error.contains("more than the 18 bytes"), "{error}");
        assert!(matches!(read_text(Path::new("/nonexistent"), 9), Err(Error::Io { .. })));
    }
}
