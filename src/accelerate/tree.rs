//! The tree of a model's modules with their tensors: all that Accelerate's planner sees of a model.

use std::collections::HashMap;

use crate::accelerate::ElementType;
use crate::accelerate::tree_form::{TreeForm, entries, tied_names};
use crate::error::{Error, Result};

/// Index of a module or a tensor in its [`ModuleTree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// Modules and tensors of a model. A module comes before its parameters, these before its buffers, these before its child modules:
/// the order of a state dictionary. What belongs to a module is therefore one run of nodes.
#[derive(Debug, Clone)]
pub struct ModuleTree {
    nodes: Vec<Node>,
    ids: HashMap<String, NodeId>,
    tied_groups: Vec<Vec<NodeId>>,
    no_split_modules: Vec<String>,
    config_ties_weights: bool,
}

#[derive(Debug, Clone)]
struct Node {
    /// The name and a dot, which most of Accelerate's comparisons are about.
    dotted: String,
    kind: NodeKind,
    parent: NodeId,
    /// One past the last node of its subtree.
    end: u32,
}

/// What a node of the tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A module.
    Module {
        /// Its class.
        class: String,
    },
    /// A parameter of the module above it.
    Parameter {
        /// How large it is.
        tensor: TensorForm,
        /// The first parameter that is the same object; its bytes count there.
        tied_to: Option<NodeId>,
    },
    /// A buffer of the module above it.
    Buffer {
        /// How large it is.
        tensor: TensorForm,
        /// Whether checkpoints hold it.
        persistent: bool,
    },
}

/// How large a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorForm {
    /// Values in all; stops at the largest number.
    pub n_values: i128,
    /// The type of its values.
    pub dtype: ElementType,
}

impl ModuleTree {
    /// The model itself.
    pub const ROOT: NodeId = NodeId(0);

    /// Puts the lists of `form` together.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where a name occurs twice, a module or tensor has no parent in the lists, or a tie leads nowhere.
    pub fn new(form: TreeForm) -> Result<ModuleTree> {
        let groups = tied_names(&form.params);
        let mut tree = ModuleTree {
            nodes: Vec::with_capacity(form.modules.len() + form.params.len() + form.buffers.len()),
            ids: HashMap::new(),
            tied_groups: Vec::new(),
            no_split_modules: form.no_split_modules.clone(),
            config_ties_weights: form.config_ties_weights,
        };
        tree.lay_out(form)?;
        for names in groups {
            tree.tie(&names)?;
        }
        Ok(tree)
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it is empty, which no tree is: the model itself is a node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All nodes, in the order of the tree.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The module or tensor of that name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.ids.get(name).copied()
    }

    /// The dotted name; empty for the model itself.
    pub fn name(&self, id: NodeId) -> &str {
        let dotted = self.dotted(id);
        &dotted[..dotted.len() - 1]
    }

    /// The name and a dot.
    pub(super) fn dotted(&self, id: NodeId) -> &str {
        &self.node(id).dotted
    }

    /// What it is.
    pub fn kind(&self, id: NodeId) -> &NodeKind {
        &self.node(id).kind
    }

    /// Whether it is a module.
    pub fn is_module(&self, id: NodeId) -> bool {
        matches!(self.kind(id), NodeKind::Module { .. })
    }

