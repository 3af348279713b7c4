//! Graphs, written one node a line, and what is said of their rows.

use bytes::Bytes;

use super::*;
use crate::model::proto::{
    AttributeProto, DimensionProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
};

/// A node like `y = Operator(x, 1;2, [3 4]) axis=1 perm=1;0`: a name, whole numbers in a vector, `=5` for a scalar, or the
/// sizes of a weight.
fn node(line: &str, weights: &mut Vec<TensorProto>) -> NodeProto {
    let (outputs, call) = line.split_once(" = ").unwrap();
    let (operator, rest) = call.split_once('(').unwrap();
    let (inputs, attributes) = rest.split_once(')').unwrap();
    let inputs = inputs.split(", ").filter(|_| !inputs.is_empty());
    let (domain, op_type) = operator.rsplit_once(':').unwrap_or(("", operator));
    NodeProto {
        input: inputs.map(|text| input(text, weights)).collect(),
        output: outputs.split(", ").map(str::to_owned).collect(),
        op_type: op_type.to_owned(),
        domain: domain.to_owned(),
        attribute: attributes.split_whitespace().map(attribute).collect(),
        ..NodeProto::default()
    }
}

fn input(text: &str, weights: &mut Vec<TensorProto>) -> String {
    let numbers = |text: &str, separator: char| -> Vec<i64> {
        let numbers = text.split(separator).filter(|part| !part.is_empty());
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    let starts = |characters: &str| text.starts_with(|first| characters.contains(first));
    let (dims, items) = if starts("[") {
        (numbers(text.trim_matches(['[', ']']), ' '), Vec::new())
    } else if let Some(scalar) = text.strip_prefix('=') {
        (Vec::new(), numbers(scalar, ';'))
    } else if starts("-0123456789") {
        let items = numbers(text, ';');
        (vec![i64::try_from(items.len()).unwrap()], items)
    } else {
        return text.to_owned();
    };
    let name = format!("weight {}", weights.len());
    weights.push(TensorProto {
        name: name.clone(),
        dims,
        data_type: 7,
        int64_data: items,
        ..TensorProto::default()
    });
    name
}

fn attribute(text: &str) -> AttributeProto {
    let (name, value) = text.split_once('=').unwrap();
    let numbers: Result<Vec<i64>, _> = value
        .trim_end_matches(';')
        .split(';')
        .map(str::parse)
        .collect();
    let mut attribute = AttributeProto {
        name: name.to_owned(),
        ..AttributeProto::default()
    };
    match numbers {
        Ok(numbers) if value.contains(';') => attribute.ints = numbers,
        Ok(numbers) => attribute.i = numbers[0],
        Err(_) => attribute.s = Bytes::from(value.to_owned()),
    }
    attribute
}

fn value_info(name: &str, sizes: &[&str]) -> ValueInfoProto {
    let dim = |size: &&str| DimensionProto {
        dim_value: size.parse().ok(),
        dim_param: size.parse::<i64>().is_err().then(|| (*size).to_owned()),
    };
    let shape = TensorShapeProto {
        dim: sizes.iter().map(dim).collect(),
    };
    let tensor_type = Some(TensorTypeProto { shape: Some(shape) });
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { tensor_type }),
    }
}

fn graph(lines: &[&str], inputs: Vec<ValueInfoProto>, outputs: &[&str]) -> GraphProto {
    let mut weights = Vec::new();
    GraphProto {
        node: lines.iter().map(|line| node(line, &mut weights)).collect(),
        initializer: weights,
        input: inputs,
        output: outputs.iter().map(|name| value_info(name, &[])).collect(),
        ..GraphProto::default()
    }
}

fn rows_of(graph: &GraphProto) -> Vec<Rows> {
    let opsets = [OperatorSetIdProto {
        domain: String::new(),
        version: 18,
    }];
    let known = crate::model::onnx::known(graph);
    of_outputs(graph, &opsets, &known)
}

