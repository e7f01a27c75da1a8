//! The quantisation that a GGUF file's name gives, and whether it can be read, which follows from the table of [`DType`].

use std::fmt;

use super::choose::stem_of;
use crate::dtype::DType;

/// The names of llama.cpp's mixtures of one dtype with finer ones, in order of preference.
const MIXTURES: [&str; 8] = ["_M", "_L", "_XL", "_S", "_XS", "_XXS", "_NL", "_MOE"];

/// A quantisation as names of files have it, in capitals: `Q8_0`, `Q4_K_M`, `BF16`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quantisation(String);

impl Quantisation {
    /// The dtype of most of its matrices, where that is one that can be read.
    pub fn dtype(&self) -> Option<DType> {
        // Mixtures of one dtype whose name is longer.
        match self.0.as_str() {
            "IQ3_XS" | "IQ3_M" => return Some(DType::IQ3S),
            "IQ2_M" => return Some(DType::IQ2S),
            _ => {}
        }
        let is_base = |dtype: &DType| {
            let base = dtype.to_string();
            self.0.strip_prefix(base.as_str()).is_some_and(|rest| rest.is_empty() || MIXTURES.contains(&rest))
        };
        DType::ALL.into_iter().find(is_base)
    }

    /// Its place among those of one dtype; the least is taken where none is asked for.
    pub fn rank(&self) -> usize {
        MIXTURES.iter().position(|mixture| self.0.ends_with(mixture)).map_or(0, |place| place + 1)
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The dtypes that can be read, in order of preference: quantised ones from the finest on, then unquantised ones from the smallest on.
pub(super) fn dtypes_by_preference() -> Vec<DType> {
    let mut dtypes = DType::ALL.to_vec();
    dtypes.sort_by(|a, b| {
        let by_bits = a.bits().total_cmp(&b.bits());
        b.has_blocks().cmp(&a.has_blocks()).then(if a.has_blocks() { by_bits.reverse() } else { by_bits })
    });
    dtypes
}

/// The quantisation at the end of the name of a `.gguf`, or in the name of a folder on its path.
pub(super) fn quantisation_of(name: &str) -> Option<Quantisation> {
    let stem = stem_of(name).to_ascii_uppercase();
    let mut folders = stem.rsplit('/');
    let last = folders.next().unwrap_or_default().rsplit(['-', '.']).next().unwrap_or_default();
    // `model_Q4_0` too: names within names are divided by what divides the parts of a quantisation.
    let endings = last.match_indices('_').map(|(at, _)| &last[at + 1..]);
    let found = std::iter::once(last).chain(endings).chain(folders).find(|text| is_quantisation(text));
    found.map(|text| Quantisation(text.to_owned()))
}

fn is_quantisation(text: &str) -> bool {
    if ["F16", "BF16", "F32", "F64", "MXFP4", "MXFP4_MOE"].contains(&text) {
        return true;
    }
    let Some(rest) = text.strip_prefix(['I', 'T']).unwrap_or(text).strip_prefix('Q') else { return false };
    let mut parts = rest.split('_');
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_part = |part: &str| is_number(part) || ["K", "S", "M", "L", "XS", "XXS", "XL", "NL"].contains(&part);
    parts.next().is_some_and(is_number) && parts.all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_quantisation() {
        for (name, expected) in [
            ("m-Q4_K_M.gguf", "Q4_K_M"),
            ("m.q8_0.gguf", "Q8_0"),
            ("m_IQ4_XS.gguf", "IQ4_XS"),
            ("m-UD-Q4_K_XL.gguf", "Q4_K_XL"),
            ("Q5_K_S/m-00001-of-00003.gguf", "Q5_K_S"),
            ("m-tq1_0-00001-of-00003.gguf", "TQ1_0"),
            ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
            ("m-bf16.gguf", "BF16"),
            ("m-mxfp4.gguf", "MXFP4"),
            ("q6_k.gguf", "Q6_K"),
        ] {
            assert_eq!(quantisation_of(name).map(|it| it.to_string()).as_deref(), Some(expected), "{name}");
        }
        for name in ["model.gguf", "Q-model.gguf", "m-Q.gguf", "m-Q4_Z.gguf", "m-v2.gguf", "Qwen2.5-7B.gguf", "m-Q8_0-chat.gguf"] {
            assert_eq!(quantisation_of(name), None, "{name}");
        }
    }

    #[test]
    fn every_dtype_is_read_under_its_name_and_the_finest_in_blocks_comes_first() {
        for dtype in DType::ALL {
            assert_eq!(quantisation_of(&format!("m-{dtype}.gguf")).and_then(|it| it.dtype()), Some(dtype));
        }
        for name in ["m-Q4_0_4_4.gguf", "m-Q1_0.gguf"] {
            assert_eq!(quantisation_of(name).and_then(|it| it.dtype()), None, "{name}");
        }
        let order = dtypes_by_preference();
        let place = |wanted| order.iter().position(|dtype| *dtype == wanted).unwrap();
        let expected = [DType::Q8_0, DType::Q4_1, DType::Q4_0, DType::F16, DType::BF16, DType::F32];
        assert!(expected.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{order:?}");
        let rank = |name: &str| quantisation_of(name).unwrap().rank();
        assert!(rank("m-Q4_K_M.gguf") < rank("m-Q4_K_L.gguf") && rank("m-Q4_K_L.gguf") < rank("m-Q4_K_S.gguf"));
    }
}
