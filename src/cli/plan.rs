//! `tierflow plan`: the plan, and the schedule where it is asked for; nothing is loaded.

use crate::cli::args::PlanArgs;
use crate::cli::locate::locate;
use crate::cli::model::Placement;
use crate::cli::plan_text::print_plan;
use crate::cli::terminal::{Visibility, print, print_json};
use crate::cli::words::Options;
use crate::device::Origin;
use crate::error::Result;
use crate::machine::read_devices_file;
use crate::plan::PlanOptions;
use crate::platform::write_atomically;
use crate::train::Trainer;

/// Prints the plan, and writes it and the device map where they are asked for.
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
    if args.train {
        let plan = pollster::block_on(Trainer::plan(builder, &args.shape.options()))?;
        return if args.json { print_json(&plan) } else { print_plan(&plan.report()) };
    }
    let prepared = pollster::block_on(builder.prepare())?;
    if let Some(file) = &args.export_device_map {
        let map = prepared.plan.device_map(&prepared.checkpoint.catalog, &prepared.model);
        write_atomically(file, map.to_json().as_bytes())?;
    }
    if let Some(file) = &args.export_plan {
        write_atomically(file, format!("{}\n", prepared.to_saved_json()).as_bytes())?;
    }
    let explanation = prepared.explain();
    if args.json {
        return print_json(&prepared.to_json(&explanation));
    }
    let mut text = format!("{}{}", prepared.summary(), explanation.in_words(&Options));
    // Of a machine that is not here, its file says what is known.
    if prepared.is_here() && explanation.forecast.decode.rates != Origin::Measured {
        text.push_str("  measure      `tierflow devices --measure` measures the rates of this machine\n");
    }
    print_plan(&text)?;
    if args.schedule {
        print(&format!("\nschedule of one forward\n{}", prepared.schedule.report(&prepared.plan)))?;
    }
    Ok(())
}
