//! Whether the work of a graph follows from the shapes of its inputs, so that a run on other values takes about as long as
//! one that was measured: as many steps over as many elements, if not always as many nanoseconds.
//!
//! Most graphs are so, but a loop may turn as often as a request says, and an operator may make a tensor as large as a
//! request says. Invariant: what is not known to be bounded is taken to be unbounded.

use std::collections::HashSet;

/// One node of a graph, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) domain: &'a str,
    pub(super) operator: &'a str,
    /// Names of its inputs; one that is left out has none.
    pub(super) inputs: &'a [String],
    pub(super) outputs: &'a [String],
    /// Whether an attribute holds a graph of its own, as those of loops and branches do.
    pub(super) has_subgraph: bool,
}

/// Operators whose outputs have shapes, and cost work, that follow from the shapes of their inputs.
const BY_SHAPE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BatchNormalization",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "DynamicQuantizeLinear",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "EyeLike",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RMSNormalization",
    "Reciprocal",
    "Relu",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Transpose",
    "Trilu",
    "Where",
    "Xor",
];

/// The same of the domain for classical machine learning.
const BY_SHAPE_ML: &[&str] = &[
    "ArrayFeatureExtractor",
    "Binarizer",
    "FeatureVectorizer",
    "Imputer",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
];

/// Operators of which some inputs, from this position on, are parameters: the shape of an output, or how another input is
/// cut or turned. Work is bounded only if those follow from shapes themselves.
const BY_PARAMETERS: &[(&str, usize)] = &[
    ("ConstantOfShape", 0),
    ("Expand", 1),
    // The lengths of the sequences say how many steps are taken.
    ("GRU", 4),
    ("LSTM", 4),
    ("RNN", 4),
    ("OneHot", 1),
    ("Pad", 1),
    ("Range", 0),
    ("ReduceL1", 1),
    ("ReduceL2", 1),
    ("ReduceLogSum", 1),
    ("ReduceLogSumExp", 1),
    ("ReduceMax", 1),
    ("ReduceMean", 1),
    ("ReduceMin", 1),
    ("ReduceProd", 1),
    ("ReduceSum", 1),
    ("ReduceSumSquare", 1),
    ("Reshape", 1),
    ("Resize", 1),
    ("Slice", 1),
    ("Split", 1),
    ("Squeeze", 1),
    ("Tile", 1),
    ("TopK", 1),
    ("Unsqueeze", 1),
    ("Upsample", 1),
];

impl Node<'_> {
    /// The domain, where the standard's own has no name.
    pub(super) fn standard_domain(&self) -> &str {
        match self.domain {
            "ai.onnx" => "",
            other => other,
        }
    }

    /// Whether its outputs are drawn anew in each run.
    pub(super) fn is_random(&self) -> bool {
        self.operator.starts_with("Random") || matches!(self.operator, "Bernoulli" | "Multinomial")
    }
}

/// The position of the first input of `node` that is a parameter, if its operator has such.
pub(super) fn parameters(node: &Node<'_>) -> Option<usize> {
    let mut known = BY_PARAMETERS.iter();
    let found =
        known.find(|(operator, _)| node.standard_domain().is_empty() && *operator == node.operator);
    found.map(|(_, first)| *first)
}

/// Whether the operator of `node` has outputs whose shapes, and costs work that, follow from the shapes of its inputs.
pub(super) fn is_by_shape(node: &Node<'_>) -> bool {
    match node.standard_domain() {
        "" => BY_SHAPE.contains(&node.operator),
        "ai.onnx.ml" => BY_SHAPE_ML.contains(&node.operator),
        _ => false,
    }
}

/// Whether `node` turns a shape into values.
pub(super) fn is_of_shapes(node: &Node<'_>) -> bool {
    node.standard_domain().is_empty() && matches!(node.operator, "Shape" | "Size")
}

