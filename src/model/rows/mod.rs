//! Whether a graph keeps the rows of a batch apart, as far as the graph tells before anything runs.
//!
//! Trying a model shows what happens on the rows that are made up. Values that nobody makes up may make a row's answer
//! another one, or another client's: a condition on all rows that is met once in a million, a sum over the batch that counts
//! only beyond a bound. The graph tells what can meet at all: the place of the rows is followed from the inputs through the
//! operators, and where one of them puts rows together, whatever becomes of it, what follows is not merged.
//!
//! Invariant: [`Rows::Apart`] is said only where every operator on the way is known to keep rows apart. [`Rows::Unknown`]
//! says nothing: what was not followed is left to the trial, and so is merged if that finds nothing. A rule that gives up
//! opens the way; one that knows of a meeting must say so.

mod along;
mod call;
mod control;
mod cutting;
mod layers;
mod movement;
mod operators;
mod order;
mod product;
mod selection;
mod shapes;
mod size;
#[cfg(test)]
mod tests;
mod value;

use std::collections::HashMap;
use std::sync::Arc;

use call::Call;
use size::{Size, Symbols};
use value::{MOST_DIMS, Own, Place, Reach, Value};

use super::flow::Known;
use super::proto::{GraphProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use super::work;

/// Nodes that are followed, those in loops as often as they are. No real graph has as many, and no file is to hold up a
/// start.
const MOST_STEPS: usize = 300_000;

/// How the rows of a batch lie in an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// Each row of it depends on one row of the inputs, or on none.
    Apart,
    /// Rows meet in this operator.
    Mixed(Arc<str>),
    /// The graph was not followed that far.
    Unknown,
}

/// How rows lie in the outputs of `graph`, in its order, if the first dimension of every input is the batch; `known` is what
/// follows from the sizes of the inputs.
pub(super) fn of_outputs(
    graph: &GraphProto,
    opsets: &[OperatorSetIdProto],
    known: &Known<'_>,
) -> Vec<Rows> {
    let opsets = opsets.iter();
    let mut walk = Walk {
        scopes: vec![HashMap::new()],
        symbols: Symbols::new(),
        opsets: opsets
            .map(|opset| (standard_name(&opset.domain), opset.version))
            .collect(),
        known,
        steps: 0,
    };
    walk.enter_inputs(graph);
    walk.run(graph);
    let outputs = graph.output.iter();
    let rows = |output: &ValueInfoProto| match walk.value(&output.name).reach {
        Reach::Nothing => Rows::Apart,
        Reach::Rows(place) if place.axis == 0 && place.is_plain() => Rows::Apart,
        Reach::Mixed(by) => Rows::Mixed(by),
        // Its first dimension is another one than the rows.
        Reach::Rows(_) | Reach::Unknown => Rows::Unknown,
    };
    outputs.map(rows).collect()
}

/// A walk through a graph, in its order.
struct Walk<'a> {
    /// What is known of the values by name, those of the innermost graph last.
    scopes: Vec<HashMap<&'a str, Value>>,
    symbols: Symbols,
    opsets: HashMap<&'a str, i64>,
    known: &'a Known<'a>,
    /// Nodes that were followed so far.
    steps: usize,
}

impl<'a> Walk<'a> {
    /// The inputs that requests bring.
    fn enter_inputs(&mut self, graph: &'a GraphProto) {
        for input in &graph.input {
            let shape = input.shape().filter(|shape| shape.dim.len() <= MOST_DIMS);
            let dims = shape.map(|shape| {
                let mut dims = Vec::new();
                for (axis, dim) in shape.dim.iter().enumerate() {
                    let fixed = dim.dim_value.and_then(|size| u64::try_from(size).ok());
                    let name = dim
                        .dim_param
                        .as_deref()
                        .filter(|name| super::Dim::dynamic(name) != super::Dim::Dynamic(None));
                    dims.push(match (axis, fixed, name) {
                        (0, ..) => Size::rows(),
                        (_, Some(size), _) => Size::number(size),
                        (_, None, Some(name)) => self.symbols.named(name),
                        (_, None, None) => self.symbols.fresh(),
                    });
                }
                dims
            });
            let value = match dims.filter(|dims| !dims.is_empty()) {
                Some(dims) => Value::new(Reach::Rows(Place::at(0)), dims),
                None => Value::shapeless(Reach::Unknown),
            };
            self.set(&input.name, value);
        }
    }

    /// Follows the nodes of `graph` in the innermost scope.
    fn run(&mut self, graph: &'a GraphProto) {
        // An input that has a default is a weight: requests cannot set it.
        for tensor in &graph.initializer {
            self.set(&tensor.name, shapes::of_tensor(tensor));
        }
        for sparse in &graph.sparse_initializer {
            if let Some(values) = &sparse.values {
                self.set(&values.name, Value::shapeless(Reach::Nothing));
            }
        }
        for node in order::of(graph) {
            self.steps += 1;
            let outputs = if self.steps > MOST_STEPS {
                vec![Value::shapeless(Reach::Unknown); node.output.len()]
            } else {
                self.node(node)
            };
            let is_outermost = self.scopes.len() == 1;
            for (name, mut value) in node.output.iter().zip(outputs) {
                if is_outermost && self.known.flow(name).constant {
                    // Of what was not followed, it may be the number of rows.
                    value.counts |= value.reach == Reach::Unknown;
                    value.reach = Reach::Nothing;
                }
                self.set(name, value);
            }
        }
    }

