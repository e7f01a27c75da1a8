//! The planner itself (`infer_auto_device_map`): one walk over the model in the order of its registration, one cursor over the devices,
//! neither ever going back.

use std::collections::VecDeque;

use crate::accelerate::fallback::FallbackSearch;
use crate::accelerate::sizes::LargestLayer;
use crate::accelerate::ties::{TiedSize, size_with_ties};
use crate::accelerate::{Amount, Budgets, DeviceKey, DeviceMap, ModuleSizes, ModuleTree, NodeId, Notice, Retype, clean_device_map};

/// The options of `infer_auto_device_map`, under its own names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferOptions {
    /// Classes of modules that are never split, such as a block with a residual connection.
    pub no_split_module_classes: Vec<String>,
    /// What tensors are to be counted as: `dtype` and `special_dtypes`.
    pub retype: Retype,
    /// Whether modules whose members share a device are written as one.
    pub clean_result: bool,
    /// Whether buffers of modules off the accelerators stay with them, so that they need no room on an accelerator.
    pub offload_buffers: bool,
    /// Whether a device that an item leaves empty is tried with a smaller item from further back.
    pub fallback_allocation: bool,
}

impl Default for InferOptions {
    fn default() -> InferOptions {
        InferOptions {
            no_split_module_classes: Vec::new(),
            retype: Retype::default(),
            clean_result: true,
            offload_buffers: false,
            fallback_allocation: false,
        }
    }
}

/// A map and what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    /// Module or tensor → device: in the model's order where it is cleaned, else in the order of assignment.
    pub map: DeviceMap,
    /// Messages, in the order in which Accelerate brings them forward.
    pub notices: Vec<Notice>,
}

/// Gives every part of a model a device: accelerators as long as there is room, then `cpu` if it has a budget, then `disk`, which takes
/// the rest. It never fails for lack of room, and says nothing of what it offloads.
///
/// The first accelerator and `cpu` keep room for the largest layer that has no device yet, since what is offloaded comes back there.
pub fn infer_auto_device_map(tree: &ModuleTree, max_memory: &Budgets, options: &InferOptions) -> Inferred {
    let mut placement = Placement::new(tree, max_memory, options);
    while let Some(item) = placement.todo.pop_front() {
        let offer = placement.offer(item);
        let is_treated = placement.assign(&offer)
            || placement.split_a_tied_owner(&offer)
            || placement.split_item(&offer)
            || placement.bring_forward_a_smaller_item(&offer);
        if !is_treated {
            placement.go_to_next_device(&offer);
        }
    }
    placement.finish()
}

/// The state of the walk.
struct Placement<'a> {
    tree: &'a ModuleTree,
    options: &'a InferOptions,
    sizes: ModuleSizes,
    /// Nodes that are not split.
    whole: Vec<bool>,
    devices: Vec<DeviceState>,
    /// Which of `devices` is being filled.
    cursor: usize,
    /// Modules and tensors without a device, in order.
    todo: VecDeque<NodeId>,
    /// The largest layer in `todo`.
    largest: LargestLayer,
    /// What was put where, in order.
    placed: Vec<(NodeId, DeviceKey)>,
    is_placed: Vec<bool>,
}

/// A device and what it holds so far.
struct DeviceState {
    key: DeviceKey,
    /// `None` has no limit.
    budget: Option<Amount>,
    /// Whether room for the largest layer is kept.
    keeps_reserve: bool,
    used: Amount,
    buffers: Amount,
    /// What would have been enough for the item before which the cursor left it empty.
    needed: Option<Amount>,
}

/// An item and the device under the cursor.
struct Offer {
    item: NodeId,
    size: Amount,
    /// The item with everything that has to come along.
    tied: TiedSize,
    /// What the device may hold; `None` has no limit.
    limit: Option<Amount>,
    /// What of the device's budget is kept for the largest layer.
    reserve: Amount,
}

