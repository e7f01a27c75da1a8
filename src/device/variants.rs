//! Which variant the matrix products take on an adapter. Plain data: the kernels know what the variants are, `machine` which is fastest.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;

/// How a matrix product is distributed over an adapter's lanes. Written and read as text, such as `workgroup-32x64x4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum MatMulVariant {
    /// A lane has rows of its own, and no lane waits for another.
    Lane,
    /// The lanes of half a wave or more share rows and meet at barriers.
    Workgroup(RowShape),
    /// Tiles of rows and tokens, decoded into workgroup memory.
    Tile(TileShape),
    /// A lane has rows of its own; the inputs are passed round in the subgroup. Not every adapter can.
    Subgroup,
}

impl MatMulVariant {
    /// [`MatMulVariant::Workgroup`] in the shape that suits most adapters.
    pub const WORKGROUP: MatMulVariant = MatMulVariant::Workgroup(RowShape { lanes: 32, workgroup: 64, rows: 4 });
    /// [`MatMulVariant::Tile`] in the shape that suits most adapters.
    pub const TILE: MatMulVariant = MatMulVariant::Tile(TileShape { rows: 32, tokens: 32, lane_rows: 4, lane_tokens: 4 });

    /// The same variant in the shapes next to its own; none where it has no shapes.
    pub fn neighbours(self) -> Vec<MatMulVariant> {
        match self {
            MatMulVariant::Workgroup(shape) => shape.neighbours().into_iter().map(MatMulVariant::Workgroup).collect(),
            MatMulVariant::Tile(shape) => shape.neighbours().into_iter().map(MatMulVariant::Tile).collect(),
            MatMulVariant::Lane | MatMulVariant::Subgroup => Vec::new(),
        }
    }

    /// The same variant in every shape, its own first.
    pub fn all_shapes(self) -> Vec<MatMulVariant> {
        let (mut shapes, mut index) = (vec![self], 0);
        while let Some(shape) = shapes.get(index) {
            let new: Vec<MatMulVariant> = shape.neighbours().into_iter().filter(|neighbour| !shapes.contains(neighbour)).collect();
            shapes.extend(new);
            index += 1;
        }
        shapes
    }
}

/// The shape of [`MatMulVariant::Workgroup`]; `LANESxWORKGROUPxROWS` in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowShape {
    /// Lanes that share a row.
    pub lanes: u32,
    /// Lanes of a workgroup.
    pub workgroup: u32,
    /// Rows of each group of `lanes`.
    pub rows: u32,
}

impl RowShape {
    /// Whether every adapter of WebGPU can run it: 256 lanes and 16 KiB of workgroup memory, with sums of four tokens.
    pub fn is_valid(&self) -> bool {
        let is_known = matches!(self.lanes, 8 | 16 | 32 | 64) && matches!(self.workgroup, 32 | 64 | 128 | 256);
        is_known && matches!(self.rows, 1 | 2 | 4 | 8) && self.lanes <= self.workgroup && self.rows * self.workgroup <= 1024
    }

    /// The valid shapes that differ from this one by one step of one figure.
    fn neighbours(self) -> Vec<RowShape> {
        let halved_and_doubled = |value: u32| [value / 2, value * 2];
        let lanes = halved_and_doubled(self.lanes).map(|lanes| RowShape { lanes, ..self });
        let workgroup = halved_and_doubled(self.workgroup).map(|workgroup| RowShape { workgroup, ..self });
        let rows = halved_and_doubled(self.rows).map(|rows| RowShape { rows, ..self });
        [rows, workgroup, lanes].into_iter().flatten().filter(RowShape::is_valid).collect()
    }
}

/// The shape of [`MatMulVariant::Tile`]; `ROWSxTOKENSxLANEROWSxLANETOKENS` in text. A workgroup has a lane for each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileShape {
    /// Rows of the tile of a workgroup.
    pub rows: u32,
    /// Tokens of the tile of a workgroup.
    pub tokens: u32,
    /// Rows of the part of a lane.
    pub lane_rows: u32,
    /// Tokens of the part of a lane.
    pub lane_tokens: u32,
}

impl TileShape {
    /// Lanes of a workgroup.
    pub fn workgroup(&self) -> u32 {
        (self.rows / self.lane_rows) * (self.tokens / self.lane_tokens)
    }

