//! The messages of Accelerate's planner to its user.

use std::fmt;

use crate::accelerate::{Amount, DeviceKey};

/// A message of the planner. Prints in Accelerate's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The config says that weights are tied, and the tree has no tied ones.
    NotTied,
    /// Nothing could be put on these devices.
    Skipped {
        /// Each with what would have been enough for the item that it was left with.
        devices: Vec<(DeviceKey, Amount)>,
    },
    /// Buffers of modules off the accelerators have no room on any accelerator, where they are needed.
    BuffersDoNotFit {
        /// How large they are.
        bytes: Amount,
    },
    /// A lone accelerator is not filled completely.
    KeepsATenth {
        /// Which one.
        device: DeviceKey,
    },
    /// Keys of a map that are no modules; what they name still gets its device.
    NoModules {
        /// The keys.
        keys: Vec<String>,
    },
}

/// How loud a [`Notice`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeLevel {
    /// Logged as information.
    Info,
    /// Logged as a warning.
    Warning,
    /// Raised with Python's `warnings.warn`.
    UserWarning,
}

impl Notice {
    /// How Accelerate brings it forward.
    pub fn level(&self) -> NoticeLevel {
        match self {
            Notice::Skipped { .. } | Notice::KeepsATenth { .. } => NoticeLevel::Info,
            Notice::NotTied => NoticeLevel::Warning,
            Notice::BuffersDoNotFit { .. } | Notice::NoModules { .. } => NoticeLevel::UserWarning,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::NotTied => f.write_str(
                "The model weights are not tied. Please use the `tie_weights` method before using the `infer_auto_device` function.",
            ),
            Notice::Skipped { devices } => {
                f.write_str(
                    "Based on the current allocation process, no modules could be assigned to the following devices due to \
                     insufficient memory:\n",
                )?;
                for (device, needed) in devices {
                    writeln!(f, "  - {device}: {needed} bytes required")?;
                }
                f.write_str(
                    "These minimum requirements are specific to this allocation attempt and may vary. Consider increasing the available \
                     memory for these devices to at least the specified minimum, or adjusting the model config.",
                )
            }
            Notice::BuffersDoNotFit { bytes } => write!(
                f,
                "Current model requires {bytes} bytes of buffer for offloaded layers, which seems does not fit any GPU's remaining \
                 memory. If you are experiencing a OOM later, please consider using offload_buffers=True."
            ),
            Notice::KeepsATenth { device } => write!(
                f,
                "We will use 90% of the memory on device {device} for storing the model, and 10% for the buffer to avoid OOM. You can \
                 set `max_memory` in to a higher value to use more memory (at your own risk)."
            ),
            Notice::NoModules { keys } => {
                let keys: Vec<String> = keys.iter().map(|key| python_repr(key)).collect();
                write!(f, "The following device_map keys do not match any submodules in the model: [{}]", keys.join(", "))
            }
        }
    }
}

/// A string as Python prints it inside a list.
fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut repr = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => repr.push_str("\\\\"),
            '\n' => repr.push_str("\\n"),
            '\r' => repr.push_str("\\r"),
            '\t' => repr.push_str("\\t"),
            _ if character == quote => repr.extend(['\\', quote]),
            _ if character.is_ascii_control() => repr.push_str(&format!("\\x{:02x}", character as u32)),
            _ => repr.push(character),
        }
    }
    repr.push(quote);
    repr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_print_as_pythons_strings() {
        for (text, repr) in [("a.b", "'a.b'"), ("it's", "\"it's\""), ("'\"", "'\\'\"'"), ("a\n\\", "'a\\n\\\\'"), ("\u{1b}", "'\\x1b'")] {
            assert_eq!(python_repr(text), repr);
        }
    }
}
