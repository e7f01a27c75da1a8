//! Lists what this machine has to compute with: adapters, host memory, disk.
//!
//! Run: `cargo run --release --example list_devices`

use tierflow::machine;

fn main() -> tierflow::Result<()> {
    pollster::block_on(async {
        for found in machine::adapters().await? {
            let spec = found.spec;
            let usable = spec.capacity.map_or_else(|| "of unknown size".to_owned(), |bytes| bytes.to_string());
            println!("{}  {}  {usable}, {}", spec.device, spec.name, spec.driver);
        }
        for spec in [machine::host_spec(), machine::disk_spec()] {
            let usable = spec.capacity.map(|bytes| bytes.to_string()).unwrap_or_default();
            println!("{}  {}  {usable}", spec.device, spec.name);
        }
        Ok(())
    })
}