/// Whether the work of `nodes`, in the order of the graph, follows from shapes; `constants` are the names of its weights.
pub(super) fn is_bounded<'a>(
    constants: impl Iterator<Item = &'a str>,
    nodes: impl Iterator<Item = Node<'a>>,
) -> bool {
    // Values that no request can change but by its shapes.
    let mut known: HashSet<&str> = constants.collect();
    for node in nodes {
        if node.has_subgraph {
            return false;
        }
        let is_known = |name: &String| name.is_empty() || known.contains(name.as_str());
        let bounded = match parameters(&node) {
            Some(first) => node.inputs.iter().skip(first).all(is_known),
            None => is_by_shape(&node),
        };
        if !bounded {
            return false;
        }
        if is_of_shapes(&node) || node.inputs.iter().all(is_known) {
            known.extend(node.outputs.iter().map(String::as_str));
        }
    }
    true
}

/// A node that a test wrote as one line.
#[cfg(test)]
pub(super) struct OwnedNode {
    operator: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

#[cfg(test)]
impl OwnedNode {
    pub(super) fn as_node(&self) -> Node<'_> {
        let (domain, operator) = self
            .operator
            .rsplit_once(':')
            .unwrap_or(("", &self.operator));
        Node {
            domain,
            operator,
            inputs: &self.inputs,
            outputs: &self.outputs,
            has_subgraph: matches!(operator, "Loop" | "If"),
        }
    }
}

/// Nodes written like `y = Operator(a, b)`.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests write lines of this form")]
pub(super) fn nodes_of(lines: &[&str]) -> Vec<OwnedNode> {
    let node = |line: &&str| {
        let (output, call) = line.split_once(" = ").unwrap();
        let (operator, inputs) = call.trim_end_matches(')').split_once('(').unwrap();
        let inputs = inputs.split(", ").filter(|_| !inputs.is_empty());
        OwnedNode {
            operator: operator.to_owned(),
            inputs: inputs.map(str::to_owned).collect(),
            outputs: vec![output.to_owned()],
        }
    };
    lines.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether nodes like `y = Operator(a, b)` are bounded, where `w` is a weight and `x` comes from a request.
    fn bounded(lines: &[&str]) -> bool {
        let nodes = nodes_of(lines);
        is_bounded(["w"].into_iter(), nodes.iter().map(OwnedNode::as_node))
    }

    #[test]
    fn usual_layers_are_bounded() {
        assert!(bounded(&[
            "a = Gemm(x, w, w)",
            "b = Relu(a)",
            "y = Softmax(b)"
        ]));
        assert!(bounded(&["y = ai.onnx.ml:LinearClassifier(x)"]));
        assert!(bounded(&["y = LSTM(x, w, w)"]));
        assert!(bounded(&["y = LSTM(x, w, w, , w)"]));
        assert!(bounded(&[
            "a = Conv(x, w)",
            "b = Reshape(a, w)",
            "y = ReduceMean(b)"
        ]));
    }

    #[test]
    fn a_shape_that_follows_from_shapes_is_bounded() {
        assert!(bounded(&[
            "s = Shape(x)",
            "n = Gather(s, w)",
            "t = Concat(n, w)",
            "a = Reshape(x, t)",
            "y = Expand(a, s)"
        ]));
    }

    #[test]
    fn what_a_request_s_values_decide_is_not() {
        for lines in [
            &["y = ConstantOfShape(x)"][..],
            &["y = Tile(w, x)"],
            &["y = Expand(w, x)"],
            &["a = Cast(x)", "y = Range(w, a, w)"],
            &["a = Reshape(w, x)", "y = Add(a, w)"],
            &["s = Shape(x)", "t = Add(s, x)", "y = Expand(x, t)"],
            &["y = Loop(w, x)"],
            &["y = NonZero(x)"],
            &["y = LSTM(x, w, w, , x)"],
            // How deep a tree is descended depends on the values.
            &["y = ai.onnx.ml:TreeEnsembleClassifier(x)"],
            &["y = com.microsoft:Gelu(x)"],
            &["y = ai.onnx.ml:Gemm(x, w)"],
        ] {
            assert!(!bounded(lines), "{lines:?}");
        }
    }
}