/// What is said of the rows of `y`, where `x` is of the sizes `N, T, 12`, `z` of `N, 12` and `ids` of `N, T`.
fn rows(lines: &[&str]) -> Rows {
    let inputs = vec![
        value_info("x", &["N", "T", "12"]),
        value_info("z", &["N", "12"]),
        value_info("ids", &["N", "T"]),
    ];
    rows_of(&graph(lines, inputs, &["y"])).remove(0)
}

/// Graphs whose rows do not meet.
const APART: &[&[&str]] = &[
    // Attention with heads, its sizes computed as exporters do.
    &[
        "s = Shape(x)",
        "n = Gather(s, =0)",
        "t = Gather(s, =1)",
        "n1 = Unsqueeze(n, 0)",
        "t1 = Unsqueeze(t, 0)",
        "to = Concat(n1, t1, 3, 4) axis=0",
        "q = MatMul(x, [12 12])",
        "q4 = Reshape(q, to)",
        "qh = Transpose(q4) perm=0;2;1;3",
        "kh = Transpose(q4) perm=0;2;3;1",
        "p = MatMul(qh, kh)",
        "m = Unsqueeze(ids, 1;2)",
        "mf = Cast(m) to=1",
        "pm = Add(p, mf)",
        "a = Softmax(pm) axis=-1",
        "c = MatMul(a, qh)",
        "ct = Transpose(c) perm=0;2;1;3",
        "back = Concat(n1, t1, 12) axis=0",
        "cb = Reshape(ct, back)",
        "r = Add(cb, x)",
        "l = LayerNormalization(r, [12], [12]) axis=-1",
        "f = Gather(l, =0) axis=1",
        "y = Gemm(f, [12 2], [2])",
    ],
    // Heads folded into the batch, as some implementations do.
    &[
        "s = Shape(x)",
        "t = Slice(s, 1, 2)",
        "to = Concat(0, t, 3, 4) axis=0",
        "h = Reshape(x, to)",
        "p = Transpose(h) perm=0;2;1;3",
        "flat = Concat(-1, t, 4) axis=0",
        "f = Reshape(p, flat)",
        "g = Transpose(f) perm=0;2;1",
        "w = MatMul(f, g)",
        "a = Softmax(w) axis=-1",
        "o = MatMul(a, f)",
        "n = Slice(s, 0, 1)",
        "four = Concat(n, 3, t, 4) axis=0",
        "b = Reshape(o, four)",
        "y = ReduceMean(b, 2;3) keepdims=0",
    ],
    // Steps of all rows in one matrix, and apart again.
    &[
        "f = Reshape(x, -1;12)",
        "m = MatMul(f, [12 5])",
        "s = Shape(x)",
        "nt = Slice(s, 0, 2)",
        "to = Concat(nt, 5) axis=0",
        "y = Reshape(m, to)",
    ],
    &[
        "t = Transpose(x) perm=1;0;2",
        "h, last = LSTM(t, [1 32 12], [1 32 8]) hidden_size=8",
        "y = Squeeze(last, 0)",
    ],
    &[
        "c = Reshape(z, 0;3;2;2)",
        "v = Conv(c, [8 3 3 3]) pads=1;1;1;1",
        "b = BatchNormalization(v, [8], [8], [8], [8])",
        "g = GlobalAveragePool(b)",
        "f = Flatten(g)",
        "y = Gemm(f, [4 8]) transB=1",
    ],
    &[
        "e = Gather([100 12], ids)",
        "s = ReduceSum(e, 1) keepdims=0",
        "y = Div(s, =3)",
    ],
    &["y, p = ai.onnx.ml:TreeEnsembleClassifier(z)"],
    &[
        "k, i = TopK(z, 1)",
        "l = ai.onnx.ml:ArrayFeatureExtractor([12], i)",
        "y = Reshape(l, -1)",
    ],
    &["y = Einsum(x, z) equation=ntd,nd->nt"],
    // Twice the batch, as guidance of diffusion models does, and the halves again.
    &[
        "t = Concat(z, z) axis=0",
        "r = Relu(t)",
        "a, b = Split(r) axis=0",
        "y = Sub(a, b)",
    ],
    &["s = Shape(x)", "y = Expand([1 1 12], s)"],
    &["y = StringNormalizer(z) case_change_action=LOWER"],
    // Each row at a place that its own values name, as classifiers take the last word.
    &[
        "s = Shape(x)",
        "n = Gather(s, =0)",
        "r = Range(=0, n, =1)",
        "own = Unsqueeze(r, -1)",
        "i = ArgMax(ids) axis=1 keepdims=0",
        "at = Unsqueeze(i, -1)",
        "a = Concat(own, at) axis=-1",
        "y = GatherND(x, a)",
    ],
    &[
        "s = Shape(z)",
        "n = Gather(s, =0)",
        "r = Range(=0, n, =1)",
        "y = Gather(z, r)",
    ],
    // The second half of twice the batch.
    &[
        "s = Shape(z)",
        "n = Slice(s, 0, 1)",
        "t = Concat(z, z) axis=0",
        "y = Slice(t, n, 9223372036854775807)",
    ],
    // Twice a batch of which each row has three lines.
    &[
        "f = Reshape(z, -1;4)",
        "t = Concat(f, f) axis=0",
        "a, b = Split(t) axis=0",
        "y = Reshape(b, -1;12)",
    ],
    &["y = Slice(z, 0;0, 1000000000;3)"],
    &[
        "a = Trilu(x)",
        "b = CumSum(a, =1)",
        "y = ReduceMax(b, -1) keepdims=1",
    ],
];

