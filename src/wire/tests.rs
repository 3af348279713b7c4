//! The wire formats as a whole: bodies in, answers out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::inference::InferenceRequest;
use crate::model::testing;
use crate::tensor::{TensorData, TensorView};

const LIMITS: DecodeLimits = DecodeLimits {
    max_rows: 4,
    max_json_depth: 8,
};

/// Decodes `body`, and holds its tensors against the signature, as every edge does.
fn decode_and_check(
    body: Bytes,
    format: BodyFormat,
    shape: Option<&str>,
    metadata: &ModelMetadata,
) -> Result<Decoded, DecodeError> {
    let mut reservation = Reservation::none();
    let decoded = decode(body, format, shape, metadata, LIMITS, &mut reservation)?;
    let deadline = Instant::now() + Duration::from_secs(1);
    let (inputs, max_rows) = (decoded.inputs.clone(), LIMITS.max_rows);
    InferenceRequest::new(metadata, inputs, max_rows, deadline, reservation)?;
    Ok(decoded)
}

fn decode_with(
    metadata: &ModelMetadata,
    body: &str,
    format: BodyFormat,
) -> Result<Decoded, String> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    decode_and_check(body, format, None, metadata).map_err(|error| match error {
        DecodeError::Invalid(error) => error.0,
        DecodeError::OutOfMemory(_) => "out of memory".to_owned(),
    })
}

fn one() -> ModelMetadata {
    testing::metadata(&[("x", &["N", "2"])], &[("y", &["N", "2"]), ("z", &["N"])])
}

fn two() -> ModelMetadata {
    testing::metadata(&[("a", &["N", "L"]), ("b", &["N"])], &[("y", &["N"])])
}

