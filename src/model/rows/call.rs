//! One node of a graph with what is known of its inputs: what the rules of the operators read.

use std::sync::Arc;

use super::size::Size;
use super::value::{Reach, Value};
use crate::model::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// A node and its inputs.
pub(super) struct Call<'a> {
    pub(super) node: &'a NodeProto,
    /// `None` for one that is left out.
    pub(super) inputs: Vec<Option<Value>>,
    /// The version of the operator set that the operator is from.
    pub(super) opset: i64,
    /// Whether the node is in a graph inside another node.
    pub(super) is_inner: bool,
}

impl<'a> Call<'a> {
    fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        let mut attributes = self.node.attribute.iter();
        attributes.find(|attribute| attribute.name == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |found| found.i)
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|found| found.ints.as_slice())
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        let found = self.attribute(name)?;
        std::str::from_utf8(&found.s).ok()
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.attribute(name)?.t.as_ref()
    }

    pub(super) fn graph(&self, name: &str) -> Option<&'a GraphProto> {
        self.attribute(name)?.g.as_ref()
    }

    pub(super) fn input(&self, index: usize) -> Option<&Value> {
        self.inputs.get(index)?.as_ref()
    }

    /// The inputs that are there.
    pub(super) fn given(&self) -> Vec<&Value> {
        self.inputs.iter().flatten().collect()
    }

    /// The number of its outputs.
    pub(super) fn outputs(&self) -> usize {
        self.node.output.len()
    }

    /// What to say of an output if this node puts rows together.
    pub(super) fn mixed(&self) -> Reach {
        let NodeProto { name, op_type, .. } = self.node;
        Reach::Mixed(if name.is_empty() {
            let output = self.node.output.first().map_or("", String::as_str);
            Arc::from(format!("operator {op_type} that computes '{output}'"))
        } else {
            Arc::from(format!("operator {op_type} in node '{name}'"))
        })
    }

    /// Every output is `mixed`.
    pub(super) fn all_mixed(&self) -> Vec<Value> {
        vec![Value::shapeless(self.mixed()); self.outputs()]
    }

    /// The attribute of this name as an axis of `rank` dimensions.
    pub(super) fn axis(&self, name: &str, default: i64, rank: usize) -> Option<usize> {
        axis(self.int(name, default), rank)
    }

    /// The axes that an attribute, or since a later version the input at `index`, names.
    pub(super) fn axes(&self, index: usize) -> Axes {
        if let Some(axes) = self.ints("axes") {
            return Axes::of(axes.to_vec());
        }
        match self.input(index) {
            None => Axes::Unnamed,
            Some(value) => value.numbers().map_or(Axes::Unknown, Axes::of),
        }
    }

    /// What `value` depends on, after an operation that runs along `axes` of it.
    pub(super) fn along(&self, value: &Value, axes: &[usize]) -> Reach {
        match value.place() {
            Some(place) if axes.contains(&place.axis) => self.mixed(),
            _ => value.reach.clone(),
        }
    }
}

/// The axes along which an operator runs.
pub(super) enum Axes {
    These(Vec<i64>),
    Unnamed,
    Unknown,
}

impl Axes {
    fn of(axes: Vec<i64>) -> Self {
        if axes.is_empty() {
            Self::Unnamed
        } else {
            Self::These(axes)
        }
    }
}

/// `axis` of `rank` dimensions, counted from the end if it is negative.
pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank_as = i64::try_from(rank).ok()?;
    let counted = if axis < 0 { axis + rank_as } else { axis };
    usize::try_from(counted).ok().filter(|axis| *axis < rank)
}

/// All of `axes`, of `rank` dimensions.
pub(super) fn all_axes(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    axes.iter().map(|number| axis(*number, rank)).collect()
}

/// The dimensions of a tensor in the file.
pub(super) fn dims_of(tensor: &TensorProto) -> Option<Vec<Size>> {
    let size = |dim: &i64| u64::try_from(*dim).ok().map(Size::number);
    tensor.dims.iter().map(size).collect()
}
