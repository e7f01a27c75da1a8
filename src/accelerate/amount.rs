//! Numbers as Python, Accelerate's language, keeps them. Sizes begin as integers and turn into floats where a width is a fraction of a byte
//! (a bool is an eighth, a custom int4 a half); from then on they print with a decimal point and round as floats do.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub};

use crate::units::Bytes;

/// Integers up to this are floats without loss.
const EXACT_MAX: u128 = 1 << 53;

/// A number of bytes, perhaps negative: room that is left, or a difference. Never NaN. Integers stop at the largest number instead of
/// overflowing. Compares by value, whatever the kind: `Int(1) == Float(1.0)`.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    /// Whole bytes.
    Int(i128),
    /// A size that went through a fraction of a byte, whole again or not.
    Float(f64),
}

impl Amount {
    /// Nothing.
    pub const ZERO: Amount = Amount::Int(0);

    /// `n_values` times a width that is a fraction of a byte.
    pub(super) fn fraction(n_values: i128, width: f64) -> Amount {
        Amount::Float(n_values as f64 * width)
    }

    /// The quotient, rounded down; keeps its kind. `divisor` is at least one.
    pub(super) fn floor_div(self, divisor: usize) -> Amount {
        match self {
            Amount::Int(value) => Amount::Int(value.div_euclid(divisor.max(1) as i128)),
            Amount::Float(value) => Amount::Float((value / divisor.max(1) as f64).floor()),
        }
    }

    /// As a float, rounded to the nearest.
    pub fn as_f64(self) -> f64 {
        match self {
            Amount::Int(value) => value as f64,
            Amount::Float(value) => value,
        }
    }

    /// Rounded up to whole bytes; 0 where it is negative.
    pub fn to_bytes(self) -> Bytes {
        match self {
            Amount::Int(value) => Bytes(u64::try_from(value.max(0)).unwrap_or(u64::MAX)),
            Amount::Float(value) => Bytes(value.ceil() as u64),
        }
    }
}

impl From<Bytes> for Amount {
    fn from(bytes: Bytes) -> Amount {
        Amount::Int(i128::from(bytes.0))
    }
}

impl Add for Amount {
    type Output = Amount;
    fn add(self, other: Amount) -> Amount {
        match (self, other) {
            (Amount::Int(left), Amount::Int(right)) => Amount::Int(left.saturating_add(right)),
            _ => Amount::Float(self.as_f64() + other.as_f64()),
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        *self = *self + other;
    }
}

impl Sub for Amount {
    type Output = Amount;
    fn sub(self, other: Amount) -> Amount {
        match (self, other) {
            (Amount::Int(left), Amount::Int(right)) => Amount::Int(left.saturating_sub(right)),
            _ => Amount::Float(self.as_f64() - other.as_f64()),
        }
    }
}

impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Amount>>(iter: I) -> Amount {
        iter.fold(Amount::ZERO, Amount::add)
    }
}

impl Ord for Amount {
    fn cmp(&self, other: &Amount) -> Ordering {
        match (*self, *other) {
            (Amount::Int(left), Amount::Int(right)) => left.cmp(&right),
            (Amount::Float(left), Amount::Float(right)) => compare_floats(left, right),
            (Amount::Int(left), Amount::Float(right)) => compare_mixed(left, right),
            (Amount::Float(left), Amount::Int(right)) => compare_mixed(right, left).reverse(),
        }
    }
}

/// Zero has no sign here.
fn compare_floats(left: f64, right: f64) -> Ordering {
    (left + 0.0).total_cmp(&(right + 0.0))
}

/// By exact value: a large integer is not rounded to a float first.
fn compare_mixed(int: i128, float: f64) -> Ordering {
    if int.unsigned_abs() <= EXACT_MAX { compare_floats(int as f64, float) } else { int.cmp(&(float as i128)) }
}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Amount) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Amount {
    fn eq(&self, other: &Amount) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Amount {}

/// As Python prints it: `12`, `12.0`, `1e+16`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Int(value) => f.pad(&value.to_string()),
            // Exponents, which begin at 1e16, carry their sign there; sizes have none below zero.
            Amount::Float(value) => f.pad(&format!("{value:?}").replace('e', "e+")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_mix_as_in_python() {
        assert_eq!((Amount::Int(7) + Amount::Float(0.5)).to_string(), "7.5");
        assert_eq!((Amount::Float(8.0) - Amount::Int(1)).to_string(), "7.0");
        assert_eq!((Amount::Int(7) + Amount::Int(1)).to_string(), "8");
        assert_eq!(Amount::Float(1e16).to_string(), "1e+16");
        assert_eq!(Amount::Float(9.5).floor_div(2).to_string(), "4.0");
        assert_eq!(Amount::Int(-9).floor_div(2), Amount::Int(-5));
    }

    #[test]
    fn comparisons_are_exact() {
        let large = 1i128 << 60;
        assert!(Amount::Int(large + 1) > Amount::Float(large as f64));
        assert!(Amount::Float(0.5) > Amount::Int(0) && Amount::Float(0.5) < Amount::Int(1));
        assert!(Amount::Float(-0.0) == Amount::Int(0));
        assert_eq!(Amount::Int(i128::MAX) + Amount::Int(1), Amount::Int(i128::MAX));
    }

    #[test]
    fn bytes_hold_the_whole_amount() {
        assert_eq!(Amount::Float(0.125).to_bytes(), Bytes(1));
        assert_eq!(Amount::Int(-3).to_bytes(), Bytes::ZERO);
        assert_eq!(Amount::Int(i128::MAX).to_bytes(), Bytes(u64::MAX));
    }
}
