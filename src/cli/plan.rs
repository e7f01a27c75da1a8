//! `tierflow plan`: the plan and the schedule; nothing is loaded.

use crate::cli::args::PlanArgs;
use crate::cli::locate::locate;
use crate::cli::model::Placement;
use crate::cli::terminal::{Visibility, print, print_json};
use crate::error::Result;
use crate::machine::read_devices_file;
use crate::plan::PlanOptions;
use crate::platform::write_atomically;

/// Prints plan and schedule, and writes the device map where one is asked for.
///
/// # Errors
/// Those of reading headers; [`crate::error::Error::DoesNotFit`] for a plan that cannot run.
pub fn run(args: &PlanArgs) -> Result<()> {
    let source = args.model.source()?;
    let placement = Placement::of(&args.placement, PlanOptions::default())?;
    let mut builder = placement.builder(&locate(&source, Visibility::Auto)?)?;
    if let Some(file) = &args.devices {
        builder = builder.machine(read_devices_file(file)?);
    }
    let prepared = pollster::block_on(builder.prepare())?;
    if let Some(file) = &args.export_device_map {
        let map = prepared.plan.device_map(&prepared.checkpoint.catalog, &prepared.model);
        write_atomically(file, map.to_json().as_bytes())?;
    }
    let explanation = prepared.explain();
    if args.json {
        return print_json(&prepared.to_json(&explanation));
    }
    let schedule = prepared.schedule.report(&prepared.plan);
    print(&format!("{}{explanation}\nschedule of one forward\n{schedule}", prepared.summary()))
}
