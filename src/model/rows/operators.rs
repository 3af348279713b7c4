//! Which rule follows which operator.
//!
//! Invariant: an operator that is not named here is not followed, and one that is puts rows together only where its rule
//! says so.

use super::call::Call;
use super::size::{Item, Symbols};
use super::value::{Reach, Value, broadcast};
use super::{along, layers, movement, product, selection, shapes};

/// Operators of the standard that compute each element from those at the same place, broadcast.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "RegexFullMatch",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "StringConcat",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

/// The same of ONNX Runtime's own.
const ELEMENTWISE_OURS: &[&str] = &["BiasGelu", "FastGelu", "Gelu", "QuickGelu"];

/// What the outputs of `call` are, if that is known.
pub(super) fn follow(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let operator = call.node.op_type.as_str();
    match call.node.domain.as_str() {
        "" | "ai.onnx" => standard(call, operator, symbols),
        "ai.onnx.ml" => classical(call, operator, symbols),
        "com.microsoft" | "com.microsoft.nchwc" => ours(call, operator, symbols),
        _ => None,
    }
}

fn standard(call: &Call<'_>, operator: &str, symbols: &mut Symbols) -> Option<Vec<Value>> {
    if ELEMENTWISE.contains(&operator) {
        return elementwise(call, symbols);
    }
    match operator {
        "Constant" => shapes::constant(call),
        "Shape" => shapes::shape(call),
        "Size" => shapes::size(call),
        "ConstantOfShape" => shapes::filled(call, symbols),
        "Range" => shapes::range(call, symbols),
        "Identity" | "Trilu" => same(call, true),
        "Cast" | "CastLike" => cast(call),
        "Dropout" => same(call, false),
        "QuantizeLinear" | "DequantizeLinear" => layers::in_other_units(call),
        "Reshape" => movement::reshape(call, symbols),
        "Flatten" => movement::flatten(call),
        "Squeeze" => movement::squeeze(call),
        "Unsqueeze" => movement::unsqueeze(call),
        "Transpose" => movement::transpose(call),
        "Concat" => movement::concat(call, symbols),
        "Split" => movement::split(call, symbols),
        "Slice" => movement::slice(call, symbols),
        "Expand" => movement::expand(call, symbols),
        "Tile" => movement::tile(call, symbols),
        "Pad" => movement::pad(call, symbols),
        "Gather" => selection::gather(call),
        "GatherElements" => selection::gather_elements(call),
        "GatherND" => selection::gather_nd(call),
        "Scatter" | "ScatterElements" => selection::scatter_elements(call),
        "ScatterND" => selection::scatter_nd(call),
        "OneHot" => selection::one_hot(call, symbols),
        "TopK" => selection::top_k(call, symbols),
        "Compress" | "Unique" => selection::compress(call),
        // All values decide together what comes out, or which picture a piece is taken of.
        "NonZero"
        | "NonMaxSuppression"
        | "StringNormalizer"
        | "DynamicQuantizeLinear"
        | "MaxRoiPool"
        | "RoiAlign" => Some(call.all_mixed()),
        "ReverseSequence" => selection::reverse_sequence(call),
        "ArgMax" | "ArgMin" => along::arg(call),
        "CumSum" => along::cumulative_sum(call),
        "Softmax" | "LogSoftmax" | "Hardmax" => along::softmax(call),
        "LpNormalization" => along::one(call, -1),
        "GroupNormalization" | "LRN" => along::from(call, 1),
        "InstanceNormalization" => along::from(call, 2),
        "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
            along::layer_normalization(call)
        }
        "BatchNormalization" => along::batch_normalization(call),
        "MeanVarianceNormalization" => along::mean_variance(call),
        "TfIdfVectorizer" => along::ngrams(call, symbols),
        "MatMul" | "MatMulInteger" => factors(call, 1, symbols),
        "QLinearMatMul" => factors(call, 3, symbols),
        "Gemm" => product::gemm(call, symbols).map(one),
        "Einsum" => product::einsum(call),
        "Conv" | "ConvInteger" => layers::convolution(call, 1, symbols),
        "QLinearConv" => layers::convolution(call, 3, symbols),
        "ConvTranspose" => layers::transposed_convolution(call, symbols),
        "AveragePool" | "LpPool" | "MaxPool" => layers::pool(call, symbols),
        "GlobalAveragePool" | "GlobalLpPool" | "GlobalMaxPool" => layers::global_pool(call),
        "DepthToSpace" => layers::blocks(call, false, symbols),
        "SpaceToDepth" => layers::blocks(call, true, symbols),
        "Resize" | "Upsample" => layers::resize(call, symbols),
        "GridSample" => layers::grid_sample(call),
        "GRU" | "LSTM" | "RNN" => layers::recurrent(call),
        _ if operator.starts_with("Reduce") => along::reduce(call),
        _ => None,
    }
}

