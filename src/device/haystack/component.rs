//! What a component of a pipeline runs on: one device or a device map, and how other libraries write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Available, Device, DeviceMap, DeviceType, invalid_device, invalid_map};
use crate::error::{Error, Result};

/// The device or the device map of a component. A single device is never the disk.
///
/// Serialises as Haystack's dictionaries: `{"type": "single", "device": "cuda:1"}` or
/// `{"type": "multiple", "device_map": {"layer1": "cuda:1", "layer2": "disk"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Map<String, Value>", try_from = "Map<String, Value>")]
pub struct ComponentDevice(Extent);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Extent {
    Single(Device),
    Multiple(DeviceMap),
}

/// What becomes of a device that a backend's keyword arguments name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is written.
    Keep,
    /// It is overwritten.
    Overwrite,
}

impl ComponentDevice {
    /// One device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a disk, which computes nothing.
    pub fn from_single(device: Device) -> Result<ComponentDevice> {
        if device.device_type == DeviceType::Disk {
            let reason = "The disk device can only be used as a part of device maps; name cpu, cuda:N, xpu or mps".to_owned();
            return Err(invalid_device(reason));
        }
        Ok(ComponentDevice(Extent::Single(device)))
    }

    /// A device for each of several parts.
    pub fn from_multiple(device_map: DeviceMap) -> ComponentDevice {
        ComponentDevice(Extent::Multiple(device_map))
    }

    /// `device`, or where there is none the best of `available`.
    pub fn resolve_device(device: Option<ComponentDevice>, available: &Available) -> ComponentDevice {
        // The default is never the disk.
        device.unwrap_or_else(|| ComponentDevice(Extent::Single(available.default_device())))
    }

    /// The device, where it is a single one.
    pub fn single(&self) -> Option<Device> {
        match &self.0 {
            Extent::Single(device) => Some(*device),
            Extent::Multiple(_) => None,
        }
    }

    /// The device map, where it is one.
    pub fn multiple(&self) -> Option<&DeviceMap> {
        match &self.0 {
            Extent::Single(_) => None,
            Extent::Multiple(map) => Some(map),
        }
    }

    /// Whether it is a device map, be it of one device.
    pub fn has_multiple_devices(&self) -> bool {
        self.multiple().is_some()
    }

    /// The single device, or the first of the map: where the inputs go.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the map is empty or its first device is a disk.
    pub fn first_device(&self) -> Result<ComponentDevice> {
        match &self.0 {
            Extent::Single(_) => Ok(self.clone()),
            Extent::Multiple(map) => {
                let first = map.first_device();
                ComponentDevice::from_single(first.ok_or_else(|| invalid_map("the map is empty; name a device for some part".into()))?)
            }
        }
    }

    /// The text that PyTorch reads as a device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a device map.
    pub fn to_torch_str(&self) -> Result<String> {
        Ok(self.only_single("PyTorch")?.to_string())
    }

    /// spaCy's number of a device: the id of a `cuda` device, -1 for any other.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a device map, and for `cuda` without an id.
    pub fn to_spacy(&self) -> Result<i64> {
        match self.only_single("spaCy")? {
            Device { device_type: DeviceType::Gpu, id: Some(id) } => Ok(i64::from(id)),
            Device { device_type: DeviceType::Gpu, id: None } => {
                Err(invalid_device("spaCy wants the number of a GPU, and `cuda` has none; write cuda:0".into()))
            }
            _ => Ok(-1),
        }
    }

    /// What HuggingFace's libraries take: the text of a single device, or a map with plain numbers for `cuda` devices.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a map with a `cuda` device that has no id.
    pub fn to_hf(&self) -> Result<Value> {
        let to_hf = |(name, device): (&str, Device)| match (device.device_type, device.id) {
            (DeviceType::Gpu, Some(id)) => Ok((name.to_owned(), Value::from(id))),
            (DeviceType::Gpu, None) => {
                Err(invalid_map(format!("`{name}`: HuggingFace's maps want the number of a GPU, and `cuda` has none; write cuda:0")))
            }
            _ => Ok((name.to_owned(), Value::from(device.to_string()))),
        };
        match &self.0 {
            Extent::Single(device) => Ok(Value::from(device.to_string())),
            Extent::Multiple(map) => map.iter().map(to_hf).collect::<Result<Map<_, _>>>().map(Value::Object),
        }
    }

