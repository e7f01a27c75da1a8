//! What has to move together: parameters that are one object under several names.

use std::collections::VecDeque;

use crate::accelerate::{Amount, ModuleSizes, ModuleTree, NodeId};

/// An item with all that is tied to it.
#[derive(Debug, Clone)]
pub(super) struct TiedSize {
    /// The item's size and, for each parameter that is tied to something inside it, that of the parameter's owner less the parameter's.
    /// An owner of two such parameters counts twice, a defect that is kept for equality.
    pub(super) size: Amount,
    /// The owners, one per parameter: the first items without a device that hold them.
    pub(super) owners: Vec<NodeId>,
    /// Whether every parameter has an owner.
    pub(super) is_complete: bool,
}

/// The size of `item` with its ties, whose owners are looked for in `todo` (`get_module_size_with_ties`).
///
/// Upstream ends with an `IndexError` where a parameter has no owner there: because it stands there by itself, as the parameter of a
/// module that was split (here it is its own owner), or because its owner has a device already (here it counts nothing).
pub(super) fn size_with_ties(tree: &ModuleTree, sizes: &ModuleSizes, item: NodeId, todo: &VecDeque<NodeId>) -> TiedSize {
    let mut tied = TiedSize { size: sizes.of(item), owners: Vec::new(), is_complete: true };
    for parameter in parameters_tied_to(tree, item) {
        match todo.iter().find(|other| tree.is_within(parameter, **other)) {
            Some(owner) => {
                tied.size += sizes.of(*owner) - sizes.of(parameter);
                tied.owners.push(*owner);
            }
            None => tied.is_complete = false,
        }
    }
    tied
}

/// Parameters outside `item` that are tied to one inside, group by group. Upstream's order of the groups differs from run to run; here it
/// is that of the tree's.
fn parameters_tied_to(tree: &ModuleTree, item: NodeId) -> impl Iterator<Item = NodeId> {
    // Upstream asks whether the item's name and a dot occur anywhere in the parameter's, not only in front, so that `layer` is taken to
    // hold `sublayer.weight`: kept for equality.
    let is_inside = move |parameter: &NodeId| tree.dotted(*parameter).contains(tree.dotted(item));
    let groups = tree.tied_groups().iter().filter(move |group| group.iter().any(is_inside));
    groups.flatten().copied().filter(move |parameter| !is_inside(parameter))
}