    /// Whether every adapter of WebGPU can run it: 32 to 256 lanes, and 16 KiB of workgroup memory for 32 columns.
    pub fn is_valid(&self) -> bool {
        let are_known = [self.rows, self.tokens].iter().all(|side| matches!(side, 16 | 32 | 64))
            && [self.lane_rows, self.lane_tokens].iter().all(|side| matches!(side, 2 | 4 | 8));
        are_known && matches!(self.workgroup(), 32..=256)
    }

    /// The valid shapes whose tile, or whose part of a lane, is twice or half as large along one side.
    fn neighbours(self) -> Vec<TileShape> {
        let halved_and_doubled = |value: u32| [value / 2, value * 2];
        let rows = halved_and_doubled(self.rows).map(|rows| TileShape { rows, ..self });
        let tokens = halved_and_doubled(self.tokens).map(|tokens| TileShape { tokens, ..self });
        let lane_rows = halved_and_doubled(self.lane_rows).map(|lane_rows| TileShape { lane_rows, ..self });
        let lane_tokens = halved_and_doubled(self.lane_tokens).map(|lane_tokens| TileShape { lane_tokens, ..self });
        // Larger parts share more of what they read: of two shapes alike in time, the first one stays.
        [lane_rows, lane_tokens, rows, tokens].into_iter().flatten().filter(TileShape::is_valid).collect()
    }
}

impl fmt::Display for MatMulVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MatMulVariant::Lane => f.write_str("lane"),
            MatMulVariant::Subgroup => f.write_str("subgroup"),
            MatMulVariant::Workgroup(RowShape { lanes, workgroup, rows }) => write!(f, "workgroup-{lanes}x{workgroup}x{rows}"),
            MatMulVariant::Tile(TileShape { rows, tokens, lane_rows, lane_tokens }) => {
                write!(f, "tile-{rows}x{tokens}x{lane_rows}x{lane_tokens}")
            }
        }
    }
}

impl From<MatMulVariant> for String {
    fn from(variant: MatMulVariant) -> String {
        variant.to_string()
    }
}

impl TryFrom<String> for MatMulVariant {
    type Error = String;

    fn try_from(text: String) -> Result<MatMulVariant, String> {
        let (kind, figures) = text.split_once('-').unwrap_or((&text, ""));
        // What is no number leaves a figure out.
        let figures: Vec<u32> = figures.split('x').filter_map(|figure| figure.parse().ok()).collect();
        let variant = match (kind, figures.as_slice()) {
            ("lane", []) => Some(MatMulVariant::Lane),
            ("subgroup", []) => Some(MatMulVariant::Subgroup),
            ("workgroup", []) => Some(MatMulVariant::WORKGROUP),
            ("tile", []) => Some(MatMulVariant::TILE),
            ("workgroup", &[lanes, workgroup, rows]) => {
                Some(RowShape { lanes, workgroup, rows }).filter(RowShape::is_valid).map(MatMulVariant::Workgroup)
            }
            ("tile", &[rows, tokens, lane_rows, lane_tokens]) => {
                Some(TileShape { rows, tokens, lane_rows, lane_tokens }).filter(TileShape::is_valid).map(MatMulVariant::Tile)
            }
            _ => None,
        };
        variant.ok_or_else(|| format!("`{text}` is no variant of a matrix product: lane, subgroup, workgroup-32x64x4, tile-32x32x4x4"))
    }
}

/// What a kernel works on: few tokens, as in decoding, or many, as in the prefill of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Few tokens: each weight is used a few times.
    Decode,
    /// Many tokens: each weight is used often.
    Prefill,
}

/// Which kernels an adapter may run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// The fastest that were measured, of all that it can run.
    #[default]
    Auto,
    /// Those that every adapter runs, chosen by its kind: the same on machines whose measurements differ, and a way to avoid a
    /// driver that fails with others. Predictions still assume the fastest.
    Portable,
}

/// The fastest variants that were measured, by dtype. Where a dtype has none, that of the nearest one measured stands for it;
/// where none was measured, the kernels choose by the kind of adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MatMulVariants {
    /// For few tokens.
    #[serde(rename = "few")]
    pub decode: BTreeMap<DType, MatMulVariant>,
    /// For many tokens.
    #[serde(rename = "many")]
    pub prefill: BTreeMap<DType, MatMulVariant>,
}