#[test]
fn usual_networks_keep_rows_apart() {
    for lines in APART {
        assert_eq!(rows(lines), Rows::Apart, "{lines:?}");
    }
}

/// Graphs whose rows meet.
const TOGETHER: &[&[&str]] = &[
    &["a = ReduceMean(z, 0) keepdims=1", "y = Sub(z, a)"],
    // Counts only where a value is beyond what anybody tries.
    &[
        "a = ReduceMax(z)",
        "c = Greater(a, =1000000)",
        "b = CumSum(z, =0)",
        "y = Where(c, b, z)",
    ],
    &["y = CumSum(z, =0)"],
    &["a = Transpose(z)", "b = CumSum(a, =1)", "y = Transpose(b)"],
    &[
        "f = Reshape(z, -1)",
        "c = CumSum(f, =0)",
        "y = Reshape(c, -1;12)",
    ],
    &["y = Softmax(z) axis=0"],
    &["t = Transpose(z)", "y = MatMul(z, t)"],
    &["t = Transpose(z)", "p = MatMul(t, z)", "y = MatMul(z, p)"],
    &["y = Einsum(z, z) equation=nd,md->nm"],
    // Ids may address rows.
    &["f = Reshape(ids, -1)", "y = Gather(z, f)"],
    &["y = GatherND(z, ids)"],
    &["y = ScatterND(z, ids, z)"],
    &["y = GatherElements(z, ids)"],
    &["y = Gather(z, 0)"],
    // A partition brings others' rows to the front.
    &[
        "m = ReduceMax(z, 1) keepdims=0",
        "b = Greater(m, =100000)",
        "o = Not(b)",
        "p = Compress(z, b) axis=0",
        "q = Compress(z, o) axis=0",
        "y = Concat(p, q) axis=0",
    ],
    &["n = NonZero(ids)", "t = Transpose(n)", "y = GatherND(x, t)"],
    &["v = Unique(z) axis=0", "y = Relu(v)"],
    &[
        "q, s, p = DynamicQuantizeLinear(z)",
        "y = DequantizeLinear(q, s, p)",
    ],
    &["y = BatchNormalization(z, [12], [12], [12], [12]) training_mode=1"],
    &["y = LSTM(x, [1 32 12], [1 32 8]) hidden_size=8"],
    &[
        "a = Slice(z, 1, 1000000000)",
        "b = Slice(z, 0, 1)",
        "y = Concat(a, b) axis=0",
    ],
    &["y = Pad(z, 1;0;0;0)"],
    &["y = StringNormalizer(z) stopwords=monday"],
    // Fewer indices than rows: each is the first ones'.
    &["y = GatherElements(z, [1 12]) axis=1"],
    &["y = GatherND(z, [1 96 1]) batch_dims=1"],
    // A part that begins in the middle of a batch.
    &[
        "t = Concat(z, z) axis=0",
        "s = Shape(z)",
        "n = Slice(s, 0, 1)",
        "m = Sub(n, 1)",
        "sizes = Concat(1, n, m) axis=0",
        "a, y, c = Split(t, sizes) axis=0",
    ],
    // No more than there is.
    &[
        "t = Concat(z, z) axis=0",
        "s = Shape(z)",
        "n = Slice(s, 0, 1)",
        "f = Mul(n, 4)",
        "u = Slice(t, 0, f)",
        "to = Concat(4, n, 12) axis=0",
        "v = Reshape(u, to)",
        "y = Transpose(v) perm=1;0;2;",
    ],
    // Written to the first half of twice as many.
    &[
        "s = Shape(z)",
        "n = Slice(s, 0, 1)",
        "m = Mul(n, 2)",
        "to = Concat(m, 12) axis=0",
        "e = ConstantOfShape(to)",
        "i = Expand(0;0;0;0;0;0;0;0;0;0;0;0, s)",
        "w = ScatterElements(e, i, z) axis=1",
        "y = Reshape(w, 0;24)",
    ],
    &[
        "f = ReduceSum(z, 1) keepdims=0",
        "y = ai.onnx.ml:FeatureVectorizer(f)",
    ],
    &[
        "f = ReduceSum(z, 1) keepdims=0",
        "y = ai.onnx.ml:LinearRegressor(f)",
    ],
    &[
        "u = Unique(z) axis=1",
        "s = Shape(u)",
        "w = Gather(s, =1)",
        "y = Add(z, w)",
    ],
    // Once row after row, and once each row twice.
    &[
        "t = Concat(z, z) axis=0",
        "c = Concat(z, z) axis=1",
        "u = Reshape(c, -1;12)",
        "y = Sub(t, u)",
    ],
    &[
        "t = Transpose(z) perm=1;0;",
        "y = Resize(t, , , 24;0) axes=0;1;",
    ],
    &["y = Resize(z, , , 6;12) keep_aspect_ratio_policy=not_smaller"],
    &["f = Reshape(z, 12;-1)", "y = ReduceMax(f, 1)"],
    &["c = Reshape(z, 0;3;2;2)", "y = Conv(c, c)"],
    &["y = ReduceSum(x, 1;1;0) keepdims=0"],
    // In another order than ONNX Runtime computes them.
    &["y = Add(z, k)", "k = CumSum(z, =0)"],
    // How many rows there are is nobody's business, nor which one a request got.
    &[
        "s = Shape(z)",
        "n = Gather(s, =0)",
        "four = Equal(n, =4)",
        "y = Where(four, z, =1)",
    ],
    &[
        "s = Shape(z)",
        "n = Gather(s, =0)",
        "r = Range(=0, n, =1)",
        "u = Unsqueeze(r, 1)",
        "y = Add(z, u)",
    ],
    &["y = com.microsoft:SkipLayerNormalization(x, z, [12])"],
    &[
        "n, m, v = BatchNormalization(x, [9], [9], [9], [9]) training_mode=1",
        "y = Relu(m)",
    ],
    &["y = com.microsoft:EmbedLayerNormalization([1 4], , z)"],
    &[
        "y, w = MaxPool(x) kernel_shape=1;",
        "y2 = Relu(w)",
        "y = Add(y2, x)",
    ],
    // One size for all rows.
    &["m = ReduceMax(ids, 1) keepdims=0", "y = Expand(z, m)"],
    &["u = Unsqueeze(z, 0)", "y = Mul(u, x)"],
];

