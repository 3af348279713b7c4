//! Codecs: from bytes and a signature to tensors, and from tensors to bytes.
//!
//! Invariant: this is the only place that knows how tensors look on the wire; it knows nothing of protocols, requests and
//! queues.

mod columns;
mod digits;
mod form;
pub(crate) mod json;
mod json_request;
mod json_response;
mod listed;
mod number;
mod raw;
mod short_number;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use smallvec::SmallVec;

use form::Selected;
pub use form::{EncodeError, Form, Selection, select};

use crate::inference::{Exhausted, InvalidRequest, Reservation};
use crate::model::ModelMetadata;
use crate::tensor::{DataType, Shape, Tensor};

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
    /// The tensors in the order of the signature. Whether they fit it is still to be checked.
    pub inputs: SmallVec<[Tensor; 2]>,
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
    OutOfMemory(Exhausted),
}

impl From<InvalidRequest> for DecodeError {
    fn from(error: InvalidRequest) -> Self {
        Self::Invalid(error)
    }
}

/// The bytes of a string besides its own, from our tensor of it to ONNX Runtime's: two headers, and four allocations of
/// which the smallest takes 32.
const STRING_BYTES: usize = 160;

/// How often the bytes of a string are held at once: ours, a copy that ends with a zero, and ONNX Runtime's.
const STRING_COPIES: usize = 3;

/// Bytes to set aside for the tensors of `body` before they are made.
fn tensor_bytes(body: &[u8], format: BodyFormat, metadata: &ModelMetadata) -> usize {
    let strings = |elements: usize| {
        let headers = elements.saturating_mul(STRING_BYTES);
        headers.saturating_add(body.len().saturating_mul(STRING_COPIES))
    };
    let has_strings = metadata
        .inputs
        .iter()
        .any(|spec| spec.datatype == DataType::Bytes);
    match format {
        BodyFormat::Raw if has_strings => strings(raw::count_strings(body)),
        // A raw body is its tensor already, or at worst copied once.
        BodyFormat::Raw => body.len(),
        BodyFormat::Json if has_strings => strings(json_request::max_elements(body)),
        BodyFormat::Json => {
            let sizes = metadata.inputs.iter().map(|spec| spec.datatype.size());
            let element = sizes.flatten().max().unwrap_or(0);
            json_request::max_elements(body).saturating_mul(element)
        }
    }
}

/// Decodes `body` for the model that `metadata` describes.
///
/// `shape` is the client's `X-Tensor-Shape`, for raw bodies. `reservation` already covers the body itself; it is grown
/// by what its tensors take.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(
    body: Bytes,
    format: BodyFormat,
    shape: Option<&str>,
    metadata: &ModelMetadata,
    limits: DecodeLimits,
    reservation: &mut Reservation,
) -> Result<Decoded, DecodeError> {
    reservation
        .grow(tensor_bytes(&body, format, metadata))
        .map_err(DecodeError::OutOfMemory)?;
    let (inputs, selection, form) = match format {
        BodyFormat::Json => {
            let json =
                json_request::parse(&body, metadata, limits.max_rows, limits.max_json_depth)?;
            (json.inputs, json.selection, json.form)
        }
        BodyFormat::Raw => (raw::parse(body, metadata, shape)?, None, Form::Columns),
    };
    Ok(Decoded {
        inputs,
        selection,
        form,
    })
}

fn selected<'a>(
    outputs: &'a [Tensor],
    metadata: &'a ModelMetadata,
    selection: Option<&Selection>,
) -> SmallVec<[Selected<'a>; 4]> {
    let output = |(spec, rows): (&'a crate::model::TensorSpec, &'a Tensor)| Selected {
        name: &spec.name,
        rows,
    };
    let all = metadata.outputs.iter().zip(outputs);
    match selection {
        None => all.map(output).collect(),
        Some(selection) => selection
            .iter()
            .filter_map(|index| all.clone().nth(*index))
            .map(output)
            .collect(),
    }
}

/// Writes `outputs`, which are in the order of the signature, as JSON.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode_json(
    outputs: &[Tensor],
    metadata: &ModelMetadata,
    selection: Option<&Selection>,
    form: Form,
    max_bytes: usize,
) -> Result<Vec<u8>, EncodeError> {
    let outputs = selected(outputs, metadata, selection);
    json_response::write(&metadata.name, &metadata.version, &outputs, form, max_bytes)
}

/// One output, raw.
#[derive(Debug)]
pub struct RawOutput {
    /// Its elements.
    pub body: Bytes,
    /// What is kept in memory for them.
    pub held_bytes: usize,
    /// The sizes of its dimensions.
    pub shape: Shape,
    /// Its datatype's name.
    pub datatype: &'static str,
}

/// Writes the one selected output of `outputs` raw.
///
/// # Errors
/// See [`EncodeError`].
pub fn encode_raw(
    outputs: &[Tensor],
    metadata: &ModelMetadata,
    selection: Option<&Selection>,
    max_bytes: usize,
) -> Result<RawOutput, EncodeError> {
    match selected(outputs, metadata, selection).as_slice() {
        [output] => {
            let (body, held_bytes) = raw::write(output.rows, max_bytes)?;
            Ok(RawOutput {
                body,
                held_bytes,
                shape: Shape::from_slice(output.rows.shape()),
                datatype: output.rows.view().datatype().name(),
            })
        }
        _ => Err(EncodeError::SeveralOutputs),
    }
}
