//! From Haystack's words to our devices: which adapter `cuda:1`, `xpu` or `mps` is on a given machine.

use super::{Device, DeviceType};
use crate::device::vendor::{AMD, APPLE, INTEL, NVIDIA};
use crate::device::{self, DeviceSpec};
use crate::error::Result;

impl Device {
    /// The device that this word means among `specs`. An accelerator's id counts the adapters of the word's vendors in the
    /// order of `specs` (without an id, it is the first), so that `cuda:0` may be `gpu:1` on a machine whose `gpu:0` is
    /// Intel's. There is one host and one disk, whatever id they are given.
    ///
    /// # Errors
    /// [`crate::error::Error::NoGpu`] where there is no such adapter; its text lists those that there are.
    pub fn resolve<'a>(self, specs: impl IntoIterator<Item = &'a DeviceSpec>) -> Result<device::Device> {
        match self.device_type {
            DeviceType::Cpu => return Ok(device::Device::Cpu),
            DeviceType::Disk => return Ok(device::Device::Disk),
            DeviceType::Gpu | DeviceType::Mps | DeviceType::Xpu => {}
        }
        let specs: Vec<&DeviceSpec> = specs.into_iter().collect();
        let named: Vec<&DeviceSpec> = specs.iter().copied().filter(|spec| self.device_type.names(spec)).collect();
        named.get(self.id.unwrap_or(0) as usize).map(|spec| spec.device).ok_or_else(|| {
            let makers = match self.device_type {
                DeviceType::Xpu => "Intel",
                DeviceType::Mps => "Apple",
                _ => "NVIDIA and AMD",
            };
            device::no_gpu(format!("{self} was asked for (adapters of {makers}: {})", named.len()), specs)
        })
    }
}

impl DeviceType {
    /// Whether this word means the device of `spec`. Software adapters (Mesa's vendor number is 0x10005) have no word.
    pub(super) fn names(self, spec: &DeviceSpec) -> bool {
        match (self, spec.device) {
            (DeviceType::Cpu, device::Device::Cpu) | (DeviceType::Disk, device::Device::Disk) => true,
            (DeviceType::Gpu, device::Device::Gpu(_)) => matches!(spec.vendor, NVIDIA | AMD),
            (DeviceType::Xpu, device::Device::Gpu(_)) => spec.vendor == INTEL,
            (DeviceType::Mps, device::Device::Gpu(_)) => spec.vendor == APPLE,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Available;
    use super::*;
    use crate::device::Rates;
    use crate::units::Bytes;

    const MESA: u32 = 0x10005;

    fn machine(vendors: &[u32]) -> Vec<DeviceSpec> {
        let spec = |device: device::Device, vendor: u32| DeviceSpec {
            device,
            name: format!("made by {vendor:#x}"),
            vendor,
            driver: String::new(),
            kind: None,
            capacity: Some(Bytes::gib(1)),
            capacity_source: String::new(),
            limits: None,
            rates: Rates::default(),
        };
        let adapters = (0..).map(device::Device::Gpu).zip(vendors).map(|(device, vendor)| spec(device, *vendor));
        adapters.chain([spec(device::Device::Cpu, 0), spec(device::Device::Disk, 0)]).collect()
    }

    fn resolve(text: &str, vendors: &[u32]) -> Result<device::Device> {
        text.parse::<Device>()?.resolve(&machine(vendors))
    }

    #[test]
    fn words_count_the_adapters_of_their_vendors() {
        let mixed = [INTEL, NVIDIA, AMD, APPLE, MESA, INTEL];
        for (text, device) in [
            ("cuda", device::Device::Gpu(1)),
            ("cuda:0", device::Device::Gpu(1)),
            ("cuda:1", device::Device::Gpu(2)),
            ("xpu", device::Device::Gpu(0)),
            ("xpu:1", device::Device::Gpu(5)),
            ("mps", device::Device::Gpu(3)),
            ("mps:0", device::Device::Gpu(3)),
            ("cpu", device::Device::Cpu),
            ("cpu:0", device::Device::Cpu),
            ("disk", device::Device::Disk),
        ] {
            assert_eq!(resolve(text, &mixed).unwrap(), device, "{text}");
        }
        for text in ["cuda:2", "xpu:2", "mps:1"] {
            assert!(resolve(text, &mixed).is_err(), "{text}");
        }
    }

    #[test]
    fn a_missing_adapter_is_reported_with_those_there_are() {
        let error = resolve("cuda:1", &[INTEL, NVIDIA]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("cuda:1 was asked for (adapters of NVIDIA and AMD: 1)")
                && text.contains("gpu:0 (made by 0x8086), gpu:1 (made by 0x10de)"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 4);
        assert!(resolve("mps", &[]).unwrap_err().to_string().contains("there is no adapter"));
    }

    #[test]
    fn neither_software_nor_unknown_vendors_have_a_word() {
        for text in ["cuda", "xpu", "mps"] {
            assert!(resolve(text, &[MESA, 0]).is_err(), "{text}");
        }
        for (vendors, default) in [(&[MESA, AMD][..], "cuda:0"), (&[MESA, INTEL, APPLE], "xpu"), (&[APPLE], "mps"), (&[MESA], "cpu")] {
            assert_eq!(Available::of(&machine(vendors)).default_device().to_string(), default);
        }
    }
}
