//! Blocks whose indices choose from a grid: the entry that is nearest. ggml's own search finds scales that are a little better.

#[path = "../../../../src/dtype/grids.rs"]
mod tables;

use std::sync::LazyLock;

use half::f16;

use super::{extreme_of, inverse};

/// The scale of a block, and of each `len` values a number from 0 to `most`: the scales of all are `d · (2 · number + 1)`, and
/// the extreme becomes `largest`.
fn scales(block: &[f32], len: usize, largest: f32, most: u8) -> (f16, Vec<u8>) {
    let wanted: Vec<f32> = block.chunks_exact(len).map(|values| extreme_of(values).abs() / largest).collect();
    let d = f16::from_f32(extreme_of(&wanted) / f32::from(2 * most + 1));
    let number = |scale: &f32| ((scale * inverse(d.to_f32()) - 1.0) / 2.0).round().clamp(0.0, f32::from(most)) as u8;
    (d, wanted.iter().map(number).collect())
}

/// A list of entries, each of as many integers as `len`, and how it is searched.
struct Grid {
    words: &'static [u32],
    len: usize,
    /// What its integers are.
    levels: &'static [u8],
    /// [`Grid::code`] of each entry.
    codes: Vec<u32>,
}

static IQ3_XXS: LazyLock<Grid> = LazyLock::new(|| Grid::new(&tables::IQ3_XXS, 4, &[4, 12, 20, 28, 36, 44, 52, 62]));
static IQ3_S: LazyLock<Grid> = LazyLock::new(|| Grid::new(&tables::IQ3_S, 4, &[1, 3, 5, 7, 9, 11, 13, 15]));
static IQ2_XXS: LazyLock<Grid> = LazyLock::new(|| Grid::new(&tables::IQ2_XXS, 8, &[8, 25, 43]));
static IQ2_XS: LazyLock<Grid> = LazyLock::new(|| Grid::new(&tables::IQ2_XS, 8, &[8, 25, 43]));
static IQ2_S: LazyLock<Grid> = LazyLock::new(|| Grid::new(&tables::IQ2_S, 8, &[8, 25, 43]));
static IQ1: LazyLock<Grid> = LazyLock::new(|| Grid::new(&tables::IQ1, 8, &[0, 8, 16]));

impl Grid {
    fn new(words: &'static [u32], len: usize, levels: &'static [u8]) -> Grid {
        let mut grid = Grid { words, len, levels, codes: Vec::new() };
        grid.codes = (0..words.len() * 4 / len).map(|place| grid.code(&grid.entry(place))).collect();
        grid
    }

    fn entry(&self, place: usize) -> Vec<f32> {
        let words = &self.words[place * self.len / 4..][..self.len / 4];
        words.iter().flat_map(|word| word.to_le_bytes()).map(f32::from).collect()
    }

    /// Of each value as many bits as there are levels that it is nearer to than to those below: so codes differ in as many bits as
    /// the levels of their values differ in all.
    fn code(&self, values: &[f32]) -> u32 {
        let is_above = |value: f32, levels: &[u8]| 2.0 * value > f32::from(levels[0]) + f32::from(levels[1]);
        let bits = values.iter().flat_map(|value| self.levels.windows(2).map(move |levels| is_above(*value, levels)));
        bits.fold(0, |code, bit| code << 1 | u32::from(bit))
    }

    /// Which entry is nearest, counted in levels.
    fn nearest(&self, values: &[f32]) -> usize {
        let wanted = self.code(values);
        let (mut nearest, mut least) = (0, u32::MAX);
        for (place, code) in self.codes.iter().enumerate() {
            let distance = (code ^ wanted).count_ones();
            if distance < least {
                (nearest, least) = (place, distance);
            }
        }
        nearest
    }

