//! Wire formats of `/predict`: from bytes to a valid request, and from outputs to bytes.
//!
//! Invariant: this is the only place that knows how tensors look on the wire; it knows nothing of routes and queues.

pub(crate) mod json;
mod json_request;
mod json_response;
mod number;
mod raw;

use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::batching::{
    InferenceRequest, InferenceResponse, InvalidRequest, OutputRows, Reservation,
};
use crate::model::ModelMetadata;
use crate::tensor::Shape;

/// Positions of the outputs that the client asked for, in its order.
pub type Selection = SmallVec<[usize; 4]>;

/// How a request is written, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One array per tensor (`inputs`, `outputs`).
    Columns,
    /// One value or object for each of so many rows (`instances`, `predictions`).
    Rows(usize),
}

/// What the body is, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    /// JSON text.
    Json,
    /// One raw little-endian tensor.
    Raw,
}

/// A decoded body.
#[derive(Debug)]
pub struct Decoded {
    /// What is to be computed.
    pub request: InferenceRequest,
    /// The outputs that were asked for; `None` means all.
    pub selection: Option<Selection>,
    /// How the answer is to be written.
    pub form: Form,
}

/// The bounds that a body is held against while it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Rows in one request.
    pub max_rows: usize,
    /// Nested arrays and objects.
    pub max_json_depth: usize,
}

/// Why a body was not decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// It is not what the model takes.
    Invalid(InvalidRequest),
    /// Its tensors do not fit into the memory that requests may hold at once.
    OutOfMemory,
}

impl From<InvalidRequest> for DecodeError {
    fn from(error: InvalidRequest) -> Self {
        Self::Invalid(error)
    }
}

/// Why an answer cannot be written as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncodeError {
    /// It holds NaN or infinity, and JSON was asked for.
    NotFinite {
        /// The output that holds it.
        output: String,
    },
    /// It is larger than an answer may be.
    TooLarge {
        /// The limit in bytes.
        max_bytes: usize,
    },
    /// Rows were asked for, and an output has none, or not one for each row of the request.
    NotRows {
        /// The output.
        output: String,
    },
    /// One raw tensor was asked for, and several outputs are selected.
    SeveralOutputs,
}

/// Bytes to set aside for the tensors of `body` before they are made.
fn tensor_bytes(body: &[u8], format: BodyFormat, metadata: &ModelMetadata) -> usize {
    match format {
        // A raw body is its tensor already, or at worst copied once; strings take a header each.
        BodyFormat::Raw => body.len(),
        BodyFormat::Json => {
            let element = metadata
                .inputs
                .iter()
                .map(|spec| spec.datatype.size().unwrap_or(size_of::<String>()))
                .max();
            json_request::max_elements(body).saturating_mul(element.unwrap_or(0))
        }
    }
}

/// Decodes `body` for the model that `metadata` describes.
///
/// `shape` is the client's `X-Tensor-Shape`, for raw bodies. `reservation` already covers the body itself; it is grown
/// by what its tensors take, and given back with the request.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(
    body: Bytes,
    format: BodyFormat,
    shape: Option<&str>,
    metadata: &ModelMetadata,
    limits: DecodeLimits,
    deadline: Instant,
    mut reservation: Reservation,
) -> Result<Decoded, DecodeError> {
    reservation
        .grow(tensor_bytes(&body, format, metadata))
        .map_err(|_| DecodeError::OutOfMemory)?;
    let (inputs, selection, form) = match format {
        BodyFormat::Json => {
            let json =
                json_request::parse(&body, metadata, limits.max_rows, limits.max_json_depth)?;
            (json.inputs, json.selection, json.form)
        }
        BodyFormat::Raw => (raw::parse(body, metadata, shape)?, None, Form::Columns),
    };
    let request = InferenceRequest::new(metadata, inputs, limits.max_rows, deadline, reservation)?;
    Ok(Decoded {
        request,
        selection,
        form,
    })
}

