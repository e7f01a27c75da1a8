//! `tierflow doctor`: a report to paste into a bug.

use crate::cli::args::DoctorArgs;
use crate::cli::devices::{self, Detail};
use crate::cli::terminal::{print_json, print_report};
use crate::cli::words::text_of;
use crate::error::Result;
use crate::machine::{self, Measure};
use crate::platform::{cache_folder, host_memory, n_threads};

/// Looks at everything and prints it.
///
/// # Errors
/// Those of writing to stdout; what cannot be looked at is part of the report.
pub fn run(args: &DoctorArgs) -> Result<()> {
    // Before anything takes memory of an adapter.
    let adapters = pollster::block_on(machine::adapter_reports()).ok();
    let found = pollster::block_on(machine::list(Measure::Quick));
    let memory = host_memory();
    let report = serde_json::json!({
        "schema": "tierflow.doctor/2",
        "version": env!("CARGO_PKG_VERSION"),
        "wgpu": "30",
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "threads": n_threads(),
        "memory_total": memory.total,
        "memory_available": memory.available,
        "cache": cache_folder().map(|folder| folder.to_string_lossy().into_owned()),
        "devices": found.as_ref().ok().map(|found| &found.devices),
        "adapters": adapters,
        "features": found.as_ref().ok().map(|found| &found.features),
        "devices_error": found.as_ref().err().map(ToString::to_string),
    });
    if args.json {
        return print_json(&report);
    }
    let mut text = format!(
        "tierflow {} (wgpu 30) on {} {}, {} threads\nmemory {} free of {}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        n_threads(),
        memory.available,
        memory.total
    );
    match found {
        Ok(found) => text.push_str(&devices::report(&found, Detail::Summary)),
        Err(error) => text.push_str(&format!("devices: {}\n", text_of(&error))),
    }
    print_report(&text)
}
