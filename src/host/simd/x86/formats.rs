//! Which dtypes have instructions of their own, and what one is made of: a file for each kind of them.

mod grids;
mod k_nibbles;
mod sixteens;
mod tables;
mod ternary;
mod thirty_twos;

use std::arch::x86_64::*;

use super::super::{DType, MAX_FACTORS, N_PAIRS, PanelBlock, PanelProducts, PanelRows, TokenBlock};
use super::blocks::{multiply_rows_of, unpack_of};
use super::columns::Blocks;
use super::sums::{Sum, multiply_panel};
use super::wide;
use crate::dtype::BlockLayout;

/// A part of eight rows in registers: see [`PanelBlock`].
pub(super) struct Unpacked {
    pub(super) factors: [__m256; MAX_FACTORS],
    pub(super) pairs: [__m256i; N_PAIRS],
}

impl Unpacked {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of_scale(scale: __m256, pairs: [__m256i; N_PAIRS]) -> Unpacked {
        Unpacked::of_two([scale, _mm256_setzero_ps()], pairs)
    }

    /// With a scale and a minimum, or a scale of each half.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of_two([first, second]: [__m256; 2], pairs: [__m256i; N_PAIRS]) -> Unpacked {
        let zero = _mm256_setzero_ps();
        Unpacked { factors: [first, second, zero, zero], pairs }
    }
}

/// A dtype with instructions of its own: how eight rows of its blocks become integers and their factors.
pub(super) trait Format {
    /// Where it has what.
    const LAYOUT: &'static BlockLayout;
    /// Parts whose bits share bytes, so that they are loaded together: 1, 2 or 4.
    const GROUP: usize;
    /// How its integers become products.
    type Sum: Sum;
    /// What all parts of a block share.
    type Shared;
    /// What the parts of a group share.
    type Loaded;

    /// Loads what all parts of these blocks share.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C, and the rows hold the blocks.
    unsafe fn shared(blocks: &Blocks<'_>) -> Self::Shared;

    /// Loads group `n` of these blocks.
    ///
    /// # Safety
    /// As `shared`; the blocks have more than `n` groups.
    unsafe fn load(blocks: &Blocks<'_>, n: usize) -> Self::Loaded;

    /// Part `J` of group `n`.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C.
    unsafe fn part<const J: usize>(shared: &Self::Shared, loaded: &Self::Loaded, n: usize) -> Unpacked;
}

/// The functions of one dtype.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    pub(super) multiply_rows: unsafe fn(&PanelRows<'_>, &[TokenBlock]) -> PanelProducts,
    pub(super) unpack: unsafe fn(&PanelRows<'_>, &mut [PanelBlock]),
    pub(super) multiply_panel: unsafe fn(&[PanelBlock], &[TokenBlock], &mut [PanelProducts]),
    pub(super) multiply_two_panels: MultiplyTwoPanels,
}

/// As [`Simd::multiply_two_panels`](super::super::Simd::multiply_two_panels), of one format.
type MultiplyTwoPanels = unsafe fn([&[PanelBlock]; 2], &[TokenBlock], [&mut [PanelProducts]; 2]);

impl Functions {
    const fn of<F: Format>() -> Functions {
        Functions {
            multiply_rows: multiply_rows_of::<F>,
            unpack: unpack_of::<F>,
            multiply_panel: multiply_panel::<F::Sum>,
            multiply_two_panels: wide::multiply_two_panels_of::<F::Sum>,
        }
    }
}

/// Those of a dtype; `None` where it has no instructions of its own.
pub(super) const fn functions_of(dtype: DType) -> Option<Functions> {
    Some(match dtype {
        DType::Q8_0 => Functions::of::<thirty_twos::Q8_0>(),
        DType::Q4_0 => Functions::of::<thirty_twos::Q4_0>(),
        DType::Q4_1 => Functions::of::<thirty_twos::Q4_1>(),
        DType::Q5_0 => Functions::of::<thirty_twos::Q5_0>(),
        DType::Q5_1 => Functions::of::<thirty_twos::Q5_1>(),
        DType::Q4K => Functions::of::<k_nibbles::Q4K>(),
        DType::Q5K => Functions::of::<k_nibbles::Q5K>(),
        DType::Q2K => Functions::of::<sixteens::Q2K>(),
        DType::Q3K => Functions::of::<sixteens::Q3K>(),
        DType::Q6K => Functions::of::<sixteens::Q6K>(),
        DType::IQ4NL => Functions::of::<tables::IQ4NL>(),
        DType::IQ4XS => Functions::of::<tables::IQ4XS>(),
        DType::MXFP4 => Functions::of::<tables::MXFP4>(),
        DType::TQ1_0 => Functions::of::<ternary::TQ1_0>(),
        DType::TQ2_0 => Functions::of::<ternary::TQ2_0>(),
        DType::IQ3XXS => Functions::of::<grids::IQ3XXS>(),
        DType::IQ3S => Functions::of::<grids::IQ3S>(),
        DType::IQ2XXS => Functions::of::<grids::IQ2XXS>(),
        DType::IQ2XS => Functions::of::<grids::IQ2XS>(),
        DType::IQ2S => Functions::of::<grids::IQ2S>(),
        DType::IQ1S => Functions::of::<grids::IQ1S>(),
        DType::IQ1M => Functions::of::<grids::IQ1M>(),
        DType::F32 | DType::F16 | DType::BF16 => return None,
    })
}