/// Adds the output `name` to `selection`.
///
/// # Errors
/// When the model has no such output, or it was selected before.
pub fn select(
    selection: &mut Selection,
    name: &str,
    metadata: &ModelMetadata,
) -> Result<(), InvalidRequest> {
    let Some(index) = metadata.outputs.iter().position(|spec| spec.name == name) else {
        let names: Vec<&str> = metadata
            .outputs
            .iter()
            .map(|spec| spec.name.as_str())
            .collect();
        return Err(InvalidRequest(format!(
            "unknown output '{}'; the model has {}",
            json::quote(name),
            names.join(", ")
        )));
    };
    if selection.contains(&index) {
        return Err(InvalidRequest(format!(
            "output '{name}' is asked for twice"
        )));
    }
    selection.push(index);
    Ok(())
}

/// One output of an answer, with its name.
struct Selected<'a> {
    name: &'a str,
    rows: &'a OutputRows,
}

fn selected<'a>(
    response: &'a InferenceResponse,
    metadata: &'a ModelMetadata,
    selection: Option<&Selection>,
) -> Vec<Selected<'a>> {
    let output = |(spec, rows): (&'a crate::model::TensorSpec, &'a OutputRows)| Selected {
        name: &spec.name,
        rows,
    };
    let all = metadata.outputs.iter().zip(&response.outputs);
    match selection {
        None => all.map(output).collect(),
        Some(selection) => selection
            .iter()
            .filter_map(|index| all.clone().nth(*index))
            .map(output)
            .collect(),
    }
}

/// Writes `response` as JSON.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode_json(
    response: &InferenceResponse,
    metadata: &ModelMetadata,
    selection: Option<&Selection>,
    form: Form,
    max_bytes: usize,
) -> Result<Vec<u8>, EncodeError> {
    let outputs = selected(response, metadata, selection);
    json_response::write(&metadata.name, &metadata.version, &outputs, form, max_bytes)
}

