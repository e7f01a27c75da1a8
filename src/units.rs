//! Byte counts, rates and how they print. Knows no device and no file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The units of print, largest first.
const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

/// A number of bytes. Prints in binary units (`1.5 GiB`), serialises as a plain integer, is read from that or from a size
/// as people write it. Sums and products stop at the largest number instead of overflowing: sizes come from files and options,
/// and nothing has so much room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u64", try_from = "NumberOrText")]
pub struct Bytes(pub u64);

/// Whether a number is zero, for fields that are left out of JSON then.
pub(crate) fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

impl Bytes {
    /// Whether it is no byte at all.
    pub fn is_zero(&self) -> bool {
        self.0 == 0
    }

    /// Zero bytes.
    pub const ZERO: Bytes = Bytes(0);

    /// `count` KiB.
    pub const fn kib(count: u64) -> Bytes {
        Bytes(count << 10)
    }

    /// `count` MiB.
    pub const fn mib(count: u64) -> Bytes {
        Bytes(count << 20)
    }

    /// `count` GiB.
    pub const fn gib(count: u64) -> Bytes {
        Bytes(count << 30)
    }

    /// The difference, or zero where `other` is the larger.
    #[must_use]
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    /// The next size, at or above, that [`Bytes::typed`] writes without loss.
    #[must_use]
    pub fn typed_up(self) -> Bytes {
        let unit = self.typed_unit().0;
        let tenths = (u128::from(self.0) * 10).div_ceil(u128::from(unit));
        Bytes(u64::try_from(tenths * u128::from(unit) / 10).unwrap_or(u64::MAX))
    }

    /// Rounded up, as one types it: tenths of a MiB, of a KiB below that, or bytes. What is read back from the text is
    /// [`Bytes::typed_up`].
    pub fn typed(self) -> String {
        self.in_tenths(|tenfold, unit| tenfold.div_ceil(unit))
    }

    /// As [`Bytes::typed`], but rounded down.
    pub fn typed_down(self) -> String {
        self.in_tenths(|tenfold, unit| tenfold / unit)
    }

    fn in_tenths(self, divide: impl Fn(u128, u128) -> u128) -> String {
        match self.typed_unit() {
            (1, unit) => format!("{} {unit}", self.0),
            (size, unit) => {
                let tenths = divide(u128::from(self.0) * 10, size.into());
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            }
        }
    }

    /// The unit in which a size is typed. Never a GiB, whose tenths are a hundred MiB.
    fn typed_unit(self) -> (u64, &'static str) {
        UNITS[2..].iter().copied().find(|(size, _)| self.0 >= *size).unwrap_or((1, "B"))
    }

    /// The product with a count, or the largest number.
    #[must_use]
    pub const fn times(self, count: u64) -> Bytes {
        Bytes(self.0.saturating_mul(count))
    }

    /// The next multiple of `alignment`, which must not be zero; the largest number where there is none.
    #[must_use]
    pub fn align_up(self, alignment: u64) -> Bytes {
        Bytes(self.0.checked_next_multiple_of(alignment).unwrap_or(u64::MAX))
    }

    /// As one types it, without loss: `40MiB` where it is a number of up to four digits of such a unit, else in bytes.
    #[must_use]
    pub fn exact(self) -> String {
        let is_short = |size: u64| self.0.is_multiple_of(size) && (1..10_000).contains(&(self.0 / size));
        match UNITS.iter().find(|(size, _)| is_short(*size)) {
            Some((size, unit)) => format!("{}{unit}", self.0 / size),
            None => self.0.to_string(),
        }
    }

    /// The multiple of `alignment`, which must not be zero, at or below.
    #[must_use]
    pub fn align_down(self, alignment: u64) -> Bytes {
        Bytes(self.0 / alignment * alignment)
    }
}

/// `1 layer`, `2 layers`.
pub fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// `a`, `a and b`, `a, b and c`.
pub fn listed(items: &[impl AsRef<str>]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    match items.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        items => items.concat(),
    }
}

