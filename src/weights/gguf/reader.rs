//! A cursor over the head of a GGUF file: little-endian values, each checked against what is left of the file. Knows no key and no tensor.

use super::metadata::MetaValue;
use crate::error::{Error, Result};
use crate::platform::ByteSource;

/// Bytes asked of the source at once.
const BUFFER_BYTES: u64 = 256 << 10;
/// Host memory that all metadata together may take: ten times what the largest vocabularies need.
const MAX_HELD_BYTES: u64 = 512 << 20;

/// Reads forward through a source.
pub(super) struct Reader<'a> {
    source: &'a dyn ByteSource,
    position: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    buffer_start: u64,
    held_bytes: u64,
}

impl<'a> Reader<'a> {
    /// A reader at the first byte.
    pub(super) fn new(source: &'a dyn ByteSource) -> Reader<'a> {
        Reader { source, position: 0, buffer: Vec::new(), buffer_start: 0, held_bytes: 0 }
    }

    /// Where the next byte comes from.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes from here to the end of the file.
    pub(super) fn left(&self) -> u64 {
        self.source.len().saturating_sub(self.position)
    }

    /// Bytes of the whole file.
    pub(super) fn file_size(&self) -> u64 {
        self.source.len()
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &str {
        self.source.path()
    }

    /// An [`Error::InvalidFile`] about this file.
    pub(super) fn error(&self, text: impl Into<String>) -> Error {
        Error::invalid_file(self.source.path(), text)
    }

    /// The next `N` bytes; `what` is named where the file ends before them.
    pub(super) fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut value = [0; N];
        self.fill(&mut value, what)?;
        Ok(value)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A length-prefixed name of at most `limit` bytes, which must be UTF-8.
    pub(super) fn string(&mut self, limit: u64, what: &str) -> Result<String> {
        let at = self.position;
        String::from_utf8(self.counted_bytes(limit, what)?).map_err(|_| self.error(format!("{what} at byte {at} is not UTF-8")))
    }

    /// A value that is text. What is not UTF-8 in it (a licence's accents in Latin-1) becomes U+FFFD: few texts matter to a run.
    fn text(&mut self, what: &str) -> Result<String> {
        let at = self.position;
        Ok(String::from_utf8(self.counted_bytes(MAX_STRING_BYTES, what)?).unwrap_or_else(|error| {
            tracing::info!("{}: {what} at byte {at} is not UTF-8 and is read with U+FFFD in place of what is not", self.path());
            String::from_utf8_lossy(error.as_bytes()).into_owned()
        }))
    }

    /// The bytes behind their number, of which there are `limit` at most.
    fn counted_bytes(&mut self, limit: u64, what: &str) -> Result<Vec<u8>> {
        let at = self.position;
        let len = self.u64(what)?;
        if len > limit {
            return Err(self.error(format!("{what} at byte {at} claims {len} bytes; {limit} are allowed")));
        }
        if len > self.left() {
            return Err(self.error(format!("is cut short: {what} at byte {at} has {len} bytes, {} are left in the file", self.left())));
        }
        self.hold(len.saturating_add(24), what)?;
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| self.error(format!("{what} at byte {at} is too long")))?];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    /// How many of something follow, each at least `least_bytes` long in the file.
    pub(super) fn count(&mut self, least_bytes: u64, what: &str) -> Result<u64> {
        let count = self.u64(what)?;
        if count > self.left() / least_bytes {
            let (size, least) = (self.source.len(), count.saturating_mul(least_bytes));
            // What no whole file could have is a lie.
            let reason = if least > MAX_HELD_BYTES {
                format!("claims {count} {what}, more than the file's {size} bytes can hold")
            } else {
                format!("is cut short: {count} {what} take {least} bytes at least, of which its {size} bytes have {}", self.left())
            };
            return Err(self.error(reason));
        }
        Ok(count)
    }

    /// One metadata value of ggml's type `kind`.
    pub(super) fn value(&mut self, kind: u32, what: &str) -> Result<MetaValue> {
        self.hold(64, what)?;
        Ok(match kind {
            TYPE_STRING => MetaValue::String(self.text(what)?),
            TYPE_ARRAY => self.array(what)?,
            TYPE_BOOL => MetaValue::Bool(self.bool(what)?),
            TYPE_F32 | TYPE_F64 => MetaValue::Float(self.float(kind, what)?),
            TYPE_U64 => MetaValue::Unsigned(self.u64(what)?),
            _ => match self.integer(kind, what)? {
                value if is_signed(kind) => MetaValue::Signed(value),
                value => MetaValue::Unsigned(value.cast_unsigned()),
            },
        })
    }

    fn array(&mut self, what: &str) -> Result<MetaValue> {
        let kind = self.u32(what)?;
        let least_bytes = element_bytes(kind).ok_or_else(|| self.error(format!("{what} is an array of the unsupported type {kind}")))?;
        let n = self.count(least_bytes, &format!("elements in {what}"))?;
        // What one element takes in memory; a text's own bytes are counted as they are read.
        self.hold(n.saturating_mul(if kind == TYPE_BOOL { 1 } else { 8 }), what)?;
        Ok(match kind {
            TYPE_STRING => MetaValue::Strings(collect(n, || self.text(what))?),
            TYPE_BOOL => MetaValue::Bools(collect(n, || self.bool(what))?),
            TYPE_F32 | TYPE_F64 => MetaValue::Floats(collect(n, || self.float(kind, what).map(|value| value as f32))?),
            _ => MetaValue::Integers(collect(n, || self.integer(kind, what))?),
        })
    }

    fn bool(&mut self, what: &str) -> Result<bool> {
        match self.bytes::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.error(format!("{what} is a bool of value {other}"))),
        }
    }

    fn float(&mut self, kind: u32, what: &str) -> Result<f64> {
        if kind == TYPE_F64 { self.bytes(what).map(f64::from_le_bytes) } else { self.bytes(what).map(|b| f64::from(f32::from_le_bytes(b))) }
    }

    fn integer(&mut self, kind: u32, what: &str) -> Result<i64> {
        Ok(match kind {
            TYPE_U8 => i64::from(self.bytes::<1>(what)?[0]),
            TYPE_I8 => i64::from(i8::from_le_bytes(self.bytes(what)?)),
            TYPE_U16 => i64::from(u16::from_le_bytes(self.bytes(what)?)),
            TYPE_I16 => i64::from(i16::from_le_bytes(self.bytes(what)?)),
            TYPE_U32 => i64::from(self.u32(what)?),
            TYPE_I32 => i64::from(i32::from_le_bytes(self.bytes(what)?)),
            TYPE_I64 => i64::from_le_bytes(self.bytes(what)?),
            TYPE_U64 => {
                let value = self.u64(what)?;
                i64::try_from(value).map_err(|_| self.error(format!("{what} holds {value}, which is out of range")))?
            }
            _ => return Err(self.error(format!("{what} has the unknown type {kind}"))),
        })
    }

    /// Counts memory that a value will take, and refuses what would take too much.
    pub(super) fn hold(&mut self, bytes: u64, what: &str) -> Result<()> {
        self.held_bytes = self.held_bytes.saturating_add(bytes);
        if self.held_bytes > MAX_HELD_BYTES {
            return Err(self.error(format!("its metadata takes more than {} MiB at {what}", MAX_HELD_BYTES >> 20)));
        }
        Ok(())
    }

    fn fill(&mut self, target: &mut [u8], what: &str) -> Result<()> {
        let wanted = target.len() as u64;
        if wanted > self.left() {
            let needed = format!("{wanted} bytes are needed at byte {}, {} are left", self.position, self.left());
            let reason = format!("is cut short: it ends within {what}: {needed}");
            return Err(self.error(reason));
        }
        if wanted > BUFFER_BYTES {
            self.source.read_at(self.position, target)?;
        } else {
            target.copy_from_slice(self.buffered(wanted)?);
        }
        self.position += wanted;
        Ok(())
    }

    /// The next `wanted` bytes, which the file has and the buffer can hold.
    fn buffered(&mut self, wanted: u64) -> Result<&[u8]> {
        let inside = self.position - self.buffer_start;
        if inside.saturating_add(wanted) > self.buffer.len() as u64 {
            self.buffer.resize(BUFFER_BYTES.min(self.left()) as usize, 0);
            self.buffer_start = self.position;
            self.source.read_at(self.position, &mut self.buffer)?;
        }
        let start = (self.position - self.buffer_start) as usize;
        match self.buffer.get(start..start + wanted as usize) {
            Some(bytes) => Ok(bytes),
            None => Err(Error::invalid_file(self.source.path(), "ends early")),
        }
    }
}