/// Writes the one selected output of `response` raw; returns its bytes, shape and datatype.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode_raw(
    response: &InferenceResponse,
    metadata: &ModelMetadata,
    selection: Option<&Selection>,
    max_bytes: usize,
) -> Result<(Bytes, Shape, &'static str), EncodeError> {
    match selected(response, metadata, selection).as_slice() {
        [output] => Ok((
            raw::write(output.rows, max_bytes)?,
            output.rows.shape(),
            output.rows.view().datatype().name(),
        )),
        _ => Err(EncodeError::SeveralOutputs),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::batching::{Timings, testing};
    use crate::tensor::{OutputTensor, TensorData, TensorView};

    const LIMITS: DecodeLimits = DecodeLimits {
        max_rows: 4,
        max_json_depth: 8,
    };

    fn decode_with(
        metadata: &ModelMetadata,
        body: &str,
        format: BodyFormat,
    ) -> Result<Decoded, String> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let body = Bytes::copy_from_slice(body.as_bytes());
        decode(
            body,
            format,
            None,
            metadata,
            LIMITS,
            deadline,
            Reservation::none(),
        )
        .map_err(|error| match error {
            DecodeError::Invalid(error) => error.0,
            DecodeError::OutOfMemory => "out of memory".to_owned(),
        })
    }

    fn one() -> ModelMetadata {
        testing::metadata(&[("x", &["N", "2"])], &[("y", &["N", "2"]), ("z", &["N"])])
    }

    fn two() -> ModelMetadata {
        testing::metadata(&[("a", &["N", "L"]), ("b", &["N"])], &[("y", &["N"])])
    }

    fn first(decoded: &Decoded) -> (Vec<usize>, Vec<f32>) {
        let tensor = &decoded.request.inputs()[0];
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
        assert_eq!(
            decoded.request.inputs()[1].view(),
            TensorView::Fp32(&[4.0, 7.0])
        );
    }

    #[test]
    fn scalars_vectors_and_empty_tensors_have_their_place() {
        let scalar = testing::metadata(&[("x", &[])], &[("y", &[])]);
        assert_eq!(
            first(&decode_with(&scalar, r#"{"inputs": 7}"#, BodyFormat::Json).unwrap()),
            (vec![], vec![7.0])
        );
        let vector = testing::metadata(&[("x", &["N"])], &[("y", &["N"])]);
        let decoded =
            decode_with(&vector, r#"{"instances": [1, 2, 3]}"#, BodyFormat::Json).unwrap();
        assert_eq!(first(&decoded), (vec![3], vec![1.0, 2.0, 3.0]));
        let empty = testing::metadata(&[("x", &["N", "L", "3"])], &[("y", &["N"])]);
        let decoded = decode_with(&empty, r#"{"inputs": [[], []]}"#, BodyFormat::Json).unwrap();
        assert_eq!(first(&decoded), (vec![2, 0, 3], vec![]));
    }

    #[test]
    fn wrong_bodies_are_told_what_is_wrong() {
        for (body, part) in [
            ("", "expected an object, got the end of the body"),
            ("[]", "expected an object, got an array"),
            ("{}", "missing 'inputs'"),
            ("{\"inputs\": {}}", "missing input 'x'"),
            (
                r#"{"inputs": {"q": [[1,2]]}}"#,
                "unknown input 'q'; the model has x",
            ),
            (
                r#"{"inputs": {"x": [[1,2]], "x": [[1,2]]}}"#,
                "input 'x' stands twice",
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
            (r#"{"inputs": [1, 2]}"#, "an array at depth 1; got a number"),
            (
                r#"{"inputs": [[[1, 2]]]}"#,
                "expects a number (FP32) for shape [N,2], got an array",
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
                "asked for twice",
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
            let deadline = Instant::now() + Duration::from_secs(1);
            decode(
                body,
                BodyFormat::Raw,
                shape,
                &one(),
                LIMITS,
                deadline,
                Reservation::none(),
            )
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

    fn response(values: Vec<f32>) -> InferenceResponse {
        let rows = values.len() / 2;
        let z: Vec<i64> = (0..).take(rows).collect();
        let output = |shape: &[usize], data: TensorData| {
            OutputRows::whole(OutputTensor::new(Shape::from_slice(shape), Arc::new(data)).unwrap())
        };
        let outputs = vec![output(&[rows, 2], values.into()), output(&[rows], z.into())];
        InferenceResponse {
            outputs,
            timings: Timings::default(),
            batch_rows: rows,
        }
    }

    fn encode(
        values: &[f32],
        selection: Option<&[usize]>,
        form: Form,
        max_bytes: usize,
    ) -> Result<String, EncodeError> {
        let selection = selection.map(Selection::from_slice);
        let text = encode_json(
            &response(values.to_vec()),
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
            text.starts_with(
                r#"{"model_name":"fake","model_version":"1","outputs":{"y":[[1.0,0.1],["#
            ),
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
        let (bytes, shape, datatype) = encode_raw(
            &response(values.to_vec()),
            &one(),
            Some(&Selection::from_slice(&[0])),
            1000,
        )
        .unwrap();
        assert_eq!(bytes.as_ref(), bytemuck::cast_slice::<f32, u8>(&values));
        assert_eq!((shape.as_slice(), datatype), (&[2, 2][..], "FP32"));
        assert_eq!(
            encode_raw(&response(vec![0.0; 2]), &one(), None, 1000).unwrap_err(),
            EncodeError::SeveralOutputs
        );
    }

    #[test]
    fn answers_are_bounded() {
        let values = vec![0.123_456_7; 20_000];
        assert_eq!(
            encode(&values, None, Form::Columns, 10_000),
            Err(EncodeError::TooLarge { max_bytes: 10_000 })
        );
        let selection = Selection::from_slice(&[0]);
        let raw = encode_raw(&response(values), &one(), Some(&selection), 10_000);
        assert_eq!(
            raw.unwrap_err(),
            EncodeError::TooLarge { max_bytes: 10_000 }
        );
    }
}