    /// Writes [`ComponentDevice::to_hf`] into the keyword arguments of a HuggingFace call: under `device` a single device,
    /// under `device_map` a map. Of the two keys, the other one stays as it is, as in Haystack.
    ///
    /// # Errors
    /// Those of [`ComponentDevice::to_hf`]; `kwargs` is then unchanged.
    pub fn update_hf_kwargs(&self, kwargs: &mut Map<String, Value>, existing: Existing) -> Result<()> {
        let is_named = kwargs.contains_key("device") || kwargs.contains_key("device_map");
        if is_named && existing == Existing::Keep {
            return Ok(());
        }
        let key = if self.has_multiple_devices() { "device_map" } else { "device" };
        kwargs.insert(key.to_owned(), self.to_hf()?);
        Ok(())
    }

    /// The dictionary that pipelines keep.
    pub fn to_dict(&self) -> Map<String, Value> {
        let (kind, key, value) = match &self.0 {
            Extent::Single(device) => ("single", "device", Value::from(device.to_string())),
            Extent::Multiple(map) => ("multiple", "device_map", Value::Object(map.to_dict())),
        };
        [("type".to_owned(), Value::from(kind)), (key.to_owned(), value)].into_iter().collect()
    }

    /// Reads what [`ComponentDevice::to_dict`] makes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another type, a missing key, or a value that is no device.
    pub fn from_dict(dict: &Map<String, Value>) -> Result<ComponentDevice> {
        let key = |key: &str| dict.get(key).ok_or_else(|| invalid_device(format!("serialized data without `{key}`; add it")));
        match key("type")? {
            Value::String(kind) if kind == "single" => match key("device")? {
                Value::String(text) => text.parse(),
                other => Err(invalid_device(format!("`device` is a string as \"cuda:1\", got {other}"))),
            },
            Value::String(kind) if kind == "multiple" => match key("device_map")? {
                Value::Object(map) => DeviceMap::from_dict(map).map(ComponentDevice::from_multiple),
                other => Err(invalid_map(format!("a device map is an object as {{\"layer1\": \"cuda:1\"}}, got {other}"))),
            },
            other => {
                let kind = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
                Err(invalid_device(format!("Unknown component device type '{kind}' in serialized data; write single or multiple")))
            }
        }
    }

    fn only_single(&self, library: &str) -> Result<Device> {
        self.single().ok_or_else(|| {
            invalid_map(format!("Only single devices can be converted to {library} format; name one device, or take first_device"))
        })
    }
}

/// A single device as its text, a map as its dictionary.
impl fmt::Display for ComponentDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Extent::Single(device) => device.fmt(f),
            Extent::Multiple(map) => f.pad(&Value::Object(map.to_dict()).to_string()),
        }
    }
}

/// Reads a single device.
impl FromStr for ComponentDevice {
    type Err = Error;

    fn from_str(text: &str) -> Result<ComponentDevice> {
        ComponentDevice::from_single(text.parse()?)
    }
}

impl From<ComponentDevice> for Map<String, Value> {
    fn from(device: ComponentDevice) -> Map<String, Value> {
        device.to_dict()
    }
}

impl TryFrom<Map<String, Value>> for ComponentDevice {
    type Error = Error;

    fn try_from(dict: Map<String, Value>) -> Result<ComponentDevice> {
        ComponentDevice::from_dict(&dict)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn damaged_dictionaries_are_refused_with_words() {
        for (dict, part) in [
            (json!({"device": "cpu"}), "without `type`"),
            (json!({"type": "single"}), "without `device`"),
            (json!({"type": "multiple", "device": "cpu"}), "without `device_map`"),
            (json!({"type": "single", "device": 1}), "`device` is a string"),
            (json!({"type": "single", "device": "disk"}), "part of device maps"),
            (json!({"type": "multiple", "device_map": "auto"}), "got \"auto\""),
            (json!({"type": "multiple", "device_map": {"a": 0}}), "`a`: a device is a string"),
            (json!({"type": 1}), "Unknown component device type '1'"),
        ] {
            let error = serde_json::from_value::<ComponentDevice>(dict.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{dict}: {error}");
        }
    }

    #[test]
    fn a_failed_update_changes_nothing() {
        let device = ComponentDevice::from_multiple([("a", "cuda".parse().unwrap())].into_iter().collect());
        let mut kwargs = json!({"device": 0}).as_object().unwrap().clone();
        let error = device.update_hf_kwargs(&mut kwargs, Existing::Overwrite).unwrap_err().to_string();
        assert!(error.contains("`a`") && error.contains("cuda:0"), "{error}");
        assert_eq!(Value::Object(kwargs), json!({"device": 0}));
    }
}