impl<'a> Placement<'a> {
    fn new(tree: &'a ModuleTree, max_memory: &Budgets, options: &'a InferOptions) -> Placement<'a> {
        let sizes = ModuleSizes::new(tree, &options.retype);
        let whole = tree.whole_nodes(&options.no_split_module_classes);
        let largest = LargestLayer::among(tree, &sizes, &whole, tree.top_level());
        Placement {
            tree,
            options,
            sizes,
            whole,
            devices: devices(max_memory),
            cursor: 0,
            todo: tree.top_level().collect(),
            largest,
            placed: Vec::new(),
            is_placed: vec![false; tree.len()],
        }
    }

    /// What it takes to put `item` on the device under the cursor.
    fn offer(&mut self, item: NodeId) -> Offer {
        if !self.largest.forget(self.tree, item) {
            self.find_largest_layer();
        }
        let tied = size_with_ties(self.tree, &self.sizes, item, &self.todo);
        let device = &self.devices[self.cursor];
        let reserve = if device.keeps_reserve { self.largest.size } else { Amount::ZERO };
        Offer { item, size: self.sizes.of(item), tied, limit: device.budget.map(|budget| budget - reserve), reserve }
    }

    /// Step A: the item and the owners of all that is tied to it fit, and go to the device.
    fn assign(&mut self, offer: &Offer) -> bool {
        let device = &mut self.devices[self.cursor];
        if offer.limit.is_some_and(|limit| device.used + offer.tied.size > limit) {
            return false;
        }
        device.used += offer.tied.size;
        // The buffers of owners that come along are not counted, a defect that is kept for equality.
        if self.tree.is_module(offer.item) {
            device.buffers += self.options.retype.buffer_bytes(self.tree, offer.item);
        }
        let key = device.key;
        self.place(offer.item, key);
        for owner in &offer.tied.owners {
            if let Some(position) = self.todo.iter().position(|item| item == owner) {
                self.todo.remove(position);
            }
            self.place(*owner, key);
        }
        true
    }

    /// Step B: the item itself fits, but not what is tied to it. The first of the owners that can be split is, in its place, so that
    /// less has to come along; then the item is tried again.
    fn split_a_tied_owner(&mut self, offer: &Offer) -> bool {
        let used = self.devices[self.cursor].used;
        if offer.tied.owners.is_empty() || offer.limit.is_none_or(|limit| used + offer.size > limit) {
            return false;
        }
        let mut owners = offer.tied.owners.iter().copied();
        let Some(owner) = owners.find(|owner| !self.whole[owner.index()]) else { return false };
        replace_by_parts(self.tree, &mut self.todo, owner);
        self.todo.push_front(offer.item);
        self.find_largest_layer();
        true
    }

    /// Step C: the item itself does not fit, or fills the device to the last byte, and is split into its parts.
    fn split_item(&mut self, offer: &Offer) -> bool {
        let used = self.devices[self.cursor].used;
        if offer.limit.is_none_or(|limit| used + offer.size < limit) || self.whole[offer.item.index()] {
            return false;
        }
        self.todo.push_front(offer.item);
        replace_by_parts(self.tree, &mut self.todo, offer.item);
        self.find_largest_layer();
        true
    }

    /// Step D: on a device that is still empty, an item from further back that fits goes first. Only with `fallback_allocation`.
    fn bring_forward_a_smaller_item(&mut self, offer: &Offer) -> bool {
        let device = &self.devices[self.cursor];
        let (true, true, Some(budget)) = (self.options.fallback_allocation, device.used == Amount::ZERO, device.budget) else {
            return false;
        };
        let limit = budget - self.largest.size.max(offer.tied.size);
        let search = FallbackSearch { tree: self.tree, sizes: &self.sizes, whole: &self.whole, limit };
        let Some(found) = search.find(&self.todo) else { return false };
        search.take_out(&mut self.todo, found);
        self.todo.push_front(offer.item);
        self.todo.push_front(found);
        true
    }

    /// Step E: the cursor moves on, for good. What was kept for the largest layer counts as used from now on.
    fn go_to_next_device(&mut self, offer: &Offer) {
        let device = &mut self.devices[self.cursor];
        if device.used == Amount::ZERO {
            device.needed = Some(offer.tied.size + offer.reserve);
        }
        device.used += offer.reserve;
        self.cursor += 1;
        self.todo.push_front(offer.item);
    }

    fn place(&mut self, node: NodeId, device: DeviceKey) {
        if !std::mem::replace(&mut self.is_placed[node.index()], true) {
            self.placed.push((node, device));
        }
    }

    /// Of the modules only: the model's own tensors count until the first of the largest layers are gone, and then no more, as upstream.
    fn find_largest_layer(&mut self) {
        let modules = self.todo.iter().copied().filter(|item| self.tree.is_module(*item));
        self.largest = LargestLayer::among(self.tree, &self.sizes, &self.whole, modules);
    }

    fn finish(self) -> Inferred {
        let mut notices = Vec::new();
        if self.tree.config_ties_weights() && self.tree.tied_groups().is_empty() {
            notices.push(Notice::NotTied);
        }
        notices.extend(self.buffers_without_room());
        let skipped: Vec<_> = self.devices.iter().filter_map(|device| Some((device.key, device.needed?))).collect();
        if !skipped.is_empty() {
            notices.push(Notice::Skipped { devices: skipped });
        }
        let raw: DeviceMap = self.placed.iter().map(|(node, device)| (self.tree.name(*node).to_owned(), *device)).collect();
        let map = if self.options.clean_result { clean_device_map(&raw).in_order_of(self.tree) } else { raw };
        Inferred { map, notices }
    }

    /// Buffers of offloaded modules stay on the accelerator that executes them: is there one with that much room left?
    fn buffers_without_room(&self) -> Option<Notice> {
        let (accelerators, others): (Vec<_>, Vec<_>) = self.devices.iter().partition(|device| device.key.is_accelerator());
        let bytes: Amount = others.iter().map(|device| device.buffers).sum();
        let has_room = |device: &&DeviceState| device.budget.is_some_and(|budget| budget >= bytes + device.used);
        let is_needed = bytes > Amount::ZERO && !self.options.offload_buffers && !accelerators.is_empty();
        (is_needed && !accelerators.iter().any(has_room)).then_some(Notice::BuffersDoNotFit { bytes })
    }
}

