//! Budgets that spread a model evenly over accelerators (`get_balanced_memory`).

use std::collections::HashMap;

use crate::accelerate::tree::NodeKind;
use crate::accelerate::{Amount, BudgetSource, Budgets, DeviceKey, ModuleSizes, ModuleTree, NodeId, Notice, Retype};
use crate::error::{Error, Result};

/// Whether accelerator 0 is kept as empty as possible, which leaves room there for what generation needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LowZero {
    /// It gets its share.
    #[default]
    No,
    /// It gets what the others have no room for (`balanced_low_0`).
    Yes,
}

/// Accelerator 0, which `balanced_low_0` is about.
const ZERO: DeviceKey = DeviceKey::Accelerator(0);

/// Lowers the budgets of all accelerators but the last to an even share of the model and a margin; with [`LowZero::Yes`], that of
/// accelerator 0 to what the others leave over. `cpu` and `disk` stay as they are.
///
/// Upstream cannot take a budget for `disk` here (torch knows no such device); here it is passed through. It counts `mps` as an
/// accelerator on machines of Apple's only, where a lone one changes nothing; here it is never counted.
///
/// # Errors
/// [`Error::InvalidArgument`] where [`LowZero::Yes`] meets accelerators that are not numbered from 0 without gaps; upstream ends
/// with a `KeyError`.
pub fn get_balanced_memory(
    tree: &ModuleTree,
    max_memory: &Budgets,
    no_split_classes: &[String],
    retype: &Retype,
    low_zero: LowZero,
) -> Result<(Budgets, Vec<Notice>)> {
    let mut budgets = max_memory.clone();
    let accelerators: Vec<DeviceKey> =
        max_memory.iter().filter(|(device, budget)| is_usable(*device, *budget)).map(|(device, _)| device).collect();
    let Some((_, all_but_last)) = accelerators.split_last() else { return Ok((budgets, Vec::new())) };
    if all_but_last.is_empty() {
        // What follows changes nothing for a lone accelerator: the last one keeps its budget, and there is no other to prefer to it.
        let notices = leave_a_tenth(&mut budgets);
        return Ok((budgets, notices));
    }
    let n_sharing = accelerators.len() - usize::from(low_zero == LowZero::Yes);
    let sizes = ModuleSizes::new(tree, retype);
    let share = sizes.total().floor_div(n_sharing) + margin(tree, &sizes, no_split_classes);
    for device in all_but_last.iter().filter(|device| low_zero == LowZero::No || **device != ZERO) {
        let budget = budget_of(&budgets, *device)?;
        budgets.insert(*device, share.min(budget));
    }
    if low_zero == LowZero::Yes {
        // Upstream asks for the devices 1, 2, ... by number, whatever the numbers are.
        let others = (1..accelerators.len() as i64).map(|index| budget_of(&budgets, DeviceKey::Accelerator(index)));
        let left_over = sizes.total() - others.sum::<Result<Amount>>()?;
        let budget = left_over.max(Amount::ZERO).min(budget_of(&budgets, ZERO)?);
        budgets.insert(ZERO, budget);
    }
    Ok((budgets, Vec::new()))
}

fn is_usable(device: DeviceKey, budget: Amount) -> bool {
    matches!(device, DeviceKey::Accelerator(_)) && budget > Amount::ZERO
}

fn budget_of(budgets: &Budgets, device: DeviceKey) -> Result<Amount> {
    budgets.get(device).ok_or_else(|| Error::InvalidArgument {
        option: "max_memory".into(),
        reason: format!(
            "balanced_low_0 needs accelerators numbered from 0 without gaps, and {device} has no budget; give it one, or use balanced"
        ),
    })
}

/// Where budgets are measured, the first accelerator keeps a tenth for what runs beside the weights.
fn leave_a_tenth(budgets: &mut Budgets) -> Vec<Notice> {
    let first = budgets.iter().find(|(device, _)| matches!(device, DeviceKey::Accelerator(_)));
    match first {
        Some((device, budget)) if budgets.source() == BudgetSource::Measured => {
            budgets.insert(device, Amount::Float(budget.as_f64() * 0.9));
            vec![Notice::KeepsATenth { device }]
        }
        _ => Vec::new(),
    }
}

/// What an accelerator gets beyond its share, since layers do not divide evenly: a quarter more than a block that is not to be split,
/// or than the mean of the innermost modules, whichever is larger.
fn margin(tree: &ModuleTree, sizes: &ModuleSizes, no_split_classes: &[String]) -> Amount {
    let counted = Counted::new(tree);
    let block = largest_first_block(tree, sizes, no_split_classes, &counted);
    let innermost: Vec<NodeId> = tree.nodes().filter(|id| counted.is_innermost(tree, *id)).collect();
    let sum: Amount = innermost.iter().map(|id| sizes.of(*id)).sum();
    let mean = Amount::Int((sum.as_f64() / innermost.len().max(1) as f64) as i128);
    Amount::Int((1.25 * block.max(mean).as_f64()) as i128)
}

/// The largest of the first modules of every class that is not to be split. Upstream looks at the first of each class only, so that a
/// class whose later modules are larger is underrated: kept for equality. It meets modules with parameters before those with buffers alone.
fn largest_first_block(tree: &ModuleTree, sizes: &ModuleSizes, no_split_classes: &[String], counted: &Counted) -> Amount {
    let mut first_by_class: HashMap<&str, NodeId> = HashMap::new();
    for holds in [&counted.parameters, &counted.tensors] {
        for id in tree.nodes().filter(|id| *id != ModuleTree::ROOT && holds[id.index()]) {
            if let NodeKind::Module { class } = tree.kind(id)
                && no_split_classes.contains(class)
            {
                first_by_class.entry(class).or_insert(id);
            }
        }
    }
    first_by_class.into_values().map(|id| sizes.of(id)).max().unwrap_or(Amount::ZERO)
}

/// Which nodes hold something that counts, at whatever depth. Modules that hold nothing do not exist for `get_balanced_memory`, and
/// neither do parameters under any but their first name.
struct Counted {
    parameters: Vec<bool>,
    tensors: Vec<bool>,
}

impl Counted {
    fn new(tree: &ModuleTree) -> Counted {
        let mut counted = Counted { parameters: vec![false; tree.len()], tensors: vec![false; tree.len()] };
        for id in tree.nodes().rev() {
            let index = id.index();
            match tree.kind(id) {
                NodeKind::Parameter { tied_to: None, .. } => (counted.parameters[index], counted.tensors[index]) = (true, true),
                NodeKind::Buffer { .. } => counted.tensors[index] = true,
                NodeKind::Module { .. } | NodeKind::Parameter { .. } => {}
            }
            let parent = tree.parent(id).index();
            counted.parameters[parent] |= counted.parameters[index];
            counted.tensors[parent] |= counted.tensors[index];
        }
        counted
    }

    /// A module, not the model itself, that holds tensors and no module that does.
    fn is_innermost(&self, tree: &ModuleTree, id: NodeId) -> bool {
        let is_counted_module = |id: NodeId| tree.is_module(id) && self.tensors[id.index()];
        id != ModuleTree::ROOT && is_counted_module(id) && !tree.members(id).any(is_counted_module)
    }
}
