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
        let parameters = BY_PARAMETERS
            .iter()
            .find(|(operator, _)| *operator == node.operator);
        let bounded = match (node.domain, parameters) {
            ("" | "ai.onnx", Some((_, first))) => node.inputs.iter().skip(*first).all(is_known),
            ("" | "ai.onnx", None) => BY_SHAPE.contains(&node.operator),
            ("ai.onnx.ml", _) => BY_SHAPE_ML.contains(&node.operator),
            _ => false,
        };
        if !bounded {
            return false;
        }
        let by_shape = node.domain != "ai.onnx.ml" && matches!(node.operator, "Shape" | "Size");
        if by_shape || node.inputs.iter().all(is_known) {
            known.extend(node.outputs.iter().map(String::as_str));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether nodes like `y = Operator(a, b)` are bounded, where `w` is a weight and `x` comes from a request.
    fn bounded(lines: &[&str]) -> bool {
        let nodes: Vec<(String, Vec<String>, Vec<String>)> = lines
            .iter()
            .map(|line| {
                let (output, call) = line.split_once(" = ").unwrap();
                let (operator, inputs) = call.trim_end_matches(')').split_once('(').unwrap();
                let inputs = inputs.split(", ").map(str::to_owned).collect();
                (operator.to_owned(), inputs, vec![output.to_owned()])
            })
            .collect();
        let nodes = nodes.iter().map(|(operator, inputs, outputs)| {
            let (domain, operator) = operator.rsplit_once(':').unwrap_or(("", operator));
            Node {
                domain,
                operator,
                inputs,
                outputs,
                has_subgraph: operator == "Loop",
            }
        });
        is_bounded(["w"].into_iter(), nodes)
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