fn classical(call: &Call<'_>, operator: &str, symbols: &mut Symbols) -> Option<Vec<Value>> {
    match operator {
        "LabelEncoder" | "CategoryMapper" => elementwise(call, symbols),
        "Binarizer" | "Imputer" | "Normalizer" | "Scaler" => layers::features(call),
        "ArrayFeatureExtractor" => selection::array_features(call),
        "FeatureVectorizer" => layers::feature_vector(call, symbols),
        "OneHotEncoder" => layers::one_hot_features(call, symbols),
        "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier" => {
            layers::classical(call, &[1, 2], symbols)
        }
        "LinearRegressor" | "SVMRegressor" | "TreeEnsemble" | "TreeEnsembleRegressor" => {
            layers::classical(call, &[2], symbols)
        }
        _ => None,
    }
}

fn ours(call: &Call<'_>, operator: &str, symbols: &mut Symbols) -> Option<Vec<Value>> {
    if ELEMENTWISE_OURS.contains(&operator) {
        return elementwise(call, symbols);
    }
    match operator {
        "QuantizeLinear" | "DequantizeLinear" | "QLinearLeakyRelu" | "QLinearSigmoid" => {
            layers::in_other_units(call)
        }
        "QLinearAdd" | "QLinearMul" => {
            let broadcast = broadcast(&[call.input(0)?, call.input(3)?], &call.mixed(), symbols)?;
            Some(vec![broadcast])
        }
        "FusedMatMul" | "TransposeMatMul" if !turns(call) => factors(call, 1, symbols),
        "MatMulIntegerToFloat" | "MatMulInteger16" => factors(call, 1, symbols),
        "FusedGemm" => product::gemm(call, symbols).map(one),
        "FusedConv" => layers::convolution(call, 1, symbols),
        "QLinearConv" => layers::convolution(call, 3, symbols),
        "DynamicQuantizeMatMul" => Some(call.all_mixed()),
        "Attention"
        | "MultiHeadAttention"
        | "QAttention"
        | "MatMulNBits"
        | "SkipLayerNormalization"
        | "SkipSimplifiedLayerNormalization" => layers::with_rows_first(call, 0, symbols),
        "EmbedLayerNormalization" => layers::with_rows_first(call, 1, symbols),
        _ => None,
    }
}

fn one(value: Value) -> Vec<Value> {
    vec![value]
}

fn turns(call: &Call<'_>) -> bool {
    ["transA", "transB", "transBatchA", "transBatchB"]
        .iter()
        .any(|flag| call.int(flag, 0) != 0)
}

/// A product of the first input and the one at `right`; the rest are units.
fn factors(call: &Call<'_>, right: usize, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let is_unit = |index: usize| index != 0 && index != right;
    let mut units = call.inputs.iter().enumerate();
    let constant = |(index, value): (usize, &Option<Value>)| {
        !is_unit(index) || value.as_ref().is_none_or(Value::is_nothing)
    };
    if !units.all(constant) {
        return None;
    }
    let product = product::matmul(call, call.input(0)?, call.input(right)?, symbols)?;
    Some(vec![product])
}

fn elementwise(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let value = broadcast(&call.given(), &call.mixed(), symbols)?;
    let items = if value.is_nothing() {
        shapes::arithmetic(call)
    } else {
        None
    };
    Some(vec![Value { items, ..value }; call.outputs()])
}

/// The first input as it is; its elements too, if they are `kept`.
fn same(call: &Call<'_>, kept: bool) -> Option<Vec<Value>> {
    let value = call.input(0)?;
    let items = value.items.clone().filter(|_| kept);
    let value = Value {
        items,
        ..value.clone()
    };
    Some(vec![value; call.outputs()])
}

fn cast(call: &Call<'_>) -> Option<Vec<Value>> {
    const BOOL: i64 = 9;
    let mut outputs = same(call, true)?;
    if call.int("to", BOOL) == BOOL {
        let flag = |item: &Item| match item {
            Item::Number(number) => Item::Number(i64::from(*number != 0)),
            Item::Size(_) | Item::Opaque => Item::Opaque,
        };
        for output in &mut outputs {
            let items = output.items.as_ref();
            output.items = items.map(|items| items.iter().map(flag).collect());
        }
    }
    Some(outputs)
}

/// What an operator that is not followed gives.
pub(super) fn unknown(call: &Call<'_>) -> Vec<Value> {
    let all_nothing = call.given().iter().all(|value| value.is_nothing());
    let reach = if all_nothing {
        Reach::Nothing
    } else {
        Reach::Unknown
    };
    vec![Value::shapeless(reach); call.outputs()]
}
