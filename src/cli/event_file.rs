//! TensorBoard's event files: records with checksums, each a message of protocol buffers that holds scalars at a step.
//!
//! A record is its length, the checksum of that, the message, and the checksum of that (TFRecord). Messages are `Event` of TensorFlow's
//! `event.proto`, of which there are three kinds here: the version of the file, where a run goes on, and scalars.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};

use crate::error::{Error, Result};

const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A file of events, to be added to.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new one in `folder`, which is made where there is none. What other files there have of steps from `first_step` on is not shown any more.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub(super) fn create(folder: &Path, first_step: u64) -> Result<EventFile> {
        std::fs::create_dir_all(folder).map_err(|error| Error::io("make", folder.display(), error))?;
        let name = format!("events.out.tfevents.{:010}.tierflow.{}", wall_time() as u64, std::process::id());
        let path = folder.join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|error| Error::io("open", path.display(), error))?;
        let mut events = EventFile { path, file };
        events.write(&version())?;
        events.write(&restart(first_step))?;
        Ok(events)
    }

    /// Adds scalars of one step.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub(super) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let values: Vec<u8> = scalars.iter().flat_map(|(tag, value)| field(1, &scalar(tag, *value as f32))).collect();
        self.write(&event(step, &field(5, &values)))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(|error| Error::io("write", self.path.display(), error))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// A message between its length and its checksums.
fn record(message: &[u8]) -> Vec<u8> {
    let len = (message.len() as u64).to_le_bytes();
    [&len[..], &masked(&len), message, &masked(message)].concat()
}

/// The checksum as records have it, so that one of data that holds checksums is no special one.
fn masked(bytes: &[u8]) -> [u8; 4] {
    CHECKSUM.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// `Event`: its wall time and step, and what it holds.
fn event(step: u64, what: &[u8]) -> Vec<u8> {
    let time = wall_time().to_le_bytes();
    [&[(1 << 3) | 1][..], &time, &[2 << 3], &varint(step), what].concat()
}

/// The first event of a file.
fn version() -> Vec<u8> {
    event(0, &field(3, b"brain.Event:2"))
}

/// `SessionLog` with the status `START`: events of former files from `step` on are void.
fn restart(step: u64) -> Vec<u8> {
    event(step, &field(7, &[1 << 3, 1]))
}

/// `Summary.Value` with a tag and a number.
fn scalar(tag: &str, value: f32) -> Vec<u8> {
    [&field(1, tag.as_bytes())[..], &[(2 << 3) | 5], &value.to_le_bytes()].concat()
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[(number << 3) | 2][..], &varint(bytes.len() as u64), bytes].concat()
}

/// A number of a message: seven bits a byte, the lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_messages_are_those_of_tensorboard() {
        // What `tensorboard.summary.writer.record_writer.RecordWriter` writes of these bytes.
        let bytes = record(b"tierflow");
        assert_eq!(bytes.len(), 8 + 4 + 8 + 4);
        assert_eq!(bytes[..8], 8u64.to_le_bytes());
        assert_eq!(u32::from_le_bytes(bytes[8..12].try_into().unwrap()), 0x0f24_86ff);
        assert_eq!(u32::from_le_bytes(bytes[20..].try_into().unwrap()), 0xce22_2bfc);
        // `Event(step=300).SerializeToString()` and others of its protocol buffers, but for the wall time.
        assert_eq!(event(300, &[])[9..], [0x10, 0xac, 0x02]);
        assert_eq!(scalar("a/b", 0.5), [0x0a, 3, b'a', b'/', b'b', 0x15, 0, 0, 0, 0x3f]);
        assert_eq!(restart(7)[9..], [0x10, 7, 0x3a, 2, 8, 1]);
        assert_eq!(version()[11..], *b"\x1a\x0dbrain.Event:2");
    }
}
