//! The order in which the nodes of a graph can be followed.
//!
//! The standard wants nodes after those that they need, and ONNX Runtime takes them in any order all the same. Invariant:
//! each node comes once, after all that compute what it or a graph inside it uses, unless they need each other.

use std::collections::{HashMap, HashSet};

use crate::model::proto::{GraphProto, NodeProto};

pub(super) fn of(graph: &GraphProto) -> Vec<&NodeProto> {
    let mut made: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        let names = node.output.iter().filter(|name| !name.is_empty());
        made.extend(names.map(|name| (name.as_str(), index)));
    }
    let mut left = vec![0_usize; graph.node.len()];
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    for (index, node) in graph.node.iter().enumerate() {
        let mut used = HashSet::new();
        names_in(node, &mut used);
        let needed: HashSet<usize> = used
            .iter()
            .filter_map(|name| made.get(name).copied())
            .collect();
        for other in needed {
            if let (Some(followers), Some(left)) = (followers.get_mut(other), left.get_mut(index)) {
                followers.push(index);
                *left += 1;
            }
        }
    }
    // As they stand in the file, but for those that have to wait.
    let mut ready: Vec<usize> = (0..left.len())
        .filter(|index| left.get(*index) == Some(&0))
        .collect();
    ready.reverse();
    let mut order = Vec::with_capacity(graph.node.len());
    while let Some(index) = ready.pop() {
        order.extend(graph.node.get(index));
        for follower in followers.get(index).into_iter().flatten() {
            if let Some(left) = left.get_mut(*follower) {
                *left -= 1;
                if *left == 0 {
                    ready.push(*follower);
                }
            }
        }
    }
    order
}

/// The names that `node` and the graphs inside it use.
fn names_in<'a>(node: &'a NodeProto, names: &mut HashSet<&'a str>) {
    names.extend(node.input.iter().map(String::as_str));
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            names.extend(graph.output.iter().map(|output| output.name.as_str()));
            for inner in &graph.node {
                names_in(inner, names);
            }
        }
    }
}