    /// What the outputs of `node` are.
    fn node(&mut self, node: &'a NodeProto) -> Vec<Value> {
        let input = |name: &String| (!name.is_empty()).then(|| self.value(name));
        let call = Call {
            node,
            inputs: node.input.iter().map(input).collect(),
            opset: self.opset(&node.domain),
            is_inner: self.scopes.len() > 1,
        };
        if let Some(mixed) = Self::inherited(&call) {
            return vec![Value::shapeless(mixed); call.outputs()];
        }
        let is_of_shapes = work::is_of_shapes(&as_work(node));
        let followed = match node.op_type.as_str() {
            "If" => self.branches(&call),
            "Loop" => self.repetition(&call),
            "Scan" => self.scan(&call),
            _ => operators::follow(&call, &mut self.symbols),
        };
        let has_graph = node.attribute.iter().any(|attribute| attribute.g.is_some());
        let mut outputs = match followed {
            Some(outputs) => outputs,
            // A graph inside may use any value around it.
            None if has_graph => vec![Value::shapeless(Reach::Unknown); call.outputs()],
            None => operators::unknown(&call),
        };
        outputs.resize(call.outputs(), Value::shapeless(Reach::Unknown));
        let all_nothing = call.given().iter().all(|value| value.is_nothing());
        let mut given = call.given().into_iter();
        let by_unknown = !is_of_shapes && given.any(|value| value.reach == Reach::Unknown);
        let counts = Self::counted_by(&call);
        for output in &mut outputs {
            if counts && output.place().is_some() && output.own == Own::Other {
                // Of a row's answer, strangers are not to change that either.
                *output = Value::shapeless(call.mixed());
            } else if by_unknown && !matches!(output.reach, Reach::Mixed(_)) {
                *output = output.clone().unfollowed();
            }
            if !has_graph && all_nothing {
                output.reach = Reach::Nothing;
            }
            if output.is_nothing() {
                output.counts = output.has_row_counts()
                    || output.own != Own::Other
                    || (counts && output.numbers().is_none());
            }
        }
        outputs
    }

    /// What rows that met before `call` make of its outputs, or that a value decides for all rows at once here.
    fn inherited(call: &Call<'_>) -> Option<Reach> {
        let known = as_work(call.node);
        if work::is_of_shapes(&known) && call.input(0)?.dims.is_some() {
            return None;
        }
        let mut given = call.given().into_iter();
        if let Some(value) = given.find(|value| matches!(value.reach, Reach::Mixed(_))) {
            return Some(value.reach.clone());
        }
        Self::shaped_by(call)
            .any(|value| value.place().is_some())
            .then(|| call.mixed())
    }

    /// The inputs of `call` that hold for all rows at once: sizes, axes, how often.
    fn shaped_by<'b>(call: &'b Call<'_>) -> impl Iterator<Item = &'b Value> {
        let known = as_work(call.node);
        // The lengths and first states of sequences are those of their rows.
        let is_recurrent = matches!(known.operator, "GRU" | "LSTM" | "RNN");
        let first = work::parameters(&known).filter(|_| !is_recurrent);
        let inputs = call.inputs.iter().skip(first.unwrap_or(usize::MAX));
        inputs.flatten()
    }

    /// Whether an input of `call` that is not a mere size or axis tells how many rows there are.
    fn counted_by(call: &Call<'_>) -> bool {
        let known = as_work(call.node);
        // A row that is chosen by its own number is chosen whatever is beside it.
        if matches!(
            known.operator,
            "Gather" | "GatherND" | "ScatterElements" | "ScatterND"
        ) {
            return false;
        }
        let sizes = work::parameters(&known).filter(|_| known.operator != "Range");
        let mut data = call
            .inputs
            .iter()
            .take(sizes.unwrap_or(usize::MAX))
            .flatten();
        data.any(|value| value.counts)
    }

    fn opset(&self, domain: &str) -> i64 {
        let version = self.opsets.get(standard_name(domain));
        version.copied().unwrap_or(i64::MAX)
    }

    fn value(&self, name: &str) -> Value {
        let mut scopes = self.scopes.iter().rev();
        let found = scopes.find_map(|scope| scope.get(name));
        found.cloned().unwrap_or(Value::shapeless(Reach::Unknown))
    }

    fn set(&mut self, name: &'a str, value: Value) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, value);
        }
    }
}

/// The name that the standard's own domain has here, or `domain`.
fn standard_name(domain: &str) -> &str {
    match domain {
        "ai.onnx" => "",
        other => other,
    }
}

fn as_work(node: &NodeProto) -> work::Node<'_> {
    work::Node {
        domain: &node.domain,
        operator: &node.op_type,
        inputs: &node.input,
        outputs: &node.output,
        has_subgraph: false,
    }
}
