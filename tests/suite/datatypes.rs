//! Every datatype and every kind of shape goes through the server and comes back as it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use half::{bf16, f16};
use serde_json::{Value, json};
use testing::{Request, Server};

/// Sends `rows` (each of three elements) to an identity model in every form, and `raw` as bytes; all must come back.
fn round_trip(datatype: &str, protocol_name: &str, rows: &Value, raw: &[u8]) {
    let server = Server::fixture(&format!("identity_{datatype}"), &[]);
    for body in [json!({"inputs": {"x": rows}}), json!({"inputs": rows})] {
        let answer = server.predict(&body);
        assert_eq!(answer.status, 200, "{datatype}: {}", answer.text());
        assert_eq!(answer.json()["outputs"]["y"], *rows, "{datatype}");
    }
    let answer = server.predict(&json!({"instances": rows}));
    assert_eq!(answer.json()["predictions"], *rows, "{datatype}");
    let objects: Vec<Value> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| json!({"x": row}))
        .collect();
    assert_eq!(
        server.predict(&json!({"instances": objects})).json()["predictions"],
        *rows,
        "{datatype}"
    );

    let answer =
        server.request(&Request::raw("/predict", raw).header("Accept", "application/octet-stream"));
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/octet-stream")),
        "{datatype}"
    );
    assert_eq!(answer.body, raw, "{datatype}");
    assert_eq!(answer.header("x-tensor-datatype"), Some(protocol_name));
    let count = rows.as_array().unwrap().len();
    assert_eq!(
        answer.header("x-tensor-shape"),
        Some(format!("{count},3").as_str())
    );
    // The two forms can be mixed.
    assert_eq!(
        server.request(&Request::raw("/predict", raw)).json()["outputs"]["y"],
        *rows,
        "{datatype}"
    );
    let json_in = Request::json("/predict", json!({"inputs": rows}).to_string());
    assert_eq!(
        server
            .request(&json_in.header("Accept", "application/octet-stream"))
            .body,
        raw,
        "{datatype}"
    );
}

macro_rules! integers {
    ($($test:ident: $element:ty, $name:literal, $protocol:literal;)+) => {
        $(#[test]
        fn $test() {
            let values = [<$element>::MIN, <$element>::MAX, 0, 1, 100, <$element>::MAX / 2];
            let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            round_trip($name, $protocol, &json!([values[..3], values[3..]]), &raw);
        })+
    };
}
integers! {
    uint8_round_trips: u8, "uint8", "UINT8";
    uint16_round_trips: u16, "uint16", "UINT16";
    uint32_round_trips: u32, "uint32", "UINT32";
    uint64_round_trips: u64, "uint64", "UINT64";
    int8_round_trips: i8, "int8", "INT8";
    int16_round_trips: i16, "int16", "INT16";
    int32_round_trips: i32, "int32", "INT32";
    int64_round_trips: i64, "int64", "INT64";
}

#[test]
fn bool_round_trips() {
    round_trip(
        "bool",
        "BOOL",
        &json!([[true, false, true], [false, false, true]]),
        &[1, 0, 1, 0, 0, 1],
    );
}

#[test]
fn float64_round_trips() {
    let values = [f64::MIN, f64::MAX, f64::MIN_POSITIVE, -0.0, 0.1, 5e-324];
    let raw: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    round_trip("float64", "FP64", &json!([values[..3], values[3..]]), &raw);
}

/// Sends bits raw, reads the numbers as JSON, sends those, and expects the same bits: for types that JSON values here
/// cannot be compared in directly, because a shortest decimal of an f32 is not the shortest of the f64 near it.
fn float_bits_round_trip(datatype: &str, raw: &[u8]) {
    let server = Server::fixture(&format!("identity_{datatype}"), &[]);
    let text = server.request(&Request::raw("/predict", raw)).text();
    let start = text.find("\"y\":").unwrap() + 4;
    let numbers = &text[start..text.len() - 2];
    let body = format!("{{\"inputs\": {numbers}}}");
    let answer = server
        .request(&Request::json("/predict", body).header("Accept", "application/octet-stream"));
    assert_eq!(answer.status, 200, "{datatype}: {numbers}");
    assert_eq!(answer.body, raw, "{datatype}: {numbers}");
}

#[test]
fn float32_round_trips() {
    let values = [
        f32::MIN,
        f32::MAX,
        f32::MIN_POSITIVE,
        -0.0,
        0.1,
        1e-45,
        16_777_217.0,
        -3.402_823e38,
        7.0e-10,
    ];
    float_bits_round_trip(
        "float32",
        &values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>(),
    );
    round_trip(
        "float32",
        "FP32",
        &json!([[1.5, -2.25, 0.0]]),
        bytemuck::cast_slice(&[1.5_f32, -2.25, 0.0]),
    );
}