impl std::ops::Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes::ZERO, |sum, bytes| sum + bytes)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match UNITS.iter().find(|(size, _)| self.0 >= *size) {
            Some((size, unit)) => format!("{:.1} {unit}", self.0 as f64 / *size as f64),
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

/// Reads a size as Accelerate writes it: `40MiB`, `10GB`, `1.5GiB`, `512 KiB`, or plain bytes.
impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Bytes> {
        const UNITS: [(&str, u64); 9] = [
            ("tib", 1 << 40),
            ("gib", 1 << 30),
            ("mib", 1 << 20),
            ("kib", 1 << 10),
            ("tb", 1_000_000_000_000),
            ("gb", 1_000_000_000),
            ("mb", 1_000_000),
            ("kb", 1_000),
            ("b", 1),
        ];
        let invalid = || Error::InvalidArgument {
            option: "size".into(),
            reason: format!("`{text}` is not a size; write bytes, or a number with KiB, MiB, GiB, TiB, KB, MB, GB or TB (40MiB, 1.5GB)"),
        };
        let lower = text.trim().to_ascii_lowercase();
        let (number, scale) = match UNITS.iter().find_map(|(unit, scale)| Some((lower.strip_suffix(unit)?, *scale))) {
            Some(found) => found,
            None => return lower.parse().map(Bytes).map_err(|_| invalid()),
        };
        let number: f64 = number.trim().parse().map_err(|_| invalid())?;
        let bytes = number * scale as f64;
        if !bytes.is_finite() || bytes < 0.0 || bytes > (1u64 << 62) as f64 {
            return Err(invalid());
        }
        Ok(Bytes(bytes as u64))
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> u64 {
        bytes.0
    }
}

/// The two forms of a size in a file: `8589934592` and `"8GiB"`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size: bytes, or a text such as \"8GiB\"")]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberOrText> for Bytes {
    type Error = Error;

    fn try_from(size: NumberOrText) -> Result<Bytes> {
        match size {
            NumberOrText::Number(bytes) => Ok(Bytes(bytes)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

/// A transfer rate. Prints in decimal units with three significant digits (`5.20 GB/s`), as links and disks are sold.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BytesPerSec(pub f64);

impl BytesPerSec {
    /// The rate at which `bytes` passed in `seconds`; zero where no time passed.
    pub fn from_transfer(bytes: Bytes, seconds: f64) -> BytesPerSec {
        BytesPerSec(if seconds > 0.0 { bytes.0 as f64 / seconds } else { 0.0 })
    }

    /// Seconds that `bytes` take at this rate.
    pub fn secs(self, bytes: Bytes) -> f64 {
        if self.0 > 0.0 { bytes.0 as f64 / self.0 } else { 0.0 }
    }
}

impl fmt::Display for BytesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = if self.0 >= 1e9 { (self.0 / 1e9, "GB/s") } else { (self.0 / 1e6, "MB/s") };
        f.pad(&format!("{} {unit}", three_digits(value)))
    }
}

/// A rate of a model. Prints with three significant digits (`4.23 t/s`).
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct TokensPerSec(pub f64);

impl fmt::Display for TokensPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} t/s", three_digits(self.0)))
    }
}

/// A time in milliseconds with three significant digits: `30.4 ms`.
pub fn millis(secs: f64) -> String {
    format!("{} ms", three_digits(secs * 1e3))
}

