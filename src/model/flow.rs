//! What the outputs of a graph follow from, as far as the graph tells before anything runs.
//!
//! Requests may share an execution only if nothing of a row's answer depends on the rows beside it. Elements can be tried,
//! but a size that values decide (as many words as the longest text has, as many boxes as were found) shows only on the
//! values that nobody thought of. Invariant: what is not known to follow from shapes is taken to follow from values.

use std::collections::HashSet;

use super::work::{self, Node};

/// What one output of a graph follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Its sizes follow from the sizes of the inputs, whatever their values are.
    pub sized: bool,
    /// Its elements, too, follow from the sizes of the inputs, or from nothing but the model.
    pub constant: bool,
}

/// Operators beside those of which the work follows from shapes, whose outputs' shapes do so all the same.
const SIZED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "Bernoulli",
            "Det",
            "GridSample",
            "MaxRoiPool",
            "Mod",
            "Multinomial",
            "QLinearConv",
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
            "RegexFullMatch",
            "ReverseSequence",
            "RoiAlign",
            "RotaryEmbedding",
            "Scatter",
            "StringConcat",
        ],
    ),
    (
        "ai.onnx.ml",
        &[
            "CategoryMapper",
            "LabelEncoder",
            "TreeEnsemble",
            "TreeEnsembleClassifier",
            "TreeEnsembleRegressor",
        ],
    ),
    (
        "com.microsoft",
        &[
            "Attention",
            "BiasGelu",
            "BiasSoftmax",
            "ConvTransposeWithDynamicPads",
            "DequantizeLinear",
            "DynamicQuantizeLSTM",
            "DynamicQuantizeMatMul",
            "EmbedLayerNormalization",
            "FastGelu",
            "FusedConv",
            "FusedGemm",
            "FusedMatMul",
            "FusedMatMulActivation",
            "Gelu",
            "GroupNorm",
            "MatMulInteger16",
            "MatMulIntegerToFloat",
            "MatMulNBits",
            "MultiHeadAttention",
            "NhwcMaxPool",
            "QAttention",
            "QGemm",
            "QLinearAdd",
            "QLinearAveragePool",
            "QLinearConcat",
            "QLinearConv",
            "QLinearGlobalAveragePool",
            "QLinearLeakyRelu",
            "QLinearMul",
            "QLinearSigmoid",
            "QLinearSoftmax",
            "QuantizeLinear",
            "QuickGelu",
            "SkipGroupNorm",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
        ],
    ),
];

/// What follows from the sizes of the inputs in a graph, by name.
pub(super) struct Known<'a> {
    sized: HashSet<&'a str>,
    constant: HashSet<&'a str>,
}

impl<'a> Known<'a> {
    /// What follows from sizes in a graph of `nodes`, in the order of the graph; `constants` are the names of its weights,
    /// and `inputs` those that requests bring.
    pub(super) fn of(
        constants: impl Iterator<Item = &'a str>,
        inputs: impl Iterator<Item = &'a str>,
        nodes: impl Iterator<Item = Node<'a>>,
    ) -> Self {
        // An input that has a default is a weight: requests cannot set it.
        let mut constant: HashSet<&str> = constants.collect();
        let mut sized: HashSet<&str> = constant.iter().copied().chain(inputs).collect();
        for node in nodes {
            let all_in = |names: &HashSet<&str>, from: usize| {
                let mut inputs = node.inputs.iter().skip(from);
                inputs.all(|name| name.is_empty() || names.contains(name.as_str()))
            };
            // A subgraph may use any value of the graphs around it without naming it among its inputs.
            let closed = !node.has_subgraph && !node.is_random();
            let from_constants = closed && all_in(&constant, 0);
            let by_shape = !node.has_subgraph
                && all_in(&sized, 0)
                && match work::parameters(&node) {
                    Some(first) => all_in(&constant, first),
                    None => work::is_by_shape(&node) || is_sized(&node),
                };
            let outputs = || node.outputs.iter().map(String::as_str);
            if from_constants || by_shape {
                sized.extend(outputs());
            }
            if from_constants || (by_shape && work::is_of_shapes(&node)) {
                constant.extend(outputs());
            }
        }
        Self { sized, constant }
    }

    /// What the value of this name follows from.
    pub(super) fn flow(&self, name: &str) -> Flow {
        Flow {
            sized: self.sized.contains(name),
            constant: self.constant.contains(name),
        }
    }
}

fn is_sized(node: &Node<'_>) -> bool {
    let domain = node.standard_domain();
    SIZED
        .iter()
        .any(|(known, operators)| *known == domain && operators.contains(&node.operator))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `y` follows from, where `w` is a weight and `x` comes from a request.
    fn flow(lines: &[&str]) -> (bool, bool) {
        let nodes = work::nodes_of(lines);
        let known = Known::of(
            ["w"].into_iter(),
            ["x"].into_iter(),
            nodes.iter().map(work::OwnedNode::as_node),
        );
        let flow = known.flow("y");
        (flow.sized, flow.constant)
    }

    #[test]
    fn shapes_of_usual_layers_follow_from_shapes_and_their_elements_do_not() {
        for lines in [
            &["a = Gemm(x, w, w)", "y = Softmax(a)"][..],
            &["y = ai.onnx.ml:TreeEnsembleClassifier(x)"],
            &["a = com.microsoft:FusedConv(x, w)", "y = Reshape(a, w)"],
            &["s = Shape(x)", "y = Expand(x, s)"],
            &["y = RandomNormalLike(x)"],
        ] {
            assert_eq!(flow(lines), (true, false), "{lines:?}");
        }
    }

    #[test]
    fn sizes_that_values_decide_are_found_and_stay_found() {
        for lines in [
            &["y = StringSplit(x)"][..],
            &["y = NonZero(x)"],
            &["a = NonZero(x)", "y = Relu(a)"],
            &["y = Unique(x)"],
            &["y = Compress(x, w)"],
            &["a = ReduceMax(x)", "y = ConstantOfShape(a)"],
            &["y = TopK(w, x)"],
            &["y = com.example:Tokenise(x)"],
            &["y = Loop(w, w)"],
            // The number of what was found is a value, though an operator reads it off a shape.
            &["a = NonZero(x)", "s = Shape(a)", "y = Expand(w, s)"],
        ] {
            assert_eq!(flow(lines), (false, false), "{lines:?}");
        }
    }

    #[test]
    fn what_no_value_of_a_request_reaches_is_constant() {
        for lines in [
            &["y = Identity(w)"][..],
            &["y = Shape(x)"],
            &["s = Shape(x)", "y = ConstantOfShape(s)"],
            &["y = NonZero(w)"],
            &["y = com.example:Anything(w)"],
        ] {
            assert_eq!(flow(lines), (true, true), "{lines:?}");
        }
        // Drawn anew in each run.
        assert_eq!(flow(&["y = RandomNormal()"]), (true, false));
        // A branch sees what lies around it.
        assert_eq!(flow(&["y = If(w)"]), (false, false));
    }
}
