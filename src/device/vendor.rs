//! The numbers by which PCI knows the makers of GPUs, as adapters report them in [`DeviceSpec::vendor`](super::DeviceSpec).

/// NVIDIA.
pub const NVIDIA: u32 = 0x10de;
/// AMD.
pub const AMD: u32 = 0x1002;
/// Intel.
pub const INTEL: u32 = 0x8086;
/// Apple.
pub const APPLE: u32 = 0x106b;
