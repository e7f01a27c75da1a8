//! The rules of a grammar over bytes, in one list, and the bytes of sets of characters.

/// A step of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// One byte of that set.
    Byte(u32),
    /// All of a rule.
    Rule(u32),
    /// The alternative is over.
    End,
}

/// A set of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct ByteSet([u64; 4]);

/// A grammar.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// All alternatives, one after the other, each up to its [`Element::End`].
    pub(super) elements: Vec<Element>,
    /// Where the alternatives of each rule begin.
    pub(super) alternatives: Vec<Vec<u32>>,
    pub(super) sets: Vec<ByteSet>,
    /// The rule that an answer must be.
    pub(super) root: u32,
}

impl ByteSet {
    pub(super) fn insert(&mut self, first: u8, last: u8) {
        (first..=last).for_each(|byte| self.0[usize::from(byte / 64)] |= 1 << (byte % 64));
    }

    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] >> (byte % 64) & 1 == 1
    }
}

/// Scalar values of characters, all that are not in these ranges. Ranges may overlap.
pub(super) fn complement(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let (mut rest, mut next) = (Vec::new(), 0);
    for (first, last) in ranges {
        if first > next {
            rest.push((next, first - 1));
        }
        next = next.max(last.saturating_add(1));
    }
    if next <= char::MAX as u32 {
        rest.push((next, char::MAX as u32));
    }
    rest
}

/// The scalar values from which on UTF-8 takes more bytes, and those that it leaves out.
const PARTS: [(u32, u32); 5] = [(0, 0x7f), (0x80, 0x7ff), (0x800, 0xd7ff), (0xe000, 0xffff), (0x1_0000, 0x10_ffff)];

/// The UTF-8 of the characters in `ranges`: sequences of ranges of bytes, any of which is one of them.
pub(super) fn utf8_of(ranges: &[(u32, u32)]) -> Vec<Vec<(u8, u8)>> {
    let mut sequences = Vec::new();
    for &(first, last) in ranges {
        for (from, to) in PARTS {
            if first.max(from) <= last.min(to) {
                split(first.max(from), last.min(to), &mut sequences);
            }
        }
    }
    sequences
}

/// Of characters that take equally many bytes: cuts the range until all bytes after the first that differs have their full range.
fn split(first: u32, last: u32, sequences: &mut Vec<Vec<(u8, u8)>>) {
    let (low, high) = (bytes_of(first), bytes_of(last));
    for n_tail in 1..low.len() as u32 {
        let tail = (1 << (6 * n_tail)) - 1;
        if first & !tail != last & !tail {
            if first & tail != 0 {
                split(first, first | tail, sequences);
                return split((first | tail) + 1, last, sequences);
            }
            if last & tail != tail {
                split(first, (last & !tail) - 1, sequences);
                return split(last & !tail, last, sequences);
            }
        }
    }
    sequences.push(low.into_iter().zip(high).collect());
}

fn bytes_of(value: u32) -> Vec<u8> {
    char::from_u32(value).map(|char| char.encode_utf8(&mut [0; 4]).as_bytes().to_vec()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the sequences have exactly the characters of the ranges.
    fn check(ranges: &[(u32, u32)]) {
        let sequences = utf8_of(ranges);
        for char in (0..=0x2fff).chain(0xd000..=0x1_1000).chain(0x10_f000..=0x10_ffff).filter_map(char::from_u32) {
            let bytes = bytes_of(char as u32);
            let holds = |sequence: &&Vec<(u8, u8)>| {
                sequence.len() == bytes.len() && sequence.iter().zip(&bytes).all(|((low, high), byte)| low <= byte && byte <= high)
            };
            let expected = ranges.iter().any(|(first, last)| (*first..=*last).contains(&(char as u32)));
            assert_eq!(sequences.iter().filter(holds).count(), usize::from(expected), "{char:?} in {ranges:x?}");
        }
    }

    #[test]
    fn sequences_hold_the_characters_of_ranges_once() {
        check(&[(0x41, 0x5a)]);
        check(&[(0, 0x10_ffff)]);
        check(&[(0x70, 0x90), (0x7fe, 0x801), (0xd7f0, 0xe010), (0xffff, 0x1_0001)]);
        check(&[(0x3040, 0x30ff), (0xfff, 0x2001)]);
        check(&[(0x10_f123, 0x10_ffff)]);
        check(&complement(vec![(0x22, 0x22), (0x5c, 0x5c), (0, 0x1f), (0x85, 0x85), (0x2028, 0x2029)]));
    }

    #[test]
    fn what_is_left_out_is_the_rest() {
        assert_eq!(complement(Vec::new()), [(0, 0x10_ffff)]);
        assert_eq!(complement(vec![(0, 0x10_ffff), (5, 6)]), []);
        assert_eq!(complement(vec![(3, 9), (5, 6), (10, 12)]), [(0, 2), (13, 0x10_ffff)]);
    }

    #[test]
    fn sets_hold_what_was_put_in() {
        let mut set = ByteSet::default();
        set.insert(0x3f, 0x40);
        set.insert(0xff, 0xff);
        assert_eq!((0..=255).filter(|byte| set.contains(*byte)).collect::<Vec<u8>>(), [0x3f, 0x40, 0xff]);
    }
}