    /// Of the magnitudes of each entry's values the nearest entry, in units of a scale.
    fn chosen(&self, values: &[f32], scale: f32) -> Vec<usize> {
        let magnitudes: Vec<f32> = values.iter().map(|value| value.abs() * inverse(scale)).collect();
        magnitudes.chunks_exact(self.len).map(|magnitudes| self.nearest(magnitudes)).collect()
    }
}

/// A bit for each negative value, the first the lowest.
fn signs(values: &[f32]) -> u32 {
    (0..).zip(values).fold(0, |bits, (k, value)| bits | u32::from(*value < 0.0) << k)
}

/// Seven signs of each eight of 32 values. Where an odd number of eight are negative, the least of them changes its sign.
fn even_signs(values: &[f32]) -> u32 {
    let seven = |octet: &[f32]| {
        let least = (0..8).min_by(|a, b| octet[*a].abs().total_cmp(&octet[*b].abs())).unwrap_or(0);
        let signs = signs(octet);
        (if signs.count_ones().is_multiple_of(2) { signs } else { signs ^ 1 << least }) & 127
    };
    (0..).zip(values.chunks_exact(8)).fold(0, |bits, (octet, values)| bits | seven(values) << (7 * octet))
}

pub(super) fn encode_iq3_xxs(block: &[f32], output: &mut Vec<u8>) {
    // Scales are d / 4 · (2 · number + 1).
    let (quarter, numbers) = scales(block, 32, 62.0, 15);
    output.extend(f16::from_f32(quarter.to_f32() * 4.0).to_le_bytes());
    let mut words = Vec::new();
    for (values, number) in block.chunks_exact(32).zip(numbers) {
        let scale = quarter.to_f32() * f32::from(2 * number + 1);
        output.extend(IQ3_XXS.chosen(values, scale).iter().map(|place| *place as u8));
        words.extend((even_signs(values) | u32::from(number) << 28).to_le_bytes());
    }
    output.extend(words);
}

pub(super) fn encode_iq3_s(block: &[f32], output: &mut Vec<u8>) {
    let (d, numbers) = scales(block, 32, 15.0, 15);
    output.extend(d.to_le_bytes());
    let places: Vec<usize> = (block.chunks_exact(32).zip(&numbers))
        .flat_map(|(values, number)| IQ3_S.chosen(values, d.to_f32() * f32::from(2 * number + 1)))
        .collect();
    output.extend(places.iter().map(|place| *place as u8));
    output
        .extend(places.chunks_exact(8).map(|places| (0..).zip(places).fold(0, |bits, (quad, place)| bits | ((place >> 8) as u8) << quad)));
    output.extend(block.chunks_exact(32).flat_map(|values| signs(values).to_le_bytes()));
    push_pairs(&numbers, output);
}

/// The scales of IQ2 are d / 8 · (2 · number + 1).
fn put_eight_times(d: f16, output: &mut Vec<u8>) {
    output.extend(f16::from_f32(d.to_f32() * 8.0).to_le_bytes());
}

pub(super) fn encode_iq2_xxs(block: &[f32], output: &mut Vec<u8>) {
    let (d, numbers) = scales(block, 32, 43.0, 15);
    put_eight_times(d, output);
    for (values, number) in block.chunks_exact(32).zip(numbers) {
        let places = IQ2_XXS.chosen(values, d.to_f32() * f32::from(2 * number + 1));
        output.extend(places.iter().map(|place| *place as u8));
        output.extend((even_signs(values) | u32::from(number) << 28).to_le_bytes());
    }
}

/// Of each sixteen values two places.
fn places_of_sixteens(grid: &Grid, block: &[f32], d: f16, numbers: &[u8]) -> Vec<usize> {
    let places = |(values, number): (&[f32], &u8)| grid.chosen(values, d.to_f32() * f32::from(2 * number + 1));
    block.chunks_exact(16).zip(numbers).flat_map(places).collect()
}

