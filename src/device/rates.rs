//! The rates of a device: measured ones, how gaps are filled, and what is assumed where nothing was measured.
//! Knows no clock and measures nothing.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device::variants::nearest;
use crate::device::{AdapterKind, Corrections, Device, MatMulVariants};
use crate::dtype::DType;
use crate::units::{BytesPerSec, is_zero};

/// Rates of a device. What is absent was not measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Sequential reads of the model's disk as streaming does them: two at a time, 4 MiB each, page cache bypassed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read: Option<BytesPerSec>,
    /// What one such read takes besides its bytes, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_request_secs: Option<f64>,
    /// Host memory to host memory, one thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_copy: Option<BytesPerSec>,
    /// Host to GPU through slots that the host maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_mapped: Option<BytesPerSec>,
    /// Host to GPU through a staging ring and a copy on the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_staged: Option<BytesPerSec>,
    /// Host to GPU by the queue, as a browser does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_written: Option<BytesPerSec>,
    /// GPU to host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readback: Option<BytesPerSec>,
    /// Bytes of stored weights per second of a matrix × vector product, without the fixed cost of an operation: what a large
    /// matrix comes close to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub matvec: BTreeMap<DType, BytesPerSec>,
    /// The same of one token's products with the matrices of its experts, which adapters have kernels of their own for; none of the host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub expert_matvec: BTreeMap<DType, BytesPerSec>,
    /// Floating-point operations per second of a matrix × matrix product with many tokens (two per weight and token).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub matmul: BTreeMap<DType, f64>,
    /// The variants of the matrix products that these rates hold for: the fastest on this adapter.
    #[serde(rename = "forms", skip_serializing_if = "MatMulVariants::is_empty")]
    pub variants: MatMulVariants,
    /// Fixed cost of one more operation inside a submission, in seconds; on the host, of one more parallel product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatch_secs: Option<f64>,
    /// One more submission that nobody waits for, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submit_secs: Option<f64>,
    /// An empty submission and the wait for it, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_secs: Option<f64>,
    /// Compiling one pipeline, in seconds: the median of the matrix kernels' variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shader_compile_secs: Option<f64>,
    /// When they were measured, in seconds since 1970 (UTC); the oldest where several measurements were merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_at: Option<u64>,
    /// How many measurements in a row found the machine busy with other work and are therefore unreliable; 0 after one that did not.
    #[serde(skip_serializing_if = "is_zero")]
    pub n_disturbed: u32,
    /// Corrections of these figures by runs; [`Rates::corrected`] applies them.
    #[serde(skip_serializing_if = "Corrections::is_empty")]
    pub corrections: Corrections,
    /// Whether the figures were measured.
    #[serde(skip_serializing_if = "Origin::is_measured")]
    pub origin: Origin,
}

/// Where rates come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Measured, or written into a devices file by somebody who knows.
    #[default]
    Measured,
    /// Measured in part; [`Rates::assumed`] fills the gaps.
    PartlyAssumed,
    /// Typical figures of such a device.
    Assumed,
}

impl Origin {
    fn is_measured(&self) -> bool {
        *self == Origin::Measured
    }

    /// The origin of figures from both.
    #[must_use]
    pub fn and(self, other: Origin) -> Origin {
        if self == other { self } else { Origin::PartlyAssumed }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Origin::Measured => "measured",
            Origin::PartlyAssumed => "assumed in part",
            Origin::Assumed => "assumed, not measured",
        })
    }
}

impl Rates {
    /// Whether no rate is known.
    pub fn is_empty(&self) -> bool {
        self.figures().is_empty()
    }