    /// The module that it belongs to; the model itself belongs to itself.
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.node(id).parent
    }

    /// Whether `id` is `ancestor` or belongs to it, at whatever depth.
    pub fn is_within(&self, id: NodeId, ancestor: NodeId) -> bool {
        (ancestor.0..self.node(ancestor).end).contains(&id.0)
    }

    /// It and all that belongs to it, at whatever depth.
    pub fn subtree(&self, id: NodeId) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (id.0..self.node(id).end).map(NodeId)
    }

    /// What belongs to it directly: parameters, buffers, child modules.
    pub fn members(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let end = self.after(id);
        let inside = move |member: NodeId| (member < end).then_some(member);
        std::iter::successors(inside(id.next()), move |member| inside(self.after(*member)))
    }

    /// What Accelerate splits a module into: its parameters and its child modules. Its own buffers are not among them and get no device
    /// of their own, a defect that is kept for equality.
    pub(super) fn parts(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.members(id).filter(|member| !matches!(self.kind(*member), NodeKind::Buffer { .. }))
    }

    /// What the planner begins with: the model's own parameters, its child modules, its own buffers.
    pub(super) fn top_level(&self) -> impl Iterator<Item = NodeId> {
        let buffers = self.members(ModuleTree::ROOT).filter(|member| matches!(self.kind(*member), NodeKind::Buffer { .. }));
        self.parts(ModuleTree::ROOT).chain(buffers)
    }

    /// The first node after its subtree.
    pub(super) fn after(&self, id: NodeId) -> NodeId {
        NodeId(self.node(id).end)
    }

    /// Parameters that are one object: every group sorted by name, the groups by the first parameter that repeats another.
    pub fn tied_groups(&self) -> &[Vec<NodeId>] {
        &self.tied_groups
    }

    /// Classes that the model says not to split.
    pub fn no_split_modules(&self) -> &[String] {
        &self.no_split_modules
    }

    /// Whether the model's config says that weights are tied.
    pub fn config_ties_weights(&self) -> bool {
        self.config_ties_weights
    }

    /// For every node, whether it is taken whole: a tensor, a module without children, or one of a class that is not to be split.
    /// Accelerate calls the modules among them layers.
    pub(super) fn whole_nodes(&self, no_split_classes: &[String]) -> Vec<bool> {
        let is_whole = |id: NodeId| match self.kind(id) {
            NodeKind::Module { class } => no_split_classes.contains(class) || !self.members(id).any(|member| self.is_module(member)),
            NodeKind::Parameter { .. } | NodeKind::Buffer { .. } => true,
        };
        self.nodes().map(is_whole).collect()
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Turns the lists into nodes, depth first. A stack of what is still to come keeps deep trees off the program's own stack.
    fn lay_out(&mut self, form: TreeForm) -> Result<()> {
        let mut waiting: HashMap<String, Vec<(String, NodeKind)>> = HashMap::new();
        let mut root = None;
        let n_entries = form.modules.len() + form.params.len() + form.buffers.len();
        for (name, kind) in entries(form) {
            if name.is_empty() && root.is_none() {
                root = Some(kind);
                continue;
            }
            waiting.entry(parent_name(&name).to_owned()).or_default().push((name, kind));
        }
        let root =
            root.filter(|kind| matches!(kind, NodeKind::Module { .. })).ok_or_else(|| invalid("it has no module with an empty name"))?;
        let mut stack = vec![Visit::Enter(String::new(), root, ModuleTree::ROOT)];
        while let Some(visit) = stack.pop() {
            match visit {
                Visit::Enter(name, kind, parent) => {
                    let id = NodeId(self.nodes.len() as u32);
                    let members = if matches!(kind, NodeKind::Module { .. }) { waiting.remove(&name) } else { None };
                    self.nodes.push(Node { dotted: format!("{name}."), kind, parent, end: id.0 + 1 });
                    if self.ids.insert(name.clone(), id).is_some() {
                        return Err(invalid(&format!("`{name}` occurs twice")));
                    }
                    stack.push(Visit::Leave(id));
                    stack.extend(members.into_iter().flatten().rev().map(|(name, kind)| Visit::Enter(name, kind, id)));
                }
                Visit::Leave(id) => self.nodes[id.index()].end = self.nodes.len() as u32,
            }
        }
        match waiting.into_values().flatten().map(|(name, _)| name).min() {
            Some(name) => Err(invalid(&format!("`{name}` belongs to no module of the list, or to one that occurs twice"))),
            None if self.nodes.len() == n_entries => Ok(()),
            None => Err(invalid("the model itself occurs twice")),
        }
    }

    fn tie(&mut self, names: &[String]) -> Result<()> {
        let mut group = Vec::with_capacity(names.len());
        for name in names {
            let id = self.find(name).filter(|id| matches!(self.kind(*id), NodeKind::Parameter { .. }));
            group.push(id.ok_or_else(|| invalid(&format!("a parameter is tied to `{name}`, which is none")))?);
        }
        let first = group[0];
        for repeated in &group[1..] {
            if let NodeKind::Parameter { tied_to, .. } = &mut self.nodes[repeated.index()].kind {
                *tied_to = Some(first);
            }
        }
        group.sort_by(|left, right| self.name(*left).cmp(self.name(*right)));
        self.tied_groups.push(group);
        Ok(())
    }
}

impl NodeId {
    /// The node after it, its first member where it has some.
    pub(super) fn next(self) -> NodeId {
        NodeId(self.0 + 1)
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

enum Visit {
    Enter(String, NodeKind, NodeId),
    Leave(NodeId),
}

/// The name without its last component.
pub(super) fn parent_name(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}

fn invalid(reason: &str) -> Error {
    Error::InvalidArgument { option: "module tree".into(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(json: &str) -> Result<ModuleTree> {
        ModuleTree::new(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn members_come_in_the_order_of_a_state_dictionary() {
        let tree = tree(
            r#"{"modules": [["", "Net"], ["a", "Linear"], ["b", "Linear"]],
                "params": [["a.weight", [2, 3], "float32"], ["p", [4], "int8"], ["b.weight", [2, 3], "float32", "a.weight"]],
                "buffers": [["a.mean", [2], "bool", true]]}"#,
        )
        .unwrap();
        let names: Vec<&str> = tree.nodes().map(|id| tree.name(id)).collect();
        assert_eq!(names, ["", "p", "a", "a.weight", "a.mean", "b", "b.weight"]);
        assert_eq!(tree.tied_groups().len(), 1);
        let (module, weight) = (tree.find("a").unwrap(), tree.find("a.weight").unwrap());
        assert!(tree.is_within(weight, module) && !tree.is_within(tree.find("b.weight").unwrap(), module));
        assert_eq!(tree.parent(weight), module);
    }

    #[test]
    fn lists_that_are_no_tree_are_refused() {
        for (json, part) in [
            (r#"{"modules": [], "params": [], "buffers": []}"#, "no module with an empty name"),
            (r#"{"modules": [["", "A"], ["", "B"]], "params": [], "buffers": []}"#, "`` "),
            (r#"{"modules": [["", "A"], ["a", "B"], ["a", "B"]], "params": [], "buffers": []}"#, "`a` occurs twice"),
            (r#"{"modules": [["", "A"], ["a.b", "B"]], "params": [], "buffers": []}"#, "`a.b` belongs to no module"),
            (r#"{"modules": [["", "A"]], "params": [["w", [1], "float32"], ["w.x", [1], "float32"]], "buffers": []}"#, "`w.x` belongs"),
            (r#"{"modules": [["", "A"]], "params": [["w", [1], "float32", "v"]], "buffers": []}"#, "`v`, which is none"),
        ] {
            let error = tree(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
