//! The search for an item that still fits a device which the next item in order leaves empty (`fallback_allocate`).

use std::collections::VecDeque;

use crate::accelerate::infer::replace_by_parts;
use crate::accelerate::ties::size_with_ties;
use crate::accelerate::{Amount, ModuleSizes, ModuleTree, NodeId};

/// What is searched for: an item of at most `limit`, ties included.
pub(super) struct FallbackSearch<'a> {
    pub(super) tree: &'a ModuleTree,
    pub(super) sizes: &'a ModuleSizes,
    pub(super) whole: &'a [bool],
    pub(super) limit: Amount,
}

impl FallbackSearch<'_> {
    /// The first item that fits, depth first (Accelerate's documentation speaks of breadth first). Items that do not fit are looked into.
    ///
    /// Upstream ends with an error where a size is no whole number, and where what an item is tied to lies before it; here the first
    /// makes no difference, and the second item is passed over.
    pub(super) fn find(&self, todo: &VecDeque<NodeId>) -> Option<NodeId> {
        if self.limit < Amount::ZERO {
            return None;
        }
        let mut search = todo.clone();
        while let Some(item) = search.pop_front() {
            let tied = size_with_ties(self.tree, self.sizes, item, &search);
            if tied.is_complete && tied.size <= self.limit {
                return Some(item);
            }
            if !self.whole[item.index()] {
                search.push_front(item);
                replace_by_parts(self.tree, &mut search, item);
            }
        }
        None
    }

    /// Takes `found` out of `todo`. The modules that it belongs to are split on the way to it.
    pub(super) fn take_out(&self, todo: &mut VecDeque<NodeId>, found: NodeId) {
        let mut ancestors: Vec<NodeId> =
            std::iter::successors(Some(found), |id| Some(self.tree.parent(*id))).take_while(|id| *id != ModuleTree::ROOT).skip(1).collect();
        while let Some(ancestor) = ancestors.pop() {
            replace_by_parts(self.tree, todo, ancestor);
        }
        todo.retain(|item| *item != found);
    }
}
