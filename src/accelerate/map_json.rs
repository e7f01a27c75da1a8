//! Device maps as JSON, as Accelerate and transformers write them: an object of names and devices.

use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::Value;

use crate::accelerate::{DeviceKey, DeviceMap};
use crate::error::{Error, Result};

/// The kinds of accelerators that torch numbers, and our own.
const ACCELERATORS: [&str; 8] = ["cuda", "gpu", "xpu", "npu", "hpu", "mlu", "musa", "sdaa"];

/// The keys under which a map is kept: by transformers for a loaded model, and by Haystack and configs of pipelines.
const WRAPPERS: [&str; 2] = ["hf_device_map", "device_map"];

impl DeviceMap {
    /// Reads a map from JSON: an object of names and devices, or one that holds such an object as `hf_device_map` or `device_map`. A
    /// device is a number from 0, `gpu`, `gpu:N`, the same with torch's names of accelerators (`cuda:N`), `mps`, `cpu` or `disk`. Of two
    /// entries with one name the last counts, as in Python. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where it is no such object, is empty, or names a device that there cannot be.
    pub fn from_json(json: &str, path: &str) -> Result<DeviceMap> {
        let invalid = |reason: String| Error::invalid_file(path, reason);
        let value: Value = serde_json::from_str(json).map_err(|error| invalid(no_json(json, &error)))?;
        let inner = WRAPPERS.iter().find_map(|wrapper| value.get(wrapper).filter(|inner| inner.is_object()));
        let value = inner.unwrap_or(&value);
        let Value::Object(entries) = value else {
            return Err(invalid(
                r#"a device map is an object of modules and devices; write {"model.layers.0": 0, "lm_head": "cpu"}"#.into(),
            ));
        };
        if entries.is_empty() {
            return Err(invalid(r#"the device map is empty; write {"": 0} for a whole model on one device"#.into()));
        }
        let read = |(name, value): (&String, &Value)| match device(value) {
            Some(device) => Ok((name.clone(), device)),
            None => Err(invalid(format!("`{name}` is mapped to {value}, which is no device; write 0, gpu:0, cuda:0, mps, cpu or disk"))),
        };
        entries.iter().map(read).collect()
    }

    /// Writes the map as Accelerate has it, one entry a line, in its order: numbers for accelerators, strings for the others.
    pub fn to_json(&self) -> String {
        // `:#` prints a value with line breaks, and a map of names and devices is always a value.
        serde_json::to_value(self).map(|value| format!("{value:#}\n")).unwrap_or_default()
    }
}

/// Why a text is no JSON: often it is what Python's `print` shows of a map.
fn no_json(text: &str, error: &serde_json::Error) -> String {
    match text.trim_start() {
        "" => "it is empty".into(),
        text if text.starts_with("OrderedDict(") || text.starts_with("{'") => {
            "it is no JSON but what Python prints of a dict; write it with json.dump(dict(model.hf_device_map), file)".into()
        }
        _ => format!("it is no JSON: {error}"),
    }
}

fn device(value: &Value) -> Option<DeviceKey> {
    let text = match value {
        Value::Number(number) => return accelerator(number.as_u64()?),
        Value::String(text) => text.as_str(),
        _ => return None,
    };
    match text {
        "mps" | "mps:0" => return Some(DeviceKey::Mps),
        "cpu" | "cpu:0" => return Some(DeviceKey::Cpu),
        "disk" => return Some(DeviceKey::Disk),
        _ if ACCELERATORS.contains(&text) => return accelerator(0),
        _ => {}
    }
    let index = match text.split_once(':') {
        Some((kind, index)) => ACCELERATORS.contains(&kind).then_some(index)?,
        None => text,
    };
    let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    accelerator(is_number.then_some(index)?.parse().ok()?)
}

/// Adapters are numbered with 32 bits.
fn accelerator(index: u64) -> Option<DeviceKey> {
    u32::try_from(index).ok().map(|index| DeviceKey::Accelerator(i64::from(index)))
}

impl Serialize for DeviceMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (name, device) in self.iter() {
            map.serialize_entry(name, &device)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_devices_are_read() {
        let json = r#"{"a": 0, "b": "cuda:1", "c": "gpu:2", "d": "gpu", "e": "3", "f": "xpu:4", "g": "mps", "h": "cpu", "i": "disk"}"#;
        let map = DeviceMap::from_json(json, "map.json").unwrap();
        assert_eq!(
            map.to_json().split_whitespace().collect::<String>(),
            r#"{"a":0,"b":1,"c":2,"d":0,"e":3,"f":4,"g":"mps","h":"cpu","i":"disk"}"#
        );
        assert_eq!(DeviceMap::from_json(&map.to_json(), "").unwrap(), map);
        assert_eq!(DeviceMap::from_json(&format!(r#"{{"model_type": "llama", "hf_device_map": {json}}}"#), "").unwrap(), map);
        assert_eq!(DeviceMap::from_json(&format!(r#"{{"type": "multiple", "device_map": {json}}}"#), "").unwrap(), map);
        assert_eq!(DeviceMap::from_json(r#"{"a": "cpu", "a": 0}"#, "").unwrap().to_json(), "{\n  \"a\": 0\n}\n");
    }

    #[test]
    fn what_is_no_map_is_refused_with_advice() {
        for (json, part) in [
            ("", "it is empty"),
            ("{'a': 0}", "json.dump"),
            ("OrderedDict([('a', 0)])", "what Python prints"),
            (r#"{"a": 0,}"#, "no JSON"),
            ("null", "is an object of modules and devices"),
            (r#"{"a": true}"#, "`a` is mapped to true"),
            (r#"{"a": "auto"}"#, "no device"),
            ("[1]", "is an object of modules and devices"),
            ("{}", r#"write {"": 0}"#),
            (r#"{"hf_device_map": {}}"#, "is empty"),
            (r#"{"a": -1}"#, "`a` is mapped to -1"),
            (r#"{"a": 1.5}"#, "mapped to 1.5"),
            (r#"{"a": "cuda:-1"}"#, r#"mapped to "cuda:-1""#),
            (r#"{"a": "meta"}"#, r#"mapped to "meta", which is no device"#),
            (r#"{"a": "cuda:"}"#, "no device"),
            (r#"{"a": {"b": 0}}"#, "no device"),
            (r#"{"a": null}"#, "no device"),
            (r#"{"a": 99999999999}"#, "no device"),
        ] {
            let error = DeviceMap::from_json(json, "map.json").unwrap_err();
            assert!(error.to_string().starts_with("map.json: ") && error.to_string().contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn the_longest_entry_decides() {
        let map = DeviceMap::from_json(r#"{"": "disk", "a": 0, "a.b": "cpu"}"#, "").unwrap();
        for (name, device) in
            [("a.b.weight", DeviceKey::Cpu), ("a.bc", DeviceKey::Accelerator(0)), ("ab", DeviceKey::Disk), ("", DeviceKey::Disk)]
        {
            assert_eq!(map.device_of(name), Some(device), "{name}");
        }
    }
}