#[test]
fn half_precision_numbers_round_trip_and_are_rounded_to_the_nearest() {
    let values = [
        f16::MIN,
        f16::MAX,
        f16::MIN_POSITIVE_SUBNORMAL,
        f16::NEG_ZERO,
        f16::from_f32(0.1),
        f16::EPSILON,
    ];
    float_bits_round_trip("float16", bytemuck::cast_slice(&values));
    let values = [
        bf16::MIN,
        bf16::MAX,
        bf16::MIN_POSITIVE_SUBNORMAL,
        bf16::NEG_ZERO,
        bf16::from_f32(0.1),
        bf16::EPSILON,
    ];
    float_bits_round_trip("bfloat16", bytemuck::cast_slice(&values));
    for (datatype, expected) in [
        (
            "float16",
            [0.1, 2048.0, 1.0].map(f16::from_f32).map(f16::to_bits),
        ),
        (
            "bfloat16",
            [0.1, 2048.0, 1.0].map(bf16::from_f32).map(bf16::to_bits),
        ),
    ] {
        let server = Server::fixture(&format!("identity_{datatype}"), &[]);
        let body = Request::json("/predict", r#"{"inputs": [[0.1, 2049, 1]]}"#)
            .header("Accept", "application/octet-stream");
        assert_eq!(
            server.request(&body).body,
            bytemuck::cast_slice::<u16, u8>(&expected),
            "{datatype}"
        );
    }
    let server = Server::fixture("identity_float16", &[]);
    assert_eq!(
        server.predict(&json!({"inputs": [[65520, 0, 0]]})).status,
        400
    );
}

#[test]
fn strings_round_trip() {
    let strings = ["", "plain", "ä€😀", "\"quoted\"\n", "[1,2]", " "];
    let mut raw = Vec::new();
    for string in strings {
        raw.extend_from_slice(&u32::try_from(string.len()).unwrap().to_le_bytes());
        raw.extend_from_slice(string.as_bytes());
    }
    round_trip(
        "string",
        "BYTES",
        &json!([strings[..3], strings[3..]]),
        &raw,
    );
}

/// Serves the fixture `name` and checks outputs for the inputs given.
fn computes(name: &str, inputs: &Value, outputs: &Value) -> Server {
    let server = Server::fixture(name, &[]);
    let answer = server.predict(&json!({"inputs": inputs}));
    assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    assert_eq!(answer.json()["outputs"], *outputs, "{name}");
    server
}

fn floats(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Sends `values` raw and checks the raw answer of the output `y`.
fn computes_raw(
    server: &Server,
    shape: Option<&str>,
    values: &[f32],
    expected: &[f32],
    expected_shape: &str,
) {
    let mut request = Request::raw("/predict?outputs=y", floats(values))
        .header("Accept", "application/octet-stream");
    if let Some(shape) = shape {
        request = request.header("X-Tensor-Shape", shape);
    }
    let answer = server.request(&request);
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    assert_eq!(answer.body, floats(expected));
    assert_eq!(answer.header("x-tensor-shape"), Some(expected_shape));
}

#[test]
fn several_inputs_and_outputs() {
    let server = computes(
        "two",
        &json!({"b": [1, 2], "a": [[1, 2], [3, 4]]}),
        &json!({"sum": [[2.0, 3.0], [5.0, 6.0]], "twice": [2, 4]}),
    );
    let rows =
        server.predict(&json!({"instances": [{"a": [1, 2], "b": 1}, {"b": 2, "a": [3, 4]}]}));
    assert_eq!(
        rows.json()["predictions"],
        json!([{"sum": [2.0, 3.0], "twice": 2}, {"sum": [5.0, 6.0], "twice": 4}])
    );
    let one = server.predict(&json!({"inputs": {"b": [1], "a": [[1, 2]]}, "outputs": ["twice"]}));
    assert_eq!(one.json()["outputs"], json!({"twice": [2]}));
    let raw = server.request(&Request::raw("/predict", floats(&[1.0, 2.0])));
    assert_eq!(
        raw.status, 400,
        "a raw body is one tensor, and this model has two"
    );
    let rows = |b: &[i64]| server.predict(&json!({"inputs": {"b": b, "a": [[1, 2], [3, 4]]}}));
    let broadcast = rows(&[1]);
    assert_eq!(
        broadcast.json()["outputs"],
        json!({"sum": [[2.0, 3.0], [4.0, 5.0]], "twice": [2]}),
        "as ONNX Runtime does"
    );
    let refused = rows(&[1, 2, 3]);
    assert_eq!(
        refused.status,
        400,
        "inputs of different rows: {}",
        refused.text()
    );
}

#[test]
fn dynamic_dimensions_besides_the_batch_empty_ones_included() {
    let server = computes(
        "dyn",
        &json!({"x": [[1, 2, 3], [4, 5, 6]]}),
        &json!({"y": [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]], "total": [6.0, 15.0]}),
    );
    computes_raw(&server, Some("2,1"), &[1.0, 2.0], &[2.0, 4.0], "2,1");
    let ambiguous = server.request(&Request::raw("/predict", floats(&[1.0])));
    assert!(ambiguous.status == 400 && ambiguous.text().contains("X-Tensor-Shape"));
    let empty = server.predict(&json!({"inputs": {"x": [[], []]}}));
    assert_eq!(
        empty.json()["outputs"],
        json!({"y": [[], []], "total": [0.0, 0.0]})
    );
}

#[test]
fn a_fixed_batch_dimension_is_taken_as_it_is() {
    let server = computes(
        "fixed_batch",
        &json!({"x": [[1, 2, 3], [4, 5, 6]]}),
        &json!({"y": [[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]]}),
    );
    computes_raw(&server, None, &[1.0; 6], &[10.0; 6], "2,3");
    assert_eq!(
        server
            .predict(&json!({"inputs": {"x": [[1, 2, 3]]}}))
            .status,
        400
    );
    let rows = server.predict(&json!({"instances": [[1, 2, 3], [4, 5, 6]]}));
    assert_eq!(
        rows.json()["predictions"],
        json!([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    );
    let model = &server.get("/ready").json()["models"][0];
    assert!(
        model["not_batched_because"]
            .as_str()
            .unwrap()
            .contains("no dynamic first dimension")
    );
    let one = computes(
        "fixed_one",
        &json!({"x": [[1, -2, 3, 0.5]]}),
        &json!({"y": [[-1.0, 2.0, -3.0, -0.5]]}),
    );
    computes_raw(
        &one,
        None,
        &[1.0, 2.0, 3.0, 4.0],
        &[-1.0, -2.0, -3.0, -4.0],
        "1,4",
    );
}

#[test]
fn scalars_and_vectors() {
    let scalar = computes("scalar", &json!(3), &json!({"y": 9.0}));
    computes_raw(&scalar, None, &[1.5], &[2.25], "");
    assert_eq!(scalar.predict(&json!({"instances": [3]})).status, 400);
    let vector = computes("vector", &json!([1, 2, 3]), &json!({"y": [2.0, 3.0, 4.0]}));
    computes_raw(&vector, None, &[1.0, 2.0], &[2.0, 3.0], "2");
    assert_eq!(
        vector.predict(&json!({"instances": [5, 6]})).json()["predictions"],
        json!([6.0, 7.0])
    );
}

#[test]
fn inputs_and_outputs_without_a_batch_axis() {
    computes(
        "mixed_batch",
        &json!({"x": [[1, 2], [3, 4]], "scale": 2}),
        &json!({"y": [[2.0, 4.0], [6.0, 8.0]]}),
    );
    let reduce = computes(
        "reduce",
        &json!({"x": [[1, 2, 3], [4, 5, 6]]}),
        &json!({"mean": 3.5}),
    );
    let rows = reduce.predict(&json!({"instances": [[1, 2, 3], [4, 5, 6]]}));
    assert_eq!(
        (rows.status, &rows.json()["code"]),
        (422, &json!("unprocessable"))
    );
    let grow = computes(
        "rowgrow",
        &json!({"x": [[1, 2]]}),
        &json!({"y": [[1.0, 2.0], [1.0, 2.0]]}),
    );
    assert_eq!(grow.predict(&json!({"instances": [[1, 2]]})).status, 422);
}

#[test]
fn models_that_cannot_be_merged_answer_each_client_for_itself() {
    for (name, body, answer) in [
        (
            "reduce",
            json!({"inputs": {"x": [[1, 2, 3]]}}),
            json!({"mean": 2.0}),
        ),
        (
            "rowgrow",
            json!({"inputs": {"x": [[1, 2]]}}),
            json!({"y": [[1.0, 2.0], [1.0, 2.0]]}),
        ),
        (
            "mixed_batch",
            json!({"inputs": {"x": [[1, 2]], "scale": 3}}),
            json!({"y": [[3.0, 6.0]]}),
        ),
        (
            "fixed_one",
            json!({"inputs": {"x": [[1, 2, 3, 4]]}}),
            json!({"y": [[-1.0, -2.0, -3.0, -4.0]]}),
        ),
    ] {
        let server = Server::fixture(name, &[]);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let mut client = server.connect();
                    for _ in 0..50 {
                        let got = client
                            .send(&Request::json("/predict", body.to_string()))
                            .unwrap();
                        assert_eq!(got.json()["outputs"], answer, "{name}");
                    }
                });
            }
        });
    }
}

