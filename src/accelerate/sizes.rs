//! Sizes of modules and the largest layer, as Accelerate counts them (`compute_module_sizes`, `get_max_layer_size`).

use std::collections::BTreeMap;

use crate::accelerate::tree::{NodeKind, TensorForm};
use crate::accelerate::{Amount, DeviceKey, DeviceMap, ElementType, ModuleTree, NodeId};

/// The types that tensors are to be counted as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retype {
    /// What floats are loaded as (`dtype`). Counts only where it is narrower than what is stored; integers and bools stay as they are.
    pub dtype: Option<ElementType>,
    /// What single tensors are loaded as, by name, wider or not, integers too (`special_dtypes`).
    pub special_dtypes: BTreeMap<String, ElementType>,
}

/// The size of every module and tensor of a tree: unique parameters under the first of their names, and all buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleSizes(Vec<Amount>);

/// The largest layer of a model, or of the part that has no device yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargestLayer {
    /// Its size.
    pub size: Amount,
    /// All layers of that size, in the order of the tree.
    pub layers: Vec<NodeId>,
}

/// What `accelerate estimate-memory` prints: the whole model, and the most that has to be on one device at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaximumSizes {
    /// All of the model.
    pub total: Amount,
    /// The largest layer; blocks that the model says not to split count as one.
    pub largest_layer: LargestLayer,
}

/// The sizes of a model as it is stored (`calculate_maximum_sizes`).
pub fn calculate_maximum_sizes(tree: &ModuleTree) -> MaximumSizes {
    maximum_sizes_as(tree, &Retype::default())
}

/// The same of a model whose tensors are counted as `retype` says.
pub fn maximum_sizes_as(tree: &ModuleTree, retype: &Retype) -> MaximumSizes {
    let sizes = ModuleSizes::new(tree, retype);
    let whole = tree.whole_nodes(tree.no_split_modules());
    MaximumSizes { total: sizes.total(), largest_layer: LargestLayer::among(tree, &sizes, &whole, tree.top_level()) }
}

impl ModuleSizes {
    /// Counts every tensor of `tree`, with the types that `retype` asks for.
    pub fn new(tree: &ModuleTree, retype: &Retype) -> ModuleSizes {
        let mut sizes = vec![Amount::ZERO; tree.len()];
        // Backwards, so that a module is complete before it is added to the one above it.
        for id in tree.nodes().rev() {
            match tree.kind(id) {
                NodeKind::Module { .. } | NodeKind::Parameter { tied_to: Some(_), .. } => {}
                NodeKind::Parameter { tensor, .. } | NodeKind::Buffer { tensor, .. } => {
                    sizes[id.index()] = retype.size_of(tree.name(id), *tensor);
                }
            }
            if id != ModuleTree::ROOT {
                let size = sizes[id.index()];
                sizes[tree.parent(id).index()] += size;
            }
        }
        ModuleSizes(sizes)
    }

    /// The size of one module or tensor; a tied parameter has none but under its first name.
    pub fn of(&self, id: NodeId) -> Amount {
        self.0.get(id.index()).copied().unwrap_or(Amount::ZERO)
    }

    /// The size of the whole model.
    pub fn total(&self) -> Amount {
        self.of(ModuleTree::ROOT)
    }

    /// What a map puts on each device. Names that are not in the tree count nothing.
    pub fn by_device(&self, tree: &ModuleTree, map: &DeviceMap) -> BTreeMap<DeviceKey, Amount> {
        let mut sums = BTreeMap::new();
        for (name, device) in map.iter() {
            *sums.entry(device).or_insert(Amount::ZERO) += tree.find(name).map_or(Amount::ZERO, |id| self.of(id));
        }
        sums
    }
}

impl Retype {
    fn size_of(&self, name: &str, tensor: TensorForm) -> Amount {
        let stored = tensor.dtype.size(tensor.n_values);
        match (self.special_dtypes.get(name), self.dtype) {
            (Some(special), _) => special.size(tensor.n_values),
            (None, Some(dtype)) if !tensor.dtype.is_fixed() => dtype.size(tensor.n_values).min(stored),
            _ => stored,
        }
    }

    /// The bytes of all buffers of a module (`compute_module_total_buffer_size`). Upstream looks at the module alone, so that its
    /// `special_dtypes` match names relative to the module and not those of the model: kept for equality.
    pub(super) fn buffer_bytes(&self, tree: &ModuleTree, module: NodeId) -> Amount {
        let size = |id| match tree.kind(id) {
            NodeKind::Buffer { tensor, .. } => {
                let name = tree.name(id);
                self.size_of(name.strip_prefix(tree.dotted(module)).unwrap_or(name), *tensor)
            }
            _ => Amount::ZERO,
        };
        tree.subtree(module).map(size).sum()
    }
}

impl LargestLayer {
    /// The largest of the layers in `items`, found by going down to those that `whole` says are taken whole.
    pub(super) fn among(tree: &ModuleTree, sizes: &ModuleSizes, whole: &[bool], items: impl Iterator<Item = NodeId>) -> LargestLayer {
        let mut largest = LargestLayer { size: Amount::ZERO, layers: Vec::new() };
        for item in items {
            let end = tree.after(item);
            let mut id = item;
            while id < end {
                if !whole[id.index()] {
                    id = id.next();
                    continue;
                }
                // A tensor is a layer only where it is an item itself.
                if id == item || tree.is_module(id) {
                    largest.consider(id, sizes.of(id));
                }
                id = tree.after(id);
            }
        }
        largest
    }

    fn consider(&mut self, layer: NodeId, size: Amount) {
        if size > self.size {
            *self = LargestLayer { size, layers: vec![layer] };
        } else if size == self.size {
            self.layers.push(layer);
        }
    }

    /// Takes `item`, and what belongs to it, off the list. Returns whether any layer of that size is left.
    pub(super) fn forget(&mut self, tree: &ModuleTree, item: NodeId) -> bool {
        self.layers.retain(|layer| !tree.is_within(*layer, item));
        !self.layers.is_empty()
    }
}