fn first(decoded: &Decoded) -> (Vec<usize>, Vec<f32>) {
    let tensor = &decoded.inputs[0];
    match tensor.view() {
        TensorView::Fp32(values) => (tensor.shape().to_vec(), values.to_vec()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn columns_and_rows_give_the_same_tensors() {
    let expected = (vec![2, 2], vec![1.0, 2.5, -3.0, 4e2]);
    for body in [
        r#"{"inputs": {"x": [[1, 2.5], [-3, 4e2]]}}"#,
        r#"{"inputs": [[1, 2.5], [-3, 4e2]]}"#,
        r#"{"instances": [[1, 2.5], [-3, 4e2]]}"#,
        r#" { "instances" : [ { "x" : [ 1 , 2.5 ] } , [ -3 , 4e2 ] ] } "#,
        r#"{"outputs": ["z"], "inputs": {"\u0078": [[1, 2.5], [-3, 4e2]]}}"#,
    ] {
        assert_eq!(
            first(&decode_with(&one(), body, BodyFormat::Json).unwrap()),
            expected,
            "{body}"
        );
    }
    let body = r#"{"instances": [{"a": [1, 2, 3], "b": 4}, {"b": 7, "a": [5, 6, 0]}]}"#;
    let decoded = decode_with(&two(), body, BodyFormat::Json).unwrap();
    assert_eq!(
        first(&decoded),
        (vec![2, 3], vec![1.0, 2.0, 3.0, 5.0, 6.0, 0.0])
    );
    assert_eq!(decoded.form, Form::Rows(2));
    assert_eq!(decoded.inputs[1].view(), TensorView::Fp32(&[4.0, 7.0]));
}

#[test]
fn scalars_vectors_and_empty_tensors_have_their_place() {
    let scalar = testing::metadata(&[("x", &[])], &[("y", &[])]);
    assert_eq!(
        first(&decode_with(&scalar, r#"{"inputs": 7}"#, BodyFormat::Json).unwrap()),
        (vec![], vec![7.0])
    );
    let vector = testing::metadata(&[("x", &["N"])], &[("y", &["N"])]);
    let decoded = decode_with(&vector, r#"{"instances": [1, 2, 3]}"#, BodyFormat::Json).unwrap();
    assert_eq!(first(&decoded), (vec![3], vec![1.0, 2.0, 3.0]));
    let empty = testing::metadata(&[("x", &["N", "L", "3"])], &[("y", &["N"])]);
    let decoded = decode_with(&empty, r#"{"inputs": [[], []]}"#, BodyFormat::Json).unwrap();
    assert_eq!(first(&decoded), (vec![2, 0, 3], vec![]));
}

#[test]
fn wrong_bodies_are_told_what_is_wrong() {
    for (body, part) in [
        (
            "",
            "the body is empty; send {\"inputs\": {\"x\": FP32[N,2]}}",
        ),
        ("[]", "expected an object, got an array; send {\"inputs\""),
        ("{}", "missing 'inputs'"),
        ("{\"inputs\": {}}", "missing input 'x'"),
        (
            r#"{"inputs": {"q": [[1,2]]}}"#,
            "unknown input 'q'; the model has x FP32[N,2]",
        ),
        (
            r#"{"inputs": {"x": [[1,2]], "x": [[1,2]]}}"#,
            "duplicate input 'x'",
        ),
        (
            r#"{"inputs": [[1,2]], "instances": [[1,2]]}"#,
            "once; got a second",
        ),
        (
            r#"{"inputs": [[1,2]], "shape": [1,2]}"#,
            "unknown key 'shape'",
        ),
        (r#"{"inputs": [[1,2]]} x"#, "expected the end of the body"),
        (
            r#"{"inputs": [[1,2,3]]}"#,
            "2 elements in dimension 1; got more",
        ),
        (r#"{"inputs": [[1]]}"#, "2 elements in dimension 1; got 1"),
        (
            r#"{"inputs": [1, 2]}"#,
            "an array at depth 1, got a number; one row is an array in an array",
        ),
        (
            r#"{"inputs": [[[1, 2]]]}"#,
            "expects a number (FP32), got an array; its shape is [N,2]",
        ),
        (r#"{"inputs": [[1, null]]}"#, "got 'null'"),
        (r#"{"inputs": [[1, "2"]]}"#, "got a string"),
        (r#"{"inputs": [[1, NaN]]}"#, "got 'NaN'"),
        (r#"{"inputs": [[1, 1e39]]}"#, "does not fit"),
        (
            r#"{"inputs": [[1,2],[1,2],[1,2],[1,2],[1,2]]}"#,
            "more than 4 rows",
        ),
        (
            r#"{"instances": [[1,2],[1,2],[1,2],[1,2],[1,2]]}"#,
            "more than 4 rows",
        ),
        (r#"{"inputs": []}"#, "no rows"),
        (r#"{"instances": []}"#, "no rows"),
        (
            r#"{"inputs": [[1,2]], "outputs": ["q"]}"#,
            "unknown output 'q'",
        ),
        (
            r#"{"inputs": [[1,2]], "outputs": ["y", "y"]}"#,
            "duplicate output",
        ),
        (
            r#"{"inputs": [[1,2]], "outputs": []}"#,
            "'outputs' is empty",
        ),
        (r#"{"inputs": [[1,2],]}"#, "got ']'"),
        (r#"{"inputs": [[1 2]]}"#, "expected ',' or ']'"),
        ("\u{feff}{}", "expected an object"),
    ] {
        let error = decode_with(&one(), body, BodyFormat::Json).unwrap_err();
        assert!(error.contains(part), "{body}: {error}");
    }
    let ragged = r#"{"inputs": {"a": [[1, 2], [3]], "b": [1, 2]}}"#;
    assert!(
        decode_with(&two(), ragged, BodyFormat::Json)
            .unwrap_err()
            .contains("like the arrays before it; got 1")
    );
    let missing = r#"{"instances": [{"a": [1], "b": 1}, {"a": [1]}]}"#;
    assert!(
        decode_with(&two(), missing, BodyFormat::Json)
            .unwrap_err()
            .contains("missing input 'b' in instance 1")
    );
}

#[test]
fn only_what_is_no_json_is_called_invalid_json() {
    let told = |metadata: &ModelMetadata, body: &str| {
        decode_with(metadata, body, BodyFormat::Json).unwrap_err()
    };
    for body in [
        "",
        "{",
        "{x: 1}",
        "{'inputs': [[1,2]]}",
        r#"{"inputs": [[1,2]"#,
        r#"{"inputs": [[1,2]]"#,
        r#"{"inputs": [[1,2]]}}"#,
        r#"{"inputs": [[1,+2]]}"#,
        r#"{"inputs": [[1,.5]]}"#,
        r#"{"inputs": [[1,-]]}"#,
        r#"{"inputs": [[1,02]]}"#,
        r#"{"inputs": [[1,NaN]]}"#,
        r#"{"inputs": [[1,-Infinity]]}"#,
        r#"{"inputs": [[1,None]]}"#,
        r#"{"inputs": [[1,2],]}"#,
        r#"{"inputs": [[1,2]], "outputs": [y]}"#,
    ] {
        assert!(
            serde_json::from_str::<serde_json::Value>(body).is_err(),
            "{body}"
        );
        let told = told(&one(), body);
        assert!(told.starts_with("invalid JSON"), "{body}: {told}");
    }
    for body in [
        "[]",
        "7",
        "\"text\"",
        "null",
        "{}",
        r#"{"x": [[1,2]]}"#,
        r#"{"inputs": {}}"#,
        r#"{"inputs": null}"#,
        r#"{"inputs": 3}"#,
        r#"{"inputs": [[1,true]]}"#,
        r#"{"inputs": [[1,"2"]]}"#,
        r#"{"inputs": [[1,[2]]]}"#,
        r#"{"inputs": [1,2]}"#,
        r#"{"inputs": [[1,2,3]]}"#,
        r#"{"inputs": [[1,1e99]]}"#,
        r#"{"inputs": [{"name": "x", "shape": [1,2], "data": [1,2]}]}"#,
        r#"{"inputs": [[1,2]], "outputs": "y"}"#,
        r#"{"inputs": [[1,2]], "outputs": [1]}"#,
        r#"{"instances": {"x": [1,2]}}"#,
        r#"{"instances": [{"q": [1,2]}]}"#,
        r#"{"inputs": [[[[[[[[[[1]]]]]]]]]]}"#,
    ] {
        assert!(
            serde_json::from_str::<serde_json::Value>(body).is_ok(),
            "{body}"
        );
        let told = told(&one(), body);
        assert!(!told.contains("invalid JSON"), "{body}: {told}");
    }
}

#[test]
fn whoever_makes_a_usual_mistake_is_told_the_fix() {
    let both = "a FP32[N,L], b FP32[N]";
    for (body, parts) in [
        (
            r#"{"inputs": [[1,2]]}"#,
            ["'inputs' is to be an object, got an array", both],
        ),
        (r#"{"inputs": {}}"#, ["missing input 'a'", both]),
        (r#"{"inputs": {"a": [[1]]}}"#, ["missing input 'b'", both]),
        (r#"{"inputs": {"c": [[1]]}}"#, ["unknown input 'c'", both]),
        (
            r#"{"a": [[1]], "b": [1]}"#,
            ["input 'a' is outside 'inputs'", "\"b\": FP32[N]"],
        ),
        (
            r#"{"instances": [[1]]}"#,
            ["instance 0 is to be an object", both],
        ),
        (
            r#"{"instances": [{"a": [1], "b": 1}, {"A": [1]}]}"#,
            ["unknown input 'A' in instance 1", both],
        ),
        (
            r#"{"instances": [{"a": [1]}]}"#,
            ["missing input 'b' in instance 0", both],
        ),
        (
            r#"{"inputs": {"a": [["1"]], "b": [1]}}"#,
            ["got a string", "without quotes"],
        ),
        (
            r#"{"inputs": {"a": [[NaN]], "b": [1]}}"#,
            ["got 'NaN'", "a raw tensor has"],
        ),
        (
            r#"{"inputs": {"a": [[True]], "b": [1]}}"#,
            ["got 'True'", "true, false and null"],
        ),
        (
            r#"{"inputs": {"a": [{"data": [1]}]}}"#,
            ["got an object", "nested arrays by input name"],
        ),
    ] {
        let told = decode_with(&two(), body, BodyFormat::Json).unwrap_err();
        for part in parts {
            assert!(told.contains(part), "{body}: {told}");
        }
    }
    let told = decode_with(&two(), "1234", BodyFormat::Raw).unwrap_err();
    assert!(
        told.contains("the model has 2 inputs: a FP32[N,L], b FP32[N]; send JSON"),
        "{told}"
    );
}

#[test]
fn long_lists_in_messages_are_cut_with_the_number_of_the_others() {
    let names: Vec<String> = (0..100).map(|number| format!("input_{number}")).collect();
    let inputs: Vec<(&str, &[&str])> = names
        .iter()
        .map(|name| (name.as_str(), ["N"].as_slice()))
        .collect();
    let many = testing::metadata(&inputs, &[("y", &["N"])]);
    let told = decode_with(&many, r#"{"inputs": [1]}"#, BodyFormat::Json).unwrap_err();
    assert!(told.len() < 400, "{told}");
    assert!(
        told.contains("input_0 FP32[N]") && told.contains(" more"),
        "{told}"
    );
}

#[test]
fn depth_costs_nothing_and_ends_in_an_error() {
    for depth in [100, 250_000] {
        for body in [
            "[".repeat(depth),
            format!("{{\"inputs\": {}", "[".repeat(depth)),
            "{\"inputs\":".repeat(depth),
        ] {
            assert!(decode_with(&one(), &body, BodyFormat::Json).is_err());
        }
    }
}

#[test]
fn raw_bodies_tell_their_rows() {
    let decode = |body: &[u8], shape| {
        let body = Bytes::copy_from_slice(body);
        decode_and_check(body, BodyFormat::Raw, shape, &one())
    };
    let bytes: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let decoded = decode(&bytes, None).unwrap();
    assert_eq!(first(&decoded), (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]));
    assert!(decode(&bytes, Some("2, 2")).is_ok());
    for (body, shape) in [
        (&bytes[..7], None),
        (&bytes[..12], None),
        (&bytes[..0], None),
        (&bytes[..], Some("4,1")),
        (&bytes[..], Some("2")),
        (&bytes[..], Some("-2,-2")),
        (&bytes[..], Some("18446744073709551615,2")),
    ] {
        assert!(
            matches!(decode(body, shape), Err(DecodeError::Invalid(_))),
            "{shape:?}"
        );
    }
}

fn answer(values: Vec<f32>) -> Vec<Tensor> {
    let rows = values.len() / 2;
    let z: Vec<i64> = (0..).take(rows).collect();
    let output = |shape: &[usize], data: TensorData| {
        Tensor::shared(Shape::from_slice(shape), Arc::new(data)).unwrap()
    };
    vec![output(&[rows, 2], values.into()), output(&[rows], z.into())]
}

fn encode(
    values: &[f32],
    selection: Option<&[usize]>,
    form: Form,
    max_bytes: usize,
) -> Result<String, EncodeError> {
    let selection = selection.map(Selection::from_slice);
    let text = encode_json(
        &answer(values.to_vec()),
        &one(),
        selection.as_ref(),
        form,
        max_bytes,
    )?;
    Ok(String::from_utf8(text).unwrap())
}

#[test]
fn answers_are_written_in_the_form_of_the_request() {
    let values = [1.0, 0.1, -2.5e-9, 16_777_216.0];
    let text = encode(&values, None, Form::Columns, 1000).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["outputs"]["z"], serde_json::json!([0, 1]));
    assert!(
        text.starts_with(r#"{"model_name":"fake","model_version":"1","outputs":{"y":[[1.0,0.1],["#),
        "{text}"
    );
    let rows = encode(&values, None, Form::Rows(2), 1000).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    assert_eq!(rows["predictions"][1]["z"], 1);
    assert_eq!(
        encode(&values, Some(&[1]), Form::Rows(2), 1000).unwrap(),
        r#"{"predictions":[0,1]}"#
    );
    assert!(
        encode(&values, Some(&[1, 0]), Form::Columns, 1000)
            .unwrap()
            .contains(r#""outputs":{"z":[0,1],"y":"#)
    );
}

#[test]
fn numbers_come_back_as_they_were() {
    let mut bits = 1_u32;
    let mut values = Vec::new();
    while values.len() < 2000 {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        values.extend(Some(f32::from_bits(bits)).filter(|value| value.is_finite()));
    }
    let text = encode(&values, Some(&[0]), Form::Columns, 1 << 20).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = value["outputs"]["y"].as_array().unwrap();
    let read: Vec<u32> = rows
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|number| number.to_string().parse::<f32>().unwrap().to_bits())
        .collect();
    assert_eq!(
        read,
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    );
}

#[test]
fn what_json_cannot_say_is_an_error_and_raw_says_it_exactly() {
    let values = [1.0, f32::NAN, f32::INFINITY, -0.0];
    assert_eq!(
        encode(&values, None, Form::Columns, 1000),
        Err(EncodeError::NotFinite {
            output: "y".to_owned()
        })
    );
    assert!(encode(&values, Some(&[1]), Form::Columns, 1000).is_ok());
    let raw = encode_raw(
        &answer(values.to_vec()),
        &one(),
        Some(&Selection::from_slice(&[0])),
        1000,
    )
    .unwrap();
    assert_eq!(raw.body.as_ref(), bytemuck::cast_slice::<f32, u8>(&values));
    assert_eq!((raw.shape.as_slice(), raw.datatype), (&[2, 2][..], "FP32"));
    assert_eq!(
        encode_raw(&answer(vec![0.0; 2]), &one(), None, 1000).unwrap_err(),
        EncodeError::SeveralOutputs
    );
}

#[test]
fn a_small_part_of_an_execution_does_not_keep_the_rest_in_memory() {
    const ROW: usize = 4096;
    let rows = |rows: std::ops::Range<usize>| {
        let data = TensorData::from(vec![0.5_f32; 8 * ROW]);
        let tensor = Tensor::shared(Shape::from_slice(&[8, ROW]), Arc::new(data)).unwrap();
        let part = tensor.rows(rows).unwrap();
        let selection = Selection::from_slice(&[0]);
        encode_raw(&[part], &one(), Some(&selection), usize::MAX).unwrap()
    };
    let small = rows(3..4);
    assert_eq!((small.body.len(), small.held_bytes), (4 * ROW, 4 * ROW));
    let large = rows(0..5);
    assert_eq!((large.body.len(), large.held_bytes), (20 * ROW, 32 * ROW));
}

#[test]
fn answers_are_bounded() {
    let values = vec![0.123_456_7; 20_000];
    assert_eq!(
        encode(&values, None, Form::Columns, 10_000),
        Err(EncodeError::TooLarge { max_bytes: 10_000 })
    );
    let selection = Selection::from_slice(&[0]);
    let raw = encode_raw(&answer(values), &one(), Some(&selection), 10_000);
    assert_eq!(
        raw.unwrap_err(),
        EncodeError::TooLarge { max_bytes: 10_000 }
    );
}