#[test]
fn images_optional_inputs_many_outputs_and_external_data() {
    let image = Server::fixture("image", &[]);
    let mut pixels = vec![1.0_f32; 50_176];
    pixels.extend(vec![2.0_f32; 50_176]);
    pixels.extend(vec![3.0_f32; 50_176]);
    let request =
        Request::raw("/predict", floats(&pixels)).header("Accept", "application/octet-stream");
    assert_eq!(image.request(&request).body, floats(&[1.0, 2.0, 3.0]));
    let plane = |value: f32| vec![vec![value; 224]; 224];
    let body = json!({"inputs": {"pixels": [[plane(1.0), plane(2.0), plane(3.0)]]}});
    assert_eq!(
        image.predict(&body).json()["outputs"]["mean"],
        json!([[1.0, 2.0, 3.0]])
    );

    computes(
        "optional",
        &json!({"x": [[1, 2]]}),
        &json!({"y": [[101.0, 202.0]]}),
    );
    let wide = computes(
        "wide",
        &json!({"x": [[1, 2, 3, 4]]}),
        &json!({"a": [[1.0, 2.0, 3.0, 4.0]], "b": [[2.0, 4.0, 6.0, 8.0]], "c": [[3.0, 6.0, 9.0, 12.0]]}),
    );
    let two = Request::raw("/predict?outputs=c,a", floats(&[1.0; 4]));
    assert_eq!(
        wide.request(&two).json()["outputs"],
        json!({"c": [[3.0, 3.0, 3.0, 3.0]], "a": [[1.0, 1.0, 1.0, 1.0]]})
    );
    assert_eq!(
        wide.request(&two.header("Accept", "application/octet-stream"))
            .status,
        400
    );
    computes(
        "external",
        &json!({"x": [[1, 2, 3, 4]]}),
        &json!({"y": [[3.0, 6.0, 9.0, 12.0]]}),
    );
}