/// A number with three significant digits, but no digit of a whole number left out: `0.213`, `4.23`, `42.6`, `426`, `4263`.
pub fn three_digits(value: f64) -> String {
    let magnitude = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    let n_decimals = |magnitude: f64| (2.0 - magnitude).clamp(0.0, 12.0) as usize;
    // What is rounded up to the next power of ten has a digit less behind the point.
    let scale = 10f64.powi(n_decimals(magnitude) as i32);
    let rounded = (value.abs() * scale).round() / scale;
    let is_next = rounded >= 10f64.powf(magnitude + 1.0);
    format!("{value:.*}", n_decimals(if is_next { magnitude + 1.0 } else { magnitude }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_accelerate_writes_them() {
        for (text, expected) in [
            ("40MiB", 40 << 20),
            ("20GB", 20_000_000_000),
            ("1.5GiB", 3 << 29),
            ("512 KiB", 512 << 10),
            ("1e3KB", 1_000_000),
            ("0MB", 0),
            ("123456", 123_456),
            (" 2mib", 2 << 20),
            ("17 B", 17),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(expected), "{text}");
        }
        for text in ["", "GB", "B", "-1GB", "5MBB", "nanGB", "infGB", "1e300GB", "-5", "1.5"] {
            assert!(text.parse::<Bytes>().is_err(), "{text} must be refused");
        }
    }

    #[test]
    fn sums_stop_at_the_largest_number() {
        let most = Bytes(u64::MAX);
        assert_eq!(most + Bytes(1), most);
        assert_eq!([most, Bytes(7)].into_iter().sum::<Bytes>(), most);
        assert_eq!(Bytes(1 << 60).times(16), most);
        assert_eq!(Bytes(u64::MAX - 3).align_up(256), most);
        assert_eq!(Bytes(511).align_down(256), Bytes(256));
    }

    #[test]
    fn exact_sizes_read_back_as_they_were() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1 << 10, "1KiB"),
            (40 << 20, "40MiB"),
            ((40 << 20) + 1, "41943041"),
            (3 << 29, "1536MiB"),
            (2_000_000_000, "2000000000"),
        ] {
            assert_eq!(Bytes(bytes).exact(), text);
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes));
        }
    }

    #[test]
    fn typed_sizes_read_back_as_the_next_that_can_be_typed() {
        for bytes in
            [0, 1, 1023, 1024, 1025, 112_230, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 42_257_613, (1 << 30) - 1, 5_000_000_001, 1 << 45]
        {
            let (bytes, up) = (Bytes(bytes), Bytes(bytes).typed_up());
            let step = if bytes < Bytes::kib(1) {
                0
            } else if bytes < Bytes::mib(1) {
                103
            } else {
                104_858
            };
            assert!(up >= bytes && up.0 <= bytes.0 + step, "{} became {}", bytes.0, up.0);
            assert_eq!(up.typed_up(), up);
            for text in [bytes.typed(), up.typed(), up.typed().replace(' ', "")] {
                assert_eq!(text.parse::<Bytes>().unwrap(), up, "{} prints as {text}", bytes.0);
            }
        }
        assert_eq!((Bytes(112_231).typed(), Bytes(5_000_000_001).typed()), ("109.7 KiB".into(), "4768.4 MiB".into()));
        assert_eq!((Bytes(112_231).typed_down(), Bytes(1023).typed_down()), ("109.6 KiB".into(), "1023 B".into()));
        assert_eq!(Bytes(u64::MAX).typed_up(), Bytes(u64::MAX));
    }

    #[test]
    fn sizes_in_files_are_numbers_or_texts() {
        assert_eq!(serde_json::to_string(&Bytes::gib(8)).unwrap(), "8589934592");
        for text in ["8589934592", "\"8GiB\"", "\"8589934592\""] {
            assert_eq!(serde_json::from_str::<Bytes>(text).unwrap(), Bytes::gib(8), "{text}");
        }
        for text in ["-1", "1.5", "null", "\"much\"", "[8]"] {
            assert!(serde_json::from_str::<Bytes>(text).unwrap_err().to_string().contains("size"), "{text}");
        }
    }

    #[test]
    fn rates_print_with_three_significant_digits() {
        for (value, text) in [
            (0.0, "0.00"),
            (0.000_213_4, "0.000213"),
            (0.2134, "0.213"),
            (0.9996, "1.00"),
            (4.226, "4.23"),
            (9.996, "10.0"),
            (42.61, "42.6"),
            (99.96, "100"),
            (425.6, "426"),
            (4263.0, "4263"),
            (-4.2264, "-4.23"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(three_digits(value), text);
        }
        assert_eq!(TokensPerSec(0.2134).to_string(), "0.213 t/s");
        assert_eq!((BytesPerSec(5.2e9).to_string().as_str(), BytesPerSec(2.5e5).to_string().as_str()), ("5.20 GB/s", "0.250 MB/s"));
        assert_eq!(millis(0.0304), "30.4 ms");
    }

    #[test]
    fn sizes_print_in_binary_units() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(format!("{:>10}", Bytes::mib(40)), "  40.0 MiB");
    }
}