const MAX_STRING_BYTES: u64 = 64 << 20;

// `enum gguf_type` of ggml's gguf.h.
const TYPE_U8: u32 = 0;
const TYPE_I8: u32 = 1;
const TYPE_U16: u32 = 2;
const TYPE_I16: u32 = 3;
pub(super) const TYPE_U32: u32 = 4;
pub(super) const TYPE_I32: u32 = 5;
pub(super) const TYPE_F32: u32 = 6;
pub(super) const TYPE_BOOL: u32 = 7;
pub(super) const TYPE_STRING: u32 = 8;
pub(super) const TYPE_ARRAY: u32 = 9;
pub(super) const TYPE_U64: u32 = 10;
pub(super) const TYPE_I64: u32 = 11;
const TYPE_F64: u32 = 12;

fn is_signed(kind: u32) -> bool {
    matches!(kind, TYPE_I8 | TYPE_I16 | TYPE_I32 | TYPE_I64)
}

/// Least bytes of an array element in the file; `None` for what cannot be an element (an array, too: nobody writes them nested).
fn element_bytes(kind: u32) -> Option<u64> {
    Some(match kind {
        TYPE_U8 | TYPE_I8 | TYPE_BOOL => 1,
        TYPE_U16 | TYPE_I16 => 2,
        TYPE_U32 | TYPE_I32 | TYPE_F32 => 4,
        TYPE_U64 | TYPE_I64 | TYPE_F64 | TYPE_STRING => 8,
        _ => return None,
    })
}

fn collect<T>(n: u64, mut next: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..n).map(|_| next()).collect()
}
