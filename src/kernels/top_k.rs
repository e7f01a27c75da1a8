//! The k largest logits of each row, so that a whole vocabulary need not cross the link: the GPU finds the k best of each
//! segment of the row, [`merge`] the k best of all on the host. k = 1 is the argmax.
//!
//! Best first; ties go to the lower token; NaN counts as the largest of all, so that broken logits are seen and not skipped.

use std::cmp::{Ordering, Reverse};

use bytemuck::{Pod, Zeroable};

use super::{Binding, TOP_K, dispatch, f32_bytes, fold, lanes_of_row, require};
use crate::error::Result;
use crate::gpu::{Dispatch, Gpu};

/// Most candidates per segment: each costs a pass.
pub const MAX_K: u32 = 64;

/// Logits of one segment; `SEGMENT` of the shader.
pub const SEGMENT: u32 = 2048;

/// Token of a candidate that is none.
const NO_TOKEN: u32 = u32::MAX;

/// Params of the shader.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Params {
    /// Rows of logits.
    pub n_rows: u32,
    /// Logits of a row.
    pub vocab_size: u32,
    /// Candidates per segment, 1 to [`MAX_K`].
    pub k: u32,
    /// Segments of a row: `vocab_size / SEGMENT`, rounded up.
    pub n_segments: u32,
}

impl Params {
    /// The `k` best of each of `n_rows` rows.
    pub fn new(n_rows: u32, vocab_size: u32, k: u32) -> Params {
        Params { n_rows, vocab_size, k, n_segments: vocab_size.div_ceil(SEGMENT) }
    }

    /// Bytes of the candidates, to allocate and to read back.
    pub fn candidates_bytes(&self) -> u64 {
        f32_bytes(&[self.n_rows, self.n_segments, self.k, 2])
    }
}

/// Buffers of the shader.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    /// `[n_rows, vocab_size]`.
    pub logits: Binding<'a>,
    /// `[n_rows, n_segments, k]` of (logit bits, token); see [`Params::candidates_bytes`].
    pub candidates: Binding<'a>,
}

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
}

/// Makes the dispatch.
///
/// # Errors
/// [`crate::error::Error::Gpu`] where a binding is too small, too large or misaligned, or k is out of range.
pub fn prepare(gpu: &Gpu, params_buffer: &wgpu::Buffer, params: &Params, bindings: Bindings<'_>) -> Result<Dispatch> {
    require(gpu, TOP_K.stem, (1..=MAX_K).contains(&params.k), "k is 1 to 64")?;
    require(gpu, TOP_K.stem, params.n_rows > 0 && params.vocab_size > 0, "it is empty")?;
    require(gpu, TOP_K.stem, params.n_segments == params.vocab_size.div_ceil(SEGMENT), "n_segments does not follow from vocab_size")?;
    let needed = [(bindings.logits, f32_bytes(&[params.n_rows, params.vocab_size])), (bindings.candidates, params.candidates_bytes())];
    let lanes = lanes_of_row(gpu);
    let workgroups = fold(gpu, TOP_K.stem, u64::from(params.n_rows) * u64::from(params.n_segments), 1)?;
    dispatch(gpu, &TOP_K, &[("LANES", lanes)], params_buffer, &needed, workgroups)
}

/// The k best of each row, from the candidates as read back (little-endian words). Rows shorter than k give fewer.
pub fn merge(params: &Params, candidates: &[u8]) -> Vec<Vec<Scored>> {
    let (words, _) = candidates.as_chunks::<8>();
    let scored =
        |&[a, b, c, d, e, f, g, h]: &[u8; 8]| Scored { logit: f32::from_le_bytes([a, b, c, d]), token: u32::from_le_bytes([e, f, g, h]) };
    words
        .chunks(params.n_segments as usize * params.k as usize)
        .take(params.n_rows as usize)
        .map(|row| best_of(row.iter().map(scored).filter(|candidate| candidate.token != NO_TOKEN).collect(), params.k))
        .collect()
}

/// What the shader and [`merge`] give together, by sorting each row.
pub fn reference(params: &Params, logits: &[f32]) -> Vec<Vec<Scored>> {
    logits
        .chunks(params.vocab_size as usize)
        .take(params.n_rows as usize)
        .map(|row| best_of(row.iter().enumerate().map(|(token, &logit)| Scored { token: token as u32, logit }).collect(), params.k))
        .collect()
}

fn best_of(mut scored: Vec<Scored>, k: u32) -> Vec<Scored> {
    scored.sort_unstable_by(best_first);
    scored.truncate(k as usize);
    scored
}

/// The order of the shader's ranks: NaN first, then falling logits (zeros of both signs are equal), then rising tokens.
fn best_first(a: &Scored, b: &Scored) -> Ordering {
    let by_logit = match (a.logit.is_nan(), b.logit.is_nan()) {
        (false, false) => b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal),
        (a_nan, b_nan) => Reverse(a_nan).cmp(&Reverse(b_nan)),
    };
    by_logit.then(a.token.cmp(&b.token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_token_and_nan_comes_first() {
        let params = Params::new(1, 6, 4);
        let best = reference(&params, &[1.0, 3.0, f32::NAN, 3.0, -0.0, 0.0]);
        assert_eq!(best[0].iter().map(|scored| scored.token).collect::<Vec<_>>(), [2, 1, 3, 0]);
        assert!(best[0][0].logit.is_nan());
    }

    #[test]
    fn merging_segments_gives_what_sorting_the_row_gives() {
        let params = Params { n_segments: 2, ..Params::new(1, 3000, 2) };
        let candidates: Vec<u8> = [(2.0f32, 7u32), (1.0, 9), (5.0, 2500), (0.0, NO_TOKEN)]
            .iter()
            .flat_map(|(logit, token)| [logit.to_le_bytes(), token.to_le_bytes()].concat())
            .collect();
        assert_eq!(merge(&params, &candidates), [vec![Scored { token: 2500, logit: 5.0 }, Scored { token: 7, logit: 2.0 }]]);
    }
}
