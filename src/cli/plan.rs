//! `tierflow plan`: the plan and the schedule; nothing is loaded.

use crate::cli::args::PlanArgs;
use crate::cli::locate::locate;
use crate::cli::model::builder;
use crate::cli::terminal::{Visibility, print, print_json};
use crate::engine::Prepared;
use crate::error::Result;
use crate::plan::{PlanOptions, UploadPath};

/// Prints plan and schedule.
///
/// # Errors
/// Those of reading headers; [`crate::error::Error::DoesNotFit`] for a plan that cannot run.
pub fn run(args: &PlanArgs) -> Result<()> {
    let path = locate(&args.model.source()?, Visibility::Auto)?;
    let prepared = pollster::block_on(builder(&path, &args.placement, PlanOptions::default())?.prepare())?;
    if args.json {
        return print_json(&serde_json::json!({
            "schema": "tierflow.plan/2",
            "model": prepared.checkpoint.path,
            "plan": *prepared.plan,
            "schedule": prepared.schedule,
            "device_specs": prepared.devices,
        }));
    }
    print(&format!("{}\nschedule of one forward\n{}", summary(&prepared), prepared.schedule.report(&prepared.plan)))
}

/// The model in a line, the plan, and the rates that it rests on.
pub fn summary(prepared: &Prepared) -> String {
    let (config, plan) = (&prepared.model.config, &prepared.plan);
    let name = if config.name.is_empty() { &prepared.checkpoint.path } else { &config.name };
    let mut text = format!("{name}  {}  {} layers\n{plan}", prepared.checkpoint.catalog.size_bytes(), config.n_layers);
    for device in plan.devices.iter().filter(|device| device.ring.is_some()) {
        let spec = prepared.devices.iter().find(|spec| spec.device == device.device);
        let rates = spec.map(|spec| spec.rates.clone()).unwrap_or_default();
        let paths = [(UploadPath::Mapped, rates.upload_mapped), (UploadPath::Staged, rates.upload_staged)];
        let measured: Vec<String> = paths.iter().filter_map(|(path, rate)| rate.map(|rate| format!("{path} {rate}"))).collect();
        if !measured.is_empty() {
            text.push_str(&format!("  {}: upload {} (measured once per adapter and driver)\n", device.device, measured.join(", ")));
        }
    }
    text
}