/// The devices in the order in which they are filled, `disk` last and without a limit. The first accelerator and `cpu` keep a reserve;
/// where there is `mps`, it alone does.
fn devices(max_memory: &Budgets) -> Vec<DeviceState> {
    let keys = || max_memory.iter().map(|(device, _)| device);
    let has_mps = keys().any(|device| device == DeviceKey::Mps);
    let first = keys().find(|device| device.is_accelerator());
    let keeps_reserve = |key: DeviceKey| match has_mps {
        true => key == DeviceKey::Mps,
        false => Some(key) == first || key == DeviceKey::Cpu,
    };
    let state = |key: DeviceKey, budget: Option<Amount>| DeviceState {
        key,
        budget,
        keeps_reserve: keeps_reserve(key),
        used: Amount::ZERO,
        buffers: Amount::ZERO,
        needed: None,
    };
    let limited = max_memory.iter().filter(|(device, _)| *device != DeviceKey::Disk);
    let mut devices: Vec<DeviceState> = limited.map(|(device, budget)| state(device, Some(budget))).collect();
    devices.push(state(DeviceKey::Disk, None));
    devices
}

/// Replaces `item` by its parts, where it stands in `todo`.
pub(super) fn replace_by_parts(tree: &ModuleTree, todo: &mut VecDeque<NodeId>, item: NodeId) {
    let Some(position) = todo.iter().position(|other| *other == item) else { return };
    let behind = todo.split_off(position);
    todo.extend(tree.parts(item));
    todo.extend(behind.into_iter().skip(1));
}