impl MatMulVariants {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.decode.is_empty() && self.prefill.is_empty()
    }

    /// The variant for a product in `dtype`, where one was measured.
    pub fn of(&self, dtype: DType, phase: Phase) -> Option<MatMulVariant> {
        nearest(self.by_dtype(phase), dtype)
    }

    /// Whether a variant was measured for this very dtype.
    pub fn has(&self, dtype: DType, phase: Phase) -> bool {
        self.by_dtype(phase).contains_key(&dtype)
    }

    /// Remembers the fastest variant.
    pub fn insert(&mut self, dtype: DType, phase: Phase, variant: MatMulVariant) {
        match phase {
            Phase::Decode => self.decode.insert(dtype, variant),
            Phase::Prefill => self.prefill.insert(dtype, variant),
        };
    }

    fn by_dtype(&self, phase: Phase) -> &BTreeMap<DType, MatMulVariant> {
        match phase {
            Phase::Decode => &self.decode,
            Phase::Prefill => &self.prefill,
        }
    }
}

/// The value at `dtype`, else at the one that it is measured as, else at the most similar dtype: a quantised one
/// for a quantised one, then the one with the nearest number of bits.
pub(super) fn nearest<T: Copy>(by_dtype: &BTreeMap<DType, T>, dtype: DType) -> Option<T> {
    if let Some(value) = by_dtype.get(&dtype).or_else(|| by_dtype.get(&dtype.measured_as())) {
        return Some(*value);
    }
    let distance = |other: DType| {
        let differs_in_blocks = other.has_blocks() != dtype.has_blocks();
        (differs_in_blocks, (other.bits() - dtype.bits()).abs())
    };
    let by_distance = |a: &(&DType, &T), b: &(&DType, &T)| {
        let (a, b) = (distance(*a.0), distance(*b.0));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    };
    by_dtype.iter().min_by(by_distance).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_dtype_stands_for_one_that_was_not_measured() {
        let mut variants = MatMulVariants::default();
        assert!(variants.is_empty() && variants.of(DType::F16, Phase::Decode).is_none());
        variants.insert(DType::F16, Phase::Decode, MatMulVariant::WORKGROUP);
        variants.insert(DType::Q4_0, Phase::Decode, MatMulVariant::Subgroup);
        assert_eq!(variants.of(DType::BF16, Phase::Decode), Some(MatMulVariant::WORKGROUP));
        assert_eq!(variants.of(DType::Q8_0, Phase::Decode), Some(MatMulVariant::Subgroup));
        assert_eq!(variants.of(DType::Q8_0, Phase::Prefill), None);
        let text = serde_json::to_string(&variants).unwrap();
        assert_eq!(text, r#"{"few":{"F16":"workgroup-32x64x4","Q4_0":"subgroup"},"many":{}}"#);
        assert_eq!(serde_json::from_str::<MatMulVariants>(&text).unwrap(), variants);
    }

    #[test]
    fn variants_are_written_and_read_as_text() {
        let known = ["lane", "subgroup", "workgroup-8x256x4", "workgroup-64x64x8", "tile-64x64x8x4", "tile-16x32x2x4"];
        for text in known {
            assert_eq!(MatMulVariant::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for (short, variant) in [("workgroup", MatMulVariant::WORKGROUP), ("tile", MatMulVariant::TILE)] {
            assert_eq!(MatMulVariant::try_from(short.to_owned()), Ok(variant), "as devices files of before have it");
        }
        let unknown =
            ["", "lane-1", "workgroup-32x64", "workgroup-0x64x4", "workgroup-64x256x8", "tile-64x64x0x4", "tile-128x64x8x8", "wave"];
        for text in unknown {
            assert!(MatMulVariant::try_from(text.to_owned()).unwrap_err().contains(&format!("`{text}`")));
        }
    }

    #[test]
    fn every_shape_is_reached_by_steps_from_the_first() {
        let (rows, tiles) = (MatMulVariant::WORKGROUP.all_shapes(), MatMulVariant::TILE.all_shapes());
        assert!(rows.iter().all(|variant| matches!(variant, MatMulVariant::Workgroup(shape) if shape.is_valid())));
        assert!(tiles.iter().all(|variant| matches!(variant, MatMulVariant::Tile(shape) if shape.is_valid())));
        assert!(rows.len() > 40 && tiles.len() > 30, "{} and {}", rows.len(), tiles.len());
    }
}
