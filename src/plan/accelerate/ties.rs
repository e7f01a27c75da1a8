//! What has to move together: parameters that are one object under several names.

use std::collections::VecDeque;

use crate::plan::accelerate::{Amount, ModuleSizes, ModuleTree, NodeId};

/// The ties of a tree, as the planner asks for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ties<'a> {
    tree: &'a ModuleTree,
}

/// An item with all that is tied to it (`get_module_size_with_ties`).
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

impl<'a> Ties<'a> {
    pub(super) fn of(tree: &'a ModuleTree) -> Ties<'a> {
        Ties { tree }
    }

    /// The size of `item` with its ties, whose owners are looked for in `todo`.
    ///
    /// Upstream ends with an `IndexError` where a parameter has no owner there: because it stands there by itself, as the parameter of a
    /// module that was split (here it is its own owner), or because its owner has a device already (here it counts nothing).
    pub(super) fn size_with_ties(self, sizes: &ModuleSizes, item: NodeId, todo: &VecDeque<NodeId>) -> TiedSize {
        let mut tied = TiedSize { size: sizes.of(item), owners: Vec::new(), is_complete: true };
        for parameter in self.parameters_tied_to(item) {
            match todo.iter().find(|other| self.tree.is_within(parameter, **other)) {
                Some(owner) => {
                    tied.size += sizes.of(*owner) - sizes.of(parameter);
                    tied.owners.push(*owner);
                }
                None => tied.is_complete = false,
            }
        }
        tied
    }

    /// Parameters outside `item` that are tied to one inside.
    fn parameters_tied_to(self, item: NodeId) -> impl Iterator<Item = NodeId> {
        let is_inside = move |parameter: &NodeId| self.is_inside(*parameter, item);
        let groups = self.tree.tied_groups().iter().filter(move |group| group.iter().any(is_inside));
        groups.flatten().copied().filter(move |parameter| !is_inside(parameter))
    }

    /// Upstream asks whether the item's name and a dot occur anywhere in the parameter's, not only in front, so that `layer` is taken to
    /// hold `sublayer.weight`: kept for equality.
    fn is_inside(self, parameter: NodeId, item: NodeId) -> bool {
        self.tree.dotted(parameter).contains(self.tree.dotted(item))
    }
}