    /// Every figure with its name in files, for checks and tables: bytes or operations per second, and seconds.
    pub fn figures(&self) -> Vec<(String, f64)> {
        let rates = [
            ("disk_read", self.disk_read),
            ("host_copy", self.host_copy),
            ("upload_mapped", self.upload_mapped),
            ("upload_staged", self.upload_staged),
            ("upload_written", self.upload_written),
            ("readback", self.readback),
        ];
        let secs = [
            ("disk_request_secs", self.disk_request_secs),
            ("dispatch_secs", self.dispatch_secs),
            ("submit_secs", self.submit_secs),
            ("round_trip_secs", self.round_trip_secs),
            ("shader_compile_secs", self.shader_compile_secs),
        ];
        let rates = rates.into_iter().filter_map(|(name, rate)| Some((name.to_owned(), rate?.0)));
        let secs = secs.into_iter().filter_map(|(name, secs)| Some((name.to_owned(), secs?)));
        let matvec = self.matvec.iter().map(|(dtype, rate)| (format!("matvec.{dtype}"), rate.0));
        let matmul = self.matmul.iter().map(|(dtype, rate)| (format!("matmul.{dtype}"), *rate));
        let expert_matvec = self.expert_matvec.iter().map(|(dtype, rate)| (format!("expert_matvec.{dtype}"), rate.0));
        rates.chain(secs).chain(matvec).chain(expert_matvec).chain(matmul).collect()
    }

    /// Weight bytes per second of a matrix × vector product in `dtype`: its own rate, else that of the nearest dtype measured.
    pub fn matvec_of(&self, dtype: DType) -> Option<BytesPerSec> {
        nearest(&self.matvec, dtype)
    }

    /// Weight bytes per second of one token's products with its experts in `dtype`: where none were measured, that of other products.
    pub fn expert_matvec_of(&self, dtype: DType) -> Option<BytesPerSec> {
        nearest(&self.expert_matvec, dtype).or_else(|| self.matvec_of(dtype))
    }

    /// Operations per second of a matrix × matrix product in `dtype`: its own rate, else that of the nearest dtype measured.
    pub fn matmul_of(&self, dtype: DType) -> Option<f64> {
        nearest(&self.matmul, dtype)
    }

    /// The rate of the fastest way to upload.
    pub fn upload(&self) -> Option<BytesPerSec> {
        [self.upload_mapped, self.upload_staged, self.upload_written].into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// These rates, and those of `other` where these have none. A map is taken over only where this one is empty: the nearest
    /// dtype that was measured is closer than a figure from elsewhere.
    #[must_use]
    pub fn or(self, other: &Rates) -> Rates {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other.clone() } else { self };
        }
        let n_own = self.figures().len();
        let mut both = Rates {
            disk_read: self.disk_read.or(other.disk_read),
            disk_request_secs: self.disk_request_secs.or(other.disk_request_secs),
            host_copy: self.host_copy.or(other.host_copy),
            upload_mapped: self.upload_mapped.or(other.upload_mapped),
            upload_staged: self.upload_staged.or(other.upload_staged),
            upload_written: self.upload_written.or(other.upload_written),
            readback: self.readback.or(other.readback),
            matvec: if self.matvec.is_empty() { other.matvec.clone() } else { self.matvec },
            expert_matvec: if self.expert_matvec.is_empty() { other.expert_matvec.clone() } else { self.expert_matvec },
            matmul: if self.matmul.is_empty() { other.matmul.clone() } else { self.matmul },
            variants: if self.variants.is_empty() { other.variants.clone() } else { self.variants },
            dispatch_secs: self.dispatch_secs.or(other.dispatch_secs),
            submit_secs: self.submit_secs.or(other.submit_secs),
            round_trip_secs: self.round_trip_secs.or(other.round_trip_secs),
            shader_compile_secs: self.shader_compile_secs.or(other.shader_compile_secs),
            measured_at: self.measured_at,
            n_disturbed: self.n_disturbed,
            corrections: self.corrections,
            origin: self.origin,
        };
        if both.figures().len() > n_own {
            both.origin = self.origin.and(other.origin);
            both.measured_at = [self.measured_at, other.measured_at].into_iter().flatten().min();
        }
        both
    }

    /// These rates, with those of the products of `more` added, which were measured later in other dtypes, and with its variants.
    #[must_use]
    pub fn with_products(mut self, more: Rates) -> Rates {
        self.matvec.extend(more.matvec);
        self.expert_matvec.extend(more.expert_matvec);
        self.matmul.extend(more.matmul);
        Rates {
            variants: more.variants,
            dispatch_secs: self.dispatch_secs.or(more.dispatch_secs),
            shader_compile_secs: self.shader_compile_secs.or(more.shader_compile_secs),
            ..self
        }
    }

    /// Typical figures of a device of this kind, for plans of what was never measured. They are assumptions: a discrete GPU of
    /// the middle class behind PCIe 4, an integrated one with two channels of DDR4, a software adapter and a host of a few
    /// cores, an SSD. `kind` matters for adapters only.
    pub fn assumed(device: Device, kind: Option<AdapterKind>) -> Rates {
        let none = Rates { origin: Origin::Assumed, ..Rates::default() };
        let gpu = |matvec, matmul, upload, dispatch_secs, round_trip_secs| Rates {
            upload_staged: Some(BytesPerSec(upload)),
            readback: Some(BytesPerSec(upload)),
            matvec: BTreeMap::from([(DType::F16, BytesPerSec(matvec))]),
            matmul: BTreeMap::from([(DType::F16, matmul)]),
            dispatch_secs: Some(dispatch_secs),
            submit_secs: Some(round_trip_secs / 2.0),
            round_trip_secs: Some(round_trip_secs),
            shader_compile_secs: Some(0.02),
            ..none.clone()
        };
        match (device, kind) {
            (Device::Disk, _) => Rates { disk_read: Some(BytesPerSec(2e9)), disk_request_secs: Some(100e-6), ..none },
            (Device::Cpu, _) => Rates {
                host_copy: Some(BytesPerSec(10e9)),
                matvec: BTreeMap::from([(DType::F16, BytesPerSec(20e9))]),
                matmul: BTreeMap::from([(DType::F16, 100e9)]),
                dispatch_secs: Some(10e-6),
                ..none
            },
            (Device::Gpu(_), Some(AdapterKind::Integrated)) => gpu(40e9, 1e12, 10e9, 10e-6, 200e-6),
            (Device::Gpu(_), Some(AdapterKind::Software)) => gpu(1e9, 5e9, 5e9, 20e-6, 100e-6),
            (Device::Gpu(_), _) => gpu(300e9, 20e12, 12e9, 5e-6, 100e-6),
        }
    }
}