#[test]
fn whatever_runs_along_the_batch_puts_rows_together_however_it_is_hidden() {
    for lines in TOGETHER {
        let said = rows(lines);
        assert!(matches!(said, Rows::Mixed(_)), "{lines:?}: {said:?}");
    }
}

#[test]
fn what_is_not_followed_is_not_called_apart() {
    for lines in [
        &["y = com.example:Anything(z)"][..],
        &["a = com.example:Anything(z)", "y = Relu(a)"],
        &["y = Reshape(x, 12;-1)"],
        &["i = ConstantOfShape(2;1)", "y = ScatterND(z, i, z)"],
    ] {
        assert_eq!(rows(lines), Rows::Unknown, "{lines:?}");
    }
    // What comes to one place is a doubt even where the way there was not followed.
    let said = rows(&["a = com.example:Anything(z)", "y = ReduceMax(a)"]);
    assert!(matches!(said, Rows::Mixed(_)), "{said:?}");
}

/// `node` with graphs inside.
fn with_graph(mut node: NodeProto, name: &str, graph: GraphProto) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        g: Some(graph),
        ..AttributeProto::default()
    });
    node
}

#[test]
fn a_branch_or_a_loop_that_values_decide_puts_rows_together() {
    let inner = |lines: &[&str], outputs: &[&str]| graph(lines, Vec::new(), outputs);
    let branch = |condition: &str| {
        let mut outer = graph(
            &[
                "s = Shape(x)",
                "t = Gather(s, =1)",
                "few = Less(t, =2)",
                "wide = Gather(s, =2)",
                "twelve = Equal(wide, =12)",
                "n = Gather(s, =0)",
                "alone = Less(n, =2)",
                "big = Greater(z, =9)",
                "any = ReduceMax(big)",
            ],
            vec![
                value_info("z", &["N", "12"]),
                value_info("x", &["N", "T", "12"]),
            ],
            &["y"],
        );
        let mut weights = Vec::new();
        let node = node(&format!("y = If({condition})"), &mut weights);
        let node = with_graph(node, "then_branch", inner(&["a = Relu(z)"], &["a"]));
        outer.node.push(with_graph(
            node,
            "else_branch",
            inner(&["b = Neg(z)"], &["b"]),
        ));
        rows_of(&outer).remove(0)
    };
    assert_eq!(branch("few"), Rows::Apart);
    assert_eq!(branch("twelve"), Rows::Apart);
    assert!(matches!(branch("any"), Rows::Mixed(_)));
    assert!(matches!(branch("alone"), Rows::Mixed(_)));

    let repeated = |lines: &[&str], count: &str| {
        let mut outer = graph(
            &["c = ReduceMax(z)"],
            vec![value_info("z", &["N", "12"])],
            &["y"],
        );
        let body = graph(
            lines,
            vec![
                value_info("i", &[]),
                value_info("go", &[]),
                value_info("state", &[]),
            ],
            &["again", "next"],
        );
        let node = node(&format!("y = Loop({count}, , z)"), &mut outer.initializer);
        outer.node.push(with_graph(node, "body", body));
        rows_of(&outer).remove(0)
    };
    assert_eq!(
        repeated(&["again = Identity(go)", "next = Add(state, z)"], "=4"),
        Rows::Apart
    );
    let sums = ["again = Identity(go)", "next = CumSum(state, =0)"];
    assert!(matches!(repeated(&sums, "=4"), Rows::Mixed(_)));
    let until = [
        "big = ReduceMax(state)",
        "again = Less(big, =9)",
        "next = Add(state, z)",
    ];
    assert!(matches!(repeated(&until, "=4"), Rows::Mixed(_)));
    let steps = ["again = Identity(go)", "next = Add(state, z)"];
    assert!(matches!(repeated(&steps, "c"), Rows::Mixed(_)));
}

