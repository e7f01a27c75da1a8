//! Which part of a model is on which device, in Haystack's words. Keeps the order in which parts were named.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Device, DeviceType, invalid_map};
use crate::error::{Error, Result};

/// Names of a model's parts, each with its device, in the order of insertion. Two maps with the same pairs are equal,
/// whatever their order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(into = "Map<String, Value>", try_from = "Map<String, Value>")]
pub struct DeviceMap {
    pairs: Vec<(String, Device)>,
    /// Where in `pairs` each name is.
    places: HashMap<String, usize>,
}

impl DeviceMap {
    /// The device of `name`.
    pub fn get(&self, name: &str) -> Option<Device> {
        let (_, device) = self.pairs.get(*self.places.get(name)?)?;
        Some(*device)
    }

    /// Puts `name` on `device` and returns where it was; a name that is there already keeps its place in the order.
    pub fn insert(&mut self, name: impl Into<String>, device: Device) -> Option<Device> {
        let name = name.into();
        if let Some((_, present)) = self.places.get(&name).and_then(|place| self.pairs.get_mut(*place)) {
            return Some(std::mem::replace(present, device));
        }
        self.places.insert(name.clone(), self.pairs.len());
        self.pairs.push((name, device));
        None
    }

    /// Whether `name` has a device.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// How many names have a device.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether no name has a device.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Names and devices, in the order of insertion.
    pub fn iter(&self) -> Iter<'_> {
        self.into_iter()
    }

    /// The device of the name that was inserted first.
    pub fn first_device(&self) -> Option<Device> {
        self.pairs.first().map(|(_, device)| *device)
    }

    /// The map as a dictionary: `{"layer1": "cuda:1", "layer2": "disk"}`.
    pub fn to_dict(&self) -> Map<String, Value> {
        self.iter().map(|(name, device)| (name.to_owned(), Value::from(device.to_string()))).collect()
    }

    /// Reads what [`DeviceMap::to_dict`] makes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a value that is no device.
    pub fn from_dict(dict: &Map<String, Value>) -> Result<DeviceMap> {
        read(dict, |name, value| match value {
            Value::String(text) => Device::read(text).map_err(|reason| format!("`{name}`: {reason}")),
            other => Err(format!("`{name}`: a device is a string as \"cuda:1\", got {other}")),
        })
    }

    /// Reads a device map of HuggingFace's, as Accelerate and transformers write it: a number is the GPU of that number,
    /// a string is a device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a value that is neither.
    pub fn from_hf(map: &Map<String, Value>) -> Result<DeviceMap> {
        read(map, |name, value| match value {
            Value::String(text) => Device::read(text).map_err(|reason| format!("`{name}`: {reason}")),
            Value::Number(id) if !id.is_f64() => {
                Device::numbered(DeviceType::Gpu, &id.to_string()).map_err(|reason| format!("`{name}`: {reason}"))
            }
            other => Err(format!(
                "Couldn't convert HuggingFace device map - unexpected device '{other}' for '{name}'; write a GPU's number or a string as \"cpu\""
            )),
        })
    }
}

fn read(map: &Map<String, Value>, device: impl Fn(&str, &Value) -> Result<Device, String>) -> Result<DeviceMap> {
    map.iter().map(|(name, value)| Ok((name, device(name, value).map_err(invalid_map)?))).collect()
}

impl PartialEq for DeviceMap {
    fn eq(&self, other: &DeviceMap) -> bool {
        self.len() == other.len() && self.iter().all(|(name, device)| other.get(name) == Some(device))
    }
}

impl Eq for DeviceMap {}

/// Iterator over the pairs of a [`DeviceMap`].
pub type Iter<'a> = std::iter::Map<std::slice::Iter<'a, (String, Device)>, fn(&'a (String, Device)) -> (&'a str, Device)>;

impl<'a> IntoIterator for &'a DeviceMap {
    type Item = (&'a str, Device);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.pairs.iter().map(|(name, device)| (name, *device))
    }
}

impl<S: Into<String>> FromIterator<(S, Device)> for DeviceMap {
    fn from_iter<I: IntoIterator<Item = (S, Device)>>(pairs: I) -> DeviceMap {
        let mut map = DeviceMap::default();
        for (name, device) in pairs {
            map.insert(name, device);
        }
        map
    }
}

impl From<DeviceMap> for Map<String, Value> {
    fn from(map: DeviceMap) -> Map<String, Value> {
        map.to_dict()
    }
}

impl TryFrom<Map<String, Value>> for DeviceMap {
    type Error = Error;

    fn try_from(dict: Map<String, Value>) -> Result<DeviceMap> {
        DeviceMap::from_dict(&dict)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_is_kept_and_equality_ignores_it() {
        let map: DeviceMap = [("b", Device::gpu(1)), ("a", Device::cpu())].into_iter().collect();
        let turned: DeviceMap = [("a", Device::cpu()), ("b", Device::gpu(1))].into_iter().collect();
        assert_eq!(map, turned);
        assert_eq!(map.iter().collect::<Vec<_>>(), [("b", Device::gpu(1)), ("a", Device::cpu())]);
        assert_eq!(serde_json::to_string(&map).unwrap(), r#"{"b":"cuda:1","a":"cpu"}"#);
        let mut other = map.clone();
        assert_eq!(other.insert("b", Device::disk()), Some(Device::gpu(1)));
        assert_eq!(other.first_device(), Some(Device::disk()));
        assert_ne!(map, other);
        let renamed: DeviceMap = [("b", Device::gpu(1)), ("c", Device::cpu())].into_iter().collect();
        assert_ne!(map, renamed);
    }

    #[test]
    fn errors_name_the_entry() {
        for (map, part) in [
            (json!({"a": "cpu", "b": "meta"}), "`b`: Unknown device type string 'meta'"),
            (json!({"a": -1}), "`a`: Device id must be >= 0, got -1"),
            (json!({"a": 4_294_967_296_u64}), "above 4294967295"),
            (json!({"a": 1.0}), "unexpected device '1.0' for 'a'"),
            (json!({"a": ["cpu"]}), "unexpected device '[\"cpu\"]' for 'a'"),
        ] {
            let error = DeviceMap::from_hf(map.as_object().unwrap()).unwrap_err().to_string();
            assert!(error.starts_with("device_map: ") && error.contains(part), "{map}: {error}");
        }
        let error = serde_json::from_value::<DeviceMap>(json!({"a": 0})).unwrap_err().to_string();
        assert!(error.contains("`a`: a device is a string"), "{error}");
    }
}
