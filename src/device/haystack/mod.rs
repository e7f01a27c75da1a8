//! Devices in the words of Haystack's `haystack.utils.device`: `cuda:1`, `mps`, device maps, component devices, and the
//! dictionaries that pipelines keep of them. Plain data; [`Device::resolve`] says which of our devices a word means.
//!
//! The names are Haystack's own, so that its users find what they know; in this module `Device` is Haystack's, while
//! [`crate::Device`] is the place that a plan knows (`gpu:N`, `cpu`, `disk`).
//!
//! ```
//! use tierflow::device::haystack::{Available, ComponentDevice, Device, DeviceMap, DeviceType, Existing};
//!
//! # fn main() -> tierflow::Result<()> {
//! let single: ComponentDevice = "cuda:1".parse()?;
//! assert_eq!(single.to_torch_str()?, "cuda:1");
//! assert_eq!(serde_json::to_string(&single).unwrap(), r#"{"type":"single","device":"cuda:1"}"#);
//!
//! let map: DeviceMap = [("encoder", Device::cpu()), ("decoder", Device::gpu(1))].into_iter().collect();
//! let mut kwargs = serde_json::Map::new();
//! ComponentDevice::from_multiple(map).update_hf_kwargs(&mut kwargs, Existing::Keep)?;
//! assert_eq!(kwargs["device_map"]["decoder"], 1);
//!
//! let available = Available::new([DeviceType::Mps]);
//! assert_eq!(ComponentDevice::resolve_device(None, &available).to_string(), "mps");
//! # Ok(())
//! # }
//! ```
//!
//! # Where this differs from Haystack
//!
//! Every refusal is an [`Error::InvalidArgument`]. Where Haystack raises a `ValueError`, its text is part of ours, which adds
//! what to write instead. What Haystack lets pass by an accident of Python, or answers with an error without words, is
//! refused with words:
//!
//! | Haystack | here |
//! |---|---|
//! | an id is what `int()` reads: `cuda:007`, `cuda: 1`, `cuda:+1` and `cuda:1_0` are 7, 1, 1 and 10 | an id is written in one way, plain digits; these are refused |
//! | `cuda:1:2`: "too many values to unpack" | refused because `1:2` is no integer |
//! | ids of any size | ids up to 4294967295 |
//! | `from_hf` takes `true` for a number and makes `cuda:True` of it | refused as an unexpected device |
//! | `from_hf` raises a `TypeError` that writes `None` and `True` | same text, the value written as in JSON: `null`, `true` |
//! | `from_hf` also reads `torch.device` | its text form does: `cuda:1` |
//! | `to_spacy`, or `to_hf` of a map, on `cuda` without an id: `AssertionError` | refused; the text names what lacks an id |
//! | `first_device` of an empty map: `AssertionError` | refused |
//! | `from_dict` without `type`, `device` or `device_map`: `KeyError`; with values of other types: `TypeError` | refused; the text names the key |
//! | a component device that is empty, or both single and a map: `ValueError` or `AssertionError` at first use | cannot be made |
//! | `gpu(-1)`; `resolve_device("cuda")`; assigning to a field of a frozen component device | do not compile |
//! | devices cannot be hashed | [`Device`] has `Hash` |
//! | `to_torch` makes a `torch.device` | left out; `to_torch_str` says the same |
//! | `update_hf_kwargs(…, overwrite=True)` | [`Existing::Overwrite`] |
//! | the default device is what torch finds | what [`Available`] holds, in the same order and with the same switches |

mod component;
mod default;
mod map;
mod resolve;
mod typed;

pub use component::{ComponentDevice, Existing};
pub use default::Available;
pub use map::DeviceMap;
pub use typed::{Device, DeviceType};

use crate::error::Error;

/// Refuses a device.
fn invalid_device(reason: String) -> Error {
    Error::InvalidArgument { option: "device".into(), reason }
}

/// Refuses a device map.
fn invalid_map(reason: String) -> Error {
    Error::InvalidArgument { option: "device_map".into(), reason }
}