impl Rates {
    /// Typical figures of a device as a browser's worker reaches it: one thread computes, every call to the GPU crosses to
    /// another process, and bytes are copied there once more. Those of products with blocks are of Chromium on a Xeon.
    pub fn assumed_in_browser(device: Device, kind: Option<AdapterKind>) -> Rates {
        let native = Rates::assumed(device, kind);
        let blocks = [
            (DType::Q8_0, 2.3e9),
            (DType::Q4_0, 1.7e9),
            (DType::Q4_1, 1.6e9),
            (DType::Q6K, 2.1e9),
            (DType::Q4K, 1.5e9),
            (DType::Q3K, 0.2e9),
        ];
        match device {
            Device::Disk => native,
            Device::Cpu => Rates {
                host_copy: Some(BytesPerSec(5e9)),
                matvec: blocks.into_iter().chain([(DType::F16, 1e9)]).map(|(dtype, rate)| (dtype, BytesPerSec(rate))).collect(),
                matmul: blocks.into_iter().map(|(dtype, _)| (dtype, 30e9)).chain([(DType::F16, 2e9)]).collect(),
                dispatch_secs: Some(1e-6),
                ..native
            },
            Device::Gpu(_) => Rates {
                upload_written: native.upload_staged.map(|rate| BytesPerSec(rate.0.min(2e9))),
                upload_staged: None,
                dispatch_secs: Some(20e-6),
                submit_secs: Some(100e-6),
                round_trip_secs: Some(1e-3),
                ..native
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MatMulVariant, Phase};

    fn measured() -> Rates {
        Rates {
            upload_staged: Some(BytesPerSec(5e9)),
            matvec: BTreeMap::from([(DType::F32, BytesPerSec(4.0)), (DType::F16, BytesPerSec(2.0)), (DType::Q4_1, BytesPerSec(1.0))]),
            measured_at: Some(1_700_000_000),
            ..Rates::default()
        }
    }

    #[test]
    fn the_nearest_dtype_stands_for_one_that_was_not_measured() {
        let rates = measured();
        for (dtype, expected) in [
            (DType::F32, 4.0),
            (DType::F16, 2.0),
            (DType::BF16, 2.0),
            (DType::Q8_0, 1.0),
            (DType::Q4_0, 1.0),
            (DType::Q4_1, 1.0),
            (DType::Q6K, 1.0),
        ] {
            assert_eq!(rates.matvec_of(dtype), Some(BytesPerSec(expected)), "{dtype}");
        }
        assert_eq!(rates.matmul_of(DType::F16), None);
    }

    #[test]
    fn gaps_are_filled_and_the_filling_is_marked() {
        let assumed = Rates::assumed(Device::Gpu(0), Some(AdapterKind::Discrete));
        assert_eq!(Rates::default().or(&assumed), assumed);
        assert_eq!(measured().or(&Rates::default()), measured());
        let both = measured().or(&assumed);
        assert_eq!((both.origin, both.upload_staged, both.readback), (Origin::PartlyAssumed, Some(BytesPerSec(5e9)), assumed.readback));
        assert_eq!((both.matvec_of(DType::BF16), both.measured_at), (Some(BytesPerSec(2.0)), Some(1_700_000_000)));
        assert_eq!(both.clone().or(&assumed), both, "nothing is left to fill");
    }

    #[test]
    fn products_measured_later_are_added() {
        let rate = |dtype| BTreeMap::from([(dtype, BytesPerSec(3.0))]);
        let mut variants = MatMulVariants::default();
        variants.insert(DType::Q8_0, Phase::Decode, MatMulVariant::Lane);
        let later =
            Rates { matvec: rate(DType::Q8_0), variants: variants.clone(), dispatch_secs: Some(1e-5), readback: None, ..Rates::default() };
        let both = Rates { dispatch_secs: Some(2e-5), ..measured() }.with_products(later.clone());
        assert_eq!((both.matvec_of(DType::Q8_0), both.matvec_of(DType::F16)), (Some(BytesPerSec(3.0)), Some(BytesPerSec(2.0))));
        assert_eq!((both.variants, both.dispatch_secs, both.upload_staged), (variants, Some(2e-5), Some(BytesPerSec(5e9))));
        assert_eq!(measured().with_products(later).dispatch_secs, Some(1e-5));
    }

    #[test]
    fn every_kind_of_device_has_assumptions_and_they_are_marked() {
        let kinds = [AdapterKind::Discrete, AdapterKind::Integrated, AdapterKind::Virtual, AdapterKind::Software, AdapterKind::Other];
        for kind in kinds {
            let rates = Rates::assumed(Device::Gpu(0), Some(kind));
            assert!(rates.matvec_of(DType::Q4_0).is_some() && rates.upload().is_some() && rates.origin == Origin::Assumed, "{kind:?}");
        }
        assert!(Rates::assumed(Device::Cpu, None).matmul_of(DType::Q8_0).is_some());
        assert!(Rates::assumed(Device::Disk, None).disk_read.is_some());
        assert!(Rates::default().is_empty() && !Rates::assumed(Device::Disk, None).is_empty());
    }

    #[test]
    fn rates_serialise_without_what_is_unknown_and_refuse_unknown_names() {
        let text = serde_json::to_string(&measured()).unwrap();
        assert_eq!(text, r#"{"upload_staged":5000000000.0,"matvec":{"F32":4.0,"F16":2.0,"Q4_1":1.0},"measured_at":1700000000}"#);
        assert_eq!(serde_json::from_str::<Rates>(&text).unwrap(), measured());
        let with_variants: Rates = serde_json::from_str(r#"{"forms": {"few": {"F16": "lane"}}}"#).unwrap();
        assert_eq!(with_variants.variants.of(DType::F16, Phase::Decode), Some(MatMulVariant::Lane), "the key of tierflow.devices/1");
        assert!(serde_json::from_str::<Rates>(r#"{"matvec_f16": 1.0}"#).unwrap_err().to_string().contains("matvec_f16"));
        assert!(serde_json::from_str::<Rates>(r#"{"matvec": {"Q9": 1.0}}"#).unwrap_err().to_string().contains("Q9"));
    }
}
