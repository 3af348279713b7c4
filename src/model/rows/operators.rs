//! Which rule follows which operator.
//!
//! Invariant: an operator that is not named here is not followed, and one that is puts rows together only where its rule
//! says so.

use super::call::Call;
use super::size::{Item, Symbols};
use super::value::{Own, Reach, Value, broadcast};
use super::{along, cutting, layers, movement, product, selection, shapes};

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

/// The same of ONNX Runtime's contrib operators.
const ELEMENTWISE_CONTRIB: &[&str] = &["BiasGelu", "FastGelu", "Gelu", "QuickGelu"];

/// What the outputs of `call` are, if that is known.
pub(super) fn follow(call: &Call<'_>, symbols: &mut Symbols) -> Option<Vec<Value>> {
    let operator = call.node.op_type.as_str();
    match call.node.domain.as_str() {
        "" | "ai.onnx" => standard(call, operator, symbols),
        "ai.onnx.ml" => classical(call, operator, symbols),
        "com.microsoft" | "com.microsoft.nchwc" => contrib(call, operator, symbols),
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
        "Identity" => same(call, true),
        "Cast" => cast(call),
        "CastLike" | "Dropout" => same(call, false),
        "Trilu" => triangle(call),
        "QuantizeLinear" | "DequantizeLinear" => layers::in_other_units(call),
        "Reshape" => movement::reshape(call, symbols),
        "Flatten" => movement::flatten(call),
        "Squeeze" => movement::squeeze(call),
        "Unsqueeze" => movement::unsqueeze(call),
        "Transpose" => movement::transpose(call),
        "Concat" => movement::concat(call, symbols),
        "Split" => cutting::split(call, symbols),
        "Slice" => cutting::slice(call, symbols),
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
        // Without words to leave out, each text is written in another way.
        "StringNormalizer" if !call.has("stopwords") => same(call, false),
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
        "GroupNormalization" | "LRN" => with_weights(call, || along::from(call, 1)),
        "InstanceNormalization" => with_weights(call, || along::from(call, 2)),
        "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
            along::layer_normalization(call, symbols)
        }
        "BatchNormalization" => with_weights(call, || along::batch_normalization(call)),
        "MeanVarianceNormalization" => along::mean_variance(call),
        "TfIdfVectorizer" => along::ngrams(call, symbols),
        "MatMul" | "MatMulInteger" => factors(call, 1, symbols),
        "QLinearMatMul" => factors(call, 3, symbols),
        "Gemm" => product::gemm(call, symbols).map(one),
        "Einsum" => product::einsum(call),
        "Conv" | "ConvInteger" => with_weights(call, || layers::convolution(call, 1, symbols)),
        "QLinearConv" => with_weights(call, || layers::convolution(call, 3, symbols)),
        "ConvTranspose" => with_weights(call, || layers::transposed_convolution(call, symbols)),
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
        "Binarizer" => same(call, false),
        "Imputer" | "Normalizer" | "Scaler" => layers::features(call),
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

fn contrib(call: &Call<'_>, operator: &str, symbols: &mut Symbols) -> Option<Vec<Value>> {
    if ELEMENTWISE_CONTRIB.contains(&operator) {
        return elementwise(call, symbols);
    }
    match operator {
        "QuantizeLinear" | "DequantizeLinear" | "QLinearLeakyRelu" | "QLinearSigmoid" => {
            layers::in_other_units(call)
        }
        "QLinearAdd" | "QLinearMul" => {
            let mut units = call.inputs.iter().enumerate();
            let is_unit = |index: usize| index != 0 && index != 3;
            if units.any(|(index, value)| {
                is_unit(index) && value.as_ref().is_some_and(|value| !value.is_nothing())
            }) {
                return Some(call.all_mixed());
            }
            let broadcast = broadcast(&[call.input(0)?, call.input(3)?], &call.mixed(), symbols)?;
            Some(vec![broadcast])
        }
        "FusedMatMul" | "TransposeMatMul" if !turns(call) => factors(call, 1, symbols),
        "MatMulIntegerToFloat" | "MatMulInteger16" => factors(call, 1, symbols),
        "FusedGemm" => product::gemm(call, symbols).map(one),
        "FusedConv" => with_weights(call, || layers::convolution(call, 1, symbols)),
        "QLinearConv" if call.int("channels_last", 0) == 0 => {
            with_weights(call, || layers::convolution(call, 3, symbols))
        }
        // Quantised by the largest of all values.
        "DynamicQuantizeLSTM" | "DynamicQuantizeMatMul" => Some(call.all_mixed()),
        "Attention" | "MultiHeadAttention" | "QAttention" | "MatMulNBits" => {
            layers::with_rows_first(call, 0, symbols)
        }
        "SkipLayerNormalization" => layers::skip_normalization(call, 4, symbols),
        "SkipSimplifiedLayerNormalization" => layers::skip_normalization(call, 3, symbols),
        "EmbedLayerNormalization" => layers::embedding(call, symbols),
        _ => None,
    }
}

fn one(value: Value) -> Vec<Value> {
    vec![value]
}

/// What `rule` says of a layer whose inputs but the first one are weights, if they are the same for all rows.
fn with_weights(call: &Call<'_>, rule: impl FnOnce() -> Option<Vec<Value>>) -> Option<Vec<Value>> {
    let weights = || call.inputs.iter().skip(1).flatten();
    if weights().any(|value| value.place().is_some()) {
        return Some(call.all_mixed());
    }
    if weights().all(Value::is_nothing) {
        rule()
    } else {
        None
    }
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
    let value = value.with_items(shapes::arithmetic(call));
    Some(vec![value; call.outputs()])
}

/// The first input as it is; what is known of its elements too, if they are `kept`.
fn same(call: &Call<'_>, kept: bool) -> Option<Vec<Value>> {
    let value = call.input(0)?.clone();
    let value = if kept {
        value
    } else {
        value.with_items(None).standing_for(Own::Other)
    };
    Some(vec![value; call.outputs()])
}

/// What is kept is so by its place in the last two dimensions.
fn triangle(call: &Call<'_>) -> Option<Vec<Value>> {
    let rank = call.input(0)?.rank()?;
    let matrix = [rank.checked_sub(2)?, rank.checked_sub(1)?];
    let reach = call.along(call.input(0)?, &matrix);
    Some(vec![Value::new(reach, call.input(0)?.dims.clone()?)])
}

fn cast(call: &Call<'_>) -> Option<Vec<Value>> {
    /// Datatypes, as the standard numbers them, which hold whole numbers of some size; and truth values.
    const WHOLE: [i64; 4] = [1, 6, 7, 11];
    const BOOL: i64 = 9;
    let to = call.int("to", 0);
    if WHOLE.contains(&to) {
        let value = call.input(0)?.clone();
        let items = value.items.as_ref();
        let items = items.map(|items| items.iter().map(Item::or_opaque_if_large).collect());
        return Some(vec![value.with_items(items)]);
    }
    let mut outputs = same(call, false)?;
    let items = call.input(0)?.items.as_ref().filter(|_| to == BOOL);
    let flag = |item: &Item| match item {
        Item::Number(number) => Item::Number(i64::from(*number != 0)),
        Item::Size(_) | Item::Opaque => Item::Opaque,
    };
    if let (Some(output), Some(items)) = (outputs.first_mut(), items) {
        *output = output
            .clone()
            .with_items(Some(items.iter().map(flag).collect()));
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