#[test]
fn graphs_without_sense_are_walked_to_their_end() {
    for line in [
        "y = Reshape(x, -1;-1;0;0;7)",
        "y = Reshape(x)",
        "y = Transpose(x) perm=0;0;9",
        "y = Transpose(x) perm=0;",
        "y = Concat()",
        "y = Split(x) axis=-9",
        "y = Slice(x, 9223372036854775807, -9223372036854775808, -1, -9223372036854775808)",
        "y = Pad(z, 9223372036854775807;9223372036854775807;0;9223372036854775807)",
        "y = Conv(x, [1])",
        "y = Conv(x, [4 3 0]) strides=0; dilations=-9223372036854775808;",
        "y = MaxPool(x) kernel_shape=-9223372036854775808; strides=-1;",
        "y = Einsum(x) equation=->",
        "y = Gather(x, ids) axis=-9223372036854775808",
        "y = GatherND(x, [0]) batch_dims=9223372036854775807",
        "y = Tile(x, 9223372036854775807;9223372036854775807;2)",
        "y = DepthToSpace(x) blocksize=0",
        "y = OneHot(x, -3) axis=9",
        "y = TopK(x, -3)",
        "y = Flatten(x) axis=99",
        "y = LSTM(x, [1], [1]) hidden_size=-1",
        "y = ConstantOfShape(9223372036854775807;9223372036854775807)",
        "y = Range(=0, =9223372036854775807, =1)",
        "y = Loop()",
        "y = Scan() num_scan_inputs=99",
        "y = If()",
        "y = ReduceSum(x, 9)",
        "y = Shape(x) start=-9223372036854775808 end=9223372036854775807",
        "y = ai.onnx.ml:ArrayFeatureExtractor(x, x)",
        "y = Transpose([0 4611686018427387904])",
        "y = Slice([4611686018427387904 0], 0, 4611686018427387904)",
        "t = Transpose(x) perm=1;2;0;|g = GatherElements(t, [1 1])|y = Gemm(g, [3 3]) transA=1",
    ] {
        rows(&line.split('|').collect::<Vec<_>>());
    }
    // What doubles with each step stays small.
    for step in [
        "Gather(a, a)",
        "GatherND(a, a)",
        "Concat(a, a) axis=0",
        "Unsqueeze(a, 0;1;2;3;4;5;6;7)",
    ] {
        let mut lines = vec!["a = Identity(0;1;2)".to_owned()];
        lines.extend((0..60).map(|_| format!("a = {step}")));
        lines.push("y = Relu(a)".to_owned());
        rows(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let equation = format!("y = Einsum(x) equation={}", "ab".repeat(100_000));
    rows(&[&equation]);
}

#[test]
fn elements_are_computed_as_all_datatypes_do_or_not_at_all() {
    // Each is the axis 0 in truth, or may be.
    for axis in [
        &["a = CastLike(-2, -2)"][..],
        &["m = Max(0, 0, 1)", "a = Sub(1, m)"],
        &["c = Cast(257) to=2", "a = Sub(c, 1)"],
        &["c = Cast(16777217) to=1", "a = Sub(c, 16777216)"],
        &["m = Mul(65537, 65537)", "a = Sub(m, 4295098368)"],
        &["a = ReduceL1(-1) noop_with_empty_axes=1"],
    ] {
        let mut lines = axis.to_vec();
        lines.push("y = CumSum(z, a)");
        // What is not known may be the batch.
        let said = rows(&lines);
        assert!(matches!(said, Rows::Mixed(_)), "{axis:?}: {said:?}");
    }
}
