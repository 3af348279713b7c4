//! The operators of a model's graph, by the names of its nodes: what is told of the one that
//! refuses values, or that ONNX Runtime does not know.
//!
//! Invariant: whatever text is searched, nothing comes out that does not stand in the model's own file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::proto::{GraphProto, NodeProto};

/// The longest name of a node that is kept, in bytes.
const MAX_NAME: usize = 80;

/// The operators of a graph and of the graphs inside it; a cheap handle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operators(Arc<Known>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    /// The operator of each node that has a name.
    by_name: BTreeMap<String, String>,
    /// The domains of every operator; the standard's own is `ai.onnx`.
    all: BTreeMap<String, BTreeSet<String>>,
}

/// An operator, and the node that it is, where that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator<'a> {
    operator: &'a str,
    node: Option<&'a str>,
}

impl fmt::Display for Operator<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "operator {}", self.operator)?;
        match self.node {
            Some(node) => write!(formatter, " (node '{node}')"),
            None => Ok(()),
        }
    }
}

impl Operators {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let mut known = Known::default();
        known.add(graph);
        Self(Arc::new(known))
    }

    /// Those of nodes with these names and operators.
    #[cfg(test)]
    pub(crate) fn of_nodes(nodes: &[(&str, &str)]) -> Self {
        let node = |(name, operator): &(&str, &str)| NodeProto {
            name: (*name).to_owned(),
            op_type: (*operator).to_owned(),
            ..NodeProto::default()
        };
        Self::of(&GraphProto {
            node: nodes.iter().map(node).collect(),
            ..GraphProto::default()
        })
    }

    /// Whether the graph has the operator `name` of `domain`.
    #[must_use]
    pub fn has(&self, domain: &str, name: &str) -> bool {
        let domains = self.0.all.get(name);
        domains.is_some_and(|domains| domains.contains(domain))
    }

    /// The operator that `text`, in which ONNX Runtime says why a run failed, is about. ONNX Runtime merges and renames
    /// nodes, so that there may be none of that name.
    #[must_use]
    pub fn named_in(&self, text: &str) -> Option<Operator<'_>> {
        let name = between(text, "Name:'", "'");
        let named = name.and_then(|name| self.0.by_name.get_key_value(name));
        if let Some((node, operator)) = named {
            return Some(Operator {
                operator,
                node: Some(node),
            });
        }
        let operator = between(text, "while running ", " node")?;
        let (operator, _) = self.0.all.get_key_value(operator)?;
        Some(Operator {
            operator,
            node: None,
        })
    }
}

impl Known {
    fn add(&mut self, graph: &GraphProto) {
        for node in &graph.node {
            self.add_node(node);
        }
    }

    fn add_node(&mut self, node: &NodeProto) {
        if plain(&node.op_type) {
            let domain = match node.domain.as_str() {
                "" => "ai.onnx",
                domain => domain,
            };
            let domains = self.all.entry(node.op_type.clone()).or_default();
            domains.insert(domain.to_owned());
            if plain(&node.name) {
                let operator = node.op_type.clone();
                self.by_name.insert(node.name.clone(), operator);
            }
        }
        for attribute in &node.attribute {
            attribute
                .g
                .iter()
                .chain(&attribute.graphs)
                .for_each(|graph| self.add(graph));
        }
    }
}

/// Whether `name` can be repeated in one line of a message.
fn plain(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.contains(char::is_control)
}

/// What stands in `text` between the first `before` and the next `after`.
pub(crate) fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_told_by_the_model_s_own_names_only() {
        let operators = Operators::of_nodes(&[("/emb/Gather", "Gather"), ("", "MatMul")]);
        let told = |text: &str| operators.named_in(text).map(|it| it.to_string());
        for (text, expected) in [
            (
                "Non-zero status code returned while running Gather node. Name:'/emb/Gather' Status Message: indices element out of data bounds, idx=9 at /build/gather.cc:12",
                Some("operator Gather (node '/emb/Gather')"),
            ),
            (
                "Non-zero status code returned while running MatMul node. Name:'' Status Message: x",
                Some("operator MatMul"),
            ),
            (
                "Non-zero status code returned while running Gather node. Name:'Gather_token_7' Status Message: x",
                Some("operator Gather"),
            ),
            (
                "Non-zero status code returned while running FusedMatMul node. Name:'fused' Status Message: x",
                None,
            ),
            ("Name:'/etc/passwd'", None),
            ("Name:'", None),
            ("", None),
        ] {
            assert_eq!(told(text).as_deref(), expected, "{text}");
        }
    }
}
