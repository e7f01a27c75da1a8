//! Measured rates, kept in one file for all devices of this user, or by the page in a browser. A cache: what cannot be read is measured
//! again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::device::{Aspect, Rates, Sample};
use crate::platform;
use crate::units::Bytes;

/// What the file is called.
pub const RATES_FILE: &str = "rates.json";

/// Version of the file's format, of what its figures mean, and of the kernels that they were measured with. With a file of another
/// version, everything is measured again.
const VERSION: u32 = 10;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    /// By device: name and driver of an adapter, processor and threads, file system.
    rates: BTreeMap<String, Rates>,
    /// Memory that adapters gave which report none.
    #[serde(default)]
    memory: BTreeMap<String, Bytes>,
}

impl Default for File {
    fn default() -> File {
        File { version: VERSION, rates: BTreeMap::new(), memory: BTreeMap::new() }
    }
}

/// Measurements that runs contradict are dropped, and made again, only where they are older than this many seconds: where the planner's
/// model of the machine is wrong, new measurements would give the same figures at once.
const REFUTED_AGE: u64 = 3600;

impl File {
    /// Reads a file; an empty one in place of what is no file of this version.
    fn parse(bytes: &[u8]) -> File {
        let file = serde_json::from_slice(bytes).ok();
        file.filter(|file: &File| file.version == VERSION).unwrap_or_default()
    }

    /// Whether that changed anything. The sample's own time says how old the measurement is.
    fn correct(&mut self, key: &str, aspect: Aspect, sample: Sample, measured_at: Option<u64>) -> bool {
        let Some(rates) = self.rates.get_mut(key).filter(|rates| rates.measured_at == measured_at) else { return false };
        let correction = rates.corrections.entry(aspect).or_default();
        correction.add(sample);
        let age = sample.at.zip(measured_at).map(|(at, measured_at)| at.saturating_sub(measured_at));
        if correction.refutes() && age.is_some_and(|age| age > REFUTED_AGE) {
            tracing::info!("runs refute the measured rates of {key}: they will be measured anew");
            self.rates.remove(key);
        }
        true
    }
}

/// The rates that were measured of the device that `key` names.
pub(super) fn find(key: &str) -> Option<Rates> {
    read().rates.remove(key)
}

/// Keeps `rates`, dated now where they have no date, for later plans. A cache that cannot be written is no error.
pub(super) fn keep(key: String, mut rates: Rates) -> Rates {
    rates.measured_at = rates.measured_at.or_else(platform::clock::unix_seconds);
    change(|file| file.rates.extend([(key, rates.clone())]));
    rates
}

/// Counts what a run showed of the device that `key` names, whose rates were measured at `measured_at`; others measured since are
/// another matter.
pub(super) fn correct(key: &str, aspect: Aspect, sample: Sample, measured_at: Option<u64>) {
    let mut file = read();
    if file.correct(key, aspect, sample, measured_at) {
        write(&file);
    }
}

/// The memory that the adapter that `key` names gave.
pub(super) fn find_memory(key: &str) -> Option<Bytes> {
    read().memory.remove(key)
}

/// Keeps how much memory an adapter gave.
pub(super) fn keep_memory(key: String, size: Bytes) {
    change(|file| file.memory.extend([(key, size)]));
}

fn read() -> File {
    platform::kept(RATES_FILE).map_or_else(File::default, |bytes| File::parse(&bytes))
}

fn change(change: impl FnOnce(&mut File)) {
    let mut file = read();
    change(&mut file);
    write(&file);
}

fn write(file: &File) {
    let text = serde_json::to_vec_pretty(file).map_err(|error| error.to_string());
    let written = text.and_then(|text| platform::keep(RATES_FILE, &text).map_err(|error| error.to_string()));
    if let Err(error) = written {
        tracing::debug!("the measured rates were not kept: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BytesPerSec;

    #[test]
    fn runs_correct_the_rates_they_were_planned_with_and_refute_what_is_far_off() {
        let sample = |factor, at| Sample { factor, waited: 0.0, at: Some(at) };
        let of = |rates: Rates| File { rates: BTreeMap::from([("disk".to_owned(), rates)]), ..File::default() };
        let measured = Rates { disk_read: Some(BytesPerSec(1e9)), measured_at: Some(100), ..Rates::default() };
        let mut file = of(measured.clone());
        assert!(!file.correct("cpu", Aspect::Read, sample(2.0, 200), Some(100)));
        assert!(!file.correct("disk", Aspect::Read, sample(2.0, 200), Some(99)), "measured anew since");
        assert_eq!(file.rates["disk"], measured);
        assert!(file.correct("disk", Aspect::Read, sample(2.0, 200), Some(100)));
        let kept = &file.rates["disk"];
        assert_eq!((kept.corrections[&Aspect::Read].factor(), kept.disk_read), (2.0, Some(BytesPerSec(1e9))));

        let far_off = |at| {
            let mut file = of(measured.clone());
            for _ in 0..5 {
                file.correct("disk", Aspect::Read, sample(8.0, at), Some(100));
            }
            file.rates.contains_key("disk")
        };
        assert!(far_off(200) && !far_off(100 + REFUTED_AGE + 1));
    }

    #[test]
    fn rates_are_read_again_and_other_versions_are_not_believed() {
        let rates = Rates { disk_read: Some(BytesPerSec(3e9)), ..Rates::default() };
        let kept = BTreeMap::from([("disk".to_owned(), rates)]);
        let text = serde_json::to_string_pretty(&File { rates: kept.clone(), ..File::default() }).unwrap();
        assert_eq!(File::parse(text.as_bytes()).rates, kept);
        for broken in [
            text.replace(&format!("\"version\": {VERSION}"), "\"version\": 1"),
            text[..text.len() / 2].to_owned(),
            "{\"disk\": {}}".to_owned(),
        ] {
            assert!(File::parse(broken.as_bytes()).rates.is_empty(), "{broken}");
        }
    }
}