#[test]
fn a_repository_serves_every_model_by_its_name_and_highest_version() {
    let root = tempfile::tempdir().unwrap();
    for (place, fixture) in [
        ("plus/1", "vector"),
        ("plus/2", "addone"),
        ("minus/7", "fixed_one"),
    ] {
        let folder = root.path().join(place);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(testing::fixture(fixture), folder.join("model.onnx")).unwrap();
    }
    std::fs::write(
        root.path().join("plus/2/model.toml"),
        "description = \"adds one\"\n[batching]\nmax_batch_size = 2\n",
    )
    .unwrap();
    let server = Server::start(&["--model", root.path().to_str().unwrap()]);
    let body = |rows: usize| {
        Request::json(
            "/v1/models/plus:predict",
            json!({"inputs": vec![[1, 2, 3, 4]; rows]}).to_string(),
        )
    };
    let answer = server.request(&body(2)).json();
    assert_eq!(
        (&answer["model_name"], &answer["model_version"]),
        (&json!("plus"), &json!("2"))
    );
    assert_eq!(answer["outputs"]["y"][1], json!([2.0, 3.0, 4.0, 5.0]));
    let sizes = |server: &Server| {
        let models = server.get("/ready").json()["models"].clone();
        let mut models = models.as_array().unwrap().iter();
        let plus = models.find(|model| model["name"] == "plus").unwrap();
        plus["max_batch_size"].clone()
    };
    assert_eq!(sizes(&server), json!(2), "the sidecar says so");
    assert_eq!(
        server.request(&body(3)).status,
        200,
        "what exceeds an execution is executed in parts"
    );
    let minus = server.request(&Request::json(
        "/v1/models/minus:predict",
        r#"{"inputs": [[1,2,3,4]]}"#,
    ));
    assert_eq!(minus.json()["model_version"], "7");
    assert_eq!(
        server.predict(&json!({"inputs": [[1, 2, 3, 4]]})).status,
        404,
        "which of the two is not said"
    );
    assert_eq!(
        server.get("/ready").json()["models"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let flag = Server::start(&[
        "--model",
        root.path().to_str().unwrap(),
        "--max-batch-size",
        "3",
    ]);
    assert_eq!(sizes(&flag), json!(3), "a flag wins over the sidecar");
}