fn push_pairs(numbers: &[u8], output: &mut Vec<u8>) {
    output.extend(numbers.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
}

pub(super) fn encode_iq2_xs(block: &[f32], output: &mut Vec<u8>) {
    let (d, numbers) = scales(block, 16, 43.0, 15);
    put_eight_times(d, output);
    let places = places_of_sixteens(&IQ2_XS, block, d, &numbers);
    output.extend(
        places
            .iter()
            .zip(block.chunks_exact(8))
            .flat_map(|(place, values)| (*place as u16 | (even_signs(values) as u16) << 9).to_le_bytes()),
    );
    push_pairs(&numbers, output);
}

pub(super) fn encode_iq2_s(block: &[f32], output: &mut Vec<u8>) {
    let (d, numbers) = scales(block, 16, 43.0, 15);
    put_eight_times(d, output);
    let places = places_of_sixteens(&IQ2_S, block, d, &numbers);
    output.extend(places.iter().map(|place| *place as u8));
    output.extend(block.chunks_exact(32).flat_map(|values| signs(values).to_le_bytes()));
    output.extend(
        places.chunks_exact(4).map(|places| (0..).zip(places).fold(0, |bits, (octet, place)| bits | ((place >> 8) as u8) << (2 * octet))),
    );
    push_pairs(&numbers, output);
}

/// Of eight values the nearest entry of -1, 0 and 1 with an eighth more or, where the other is true, less; and how far it is.
fn nearest_eighths(values: &[f32], scale: f32) -> [(usize, f32); 2] {
    [7.0, 9.0].map(|less| {
        let levels: Vec<f32> = values.iter().map(|value| value * inverse(scale) * 8.0 + less).collect();
        let place = IQ1.nearest(&levels);
        let errors = IQ1.entry(place).into_iter().zip(&levels).map(|(entry, level)| (entry - level).powi(2));
        (place, errors.sum())
    })
}

pub(super) fn encode_iq1_s(block: &[f32], output: &mut Vec<u8>) {
    let (d, numbers) = scales(block, 32, 1.125, 7);
    output.extend(d.to_le_bytes());
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for (values, number) in block.chunks_exact(32).zip(numbers) {
        let octets: Vec<_> = values.chunks_exact(8).map(|values| nearest_eighths(values, d.to_f32() * f32::from(2 * number + 1))).collect();
        let [more, less] = [0, 1].map(|which| octets.iter().map(|both| both[which].1).sum::<f32>());
        let places: Vec<usize> = octets.iter().map(|both| both[usize::from(less < more)].0).collect();
        low.extend(places.iter().map(|place| *place as u8));
        let bits = (0..).zip(&places).fold(0, |bits, (octet, place)| bits | ((place >> 8) as u16) << (3 * octet));
        high.extend((bits | u16::from(number) << 12 | u16::from(less < more) << 15).to_le_bytes());
    }
    output.extend(low);
    output.extend(high);
}

pub(super) fn encode_iq1_m(block: &[f32], output: &mut Vec<u8>) {
    let (d, numbers) = scales(block, 16, 1.125, 7);
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for (values, number) in block.chunks_exact(16).zip(&numbers) {
        let octets = values.chunks_exact(8).map(|values| {
            let [more, less] = nearest_eighths(values, d.to_f32() * f32::from(2 * number + 1));
            if less.1 < more.1 { (less.0, 8) } else { (more.0, 0) }
        });
        let octets: Vec<(usize, u8)> = octets.collect();
        low.extend(octets.iter().map(|(place, _)| *place as u8));
        high.extend(octets.iter().map(|(place, sign)| (place >> 8) as u8 | sign));
    }
    output.extend(low);
    push_pairs(&high, output);
    for (index, numbers) in numbers.chunks_exact(4).enumerate() {
        let bits = (0..).zip(numbers).fold(0, |bits, (place, number)| bits | u16::from(*number) << (3 * place));
        output.extend((bits | (d.to_bits() >> (4 * index) & 15) << 12).to_le_bytes());
    }
}
