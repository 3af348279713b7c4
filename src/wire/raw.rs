//! Raw little-endian tensors: bodies that are taken as they are, and answers that are sent as they lie in memory.
//!
//! Invariant: no number is parsed or printed here, and a well-aligned body is not even copied.

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::form::EncodeError;
use super::json::quote;
use super::listed::listed;
use crate::inference::InvalidRequest;
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::tensor::{
    DataType, Elements, Shape, Tensor, TensorData, TensorView, element_count,
    for_each_plain_datatype,
};
use crate::units::whole_number;

/// Outputs up to this size are copied; a copy is cheaper than sharing the memory of the whole batch.
const COPY_LIMIT: usize = 4096;

/// Takes `body` as the one input of the model. `shape` is the client's own statement of it (`X-Tensor-Shape`), needed
/// only where the signature leaves more than the number of rows open.
pub(super) fn parse(
    body: Bytes,
    metadata: &ModelMetadata,
    shape: Option<&str>,
) -> Result<SmallVec<[Tensor; 2]>, InvalidRequest> {
    let [spec] = metadata.inputs.as_slice() else {
        let message = format!(
            "a raw body is one tensor, but the model has {} inputs: {}; send JSON",
            metadata.inputs.len(),
            listed(metadata.inputs.iter())
        );
        return Err(InvalidRequest(message));
    };
    let data = read_elements(body, spec)?;
    let count = data.view().len();
    let shape = match shape {
        Some(text) => read_shape(text)?,
        None => derive_shape(spec, count)?,
    };
    let expected = element_count(&shape);
    let tensor = Tensor::new(shape, data);
    let tensor = tensor.ok_or_else(|| {
        let expected = expected.map_or_else(|| "too many".to_owned(), |count| count.to_string());
        InvalidRequest(format!(
            "the body holds {count} elements of {}, but its shape asks for {expected}",
            spec.datatype
        ))
    })?;
    Ok(smallvec![tensor])
}

/// A shape as in `X-Tensor-Shape: 2,3`; empty for a scalar.
fn read_shape(text: &str) -> Result<Shape, InvalidRequest> {
    if text.is_empty() {
        return Ok(Shape::new());
    }
    let dim = |dim: &str| {
        whole_number(dim.trim_matches([' ', '\t'])).ok_or_else(|| {
            InvalidRequest(format!(
                "X-Tensor-Shape is a list of sizes such as 2,3; got '{}'",
                quote(text)
            ))
        })
    };
    text.split(',').map(dim).collect()
}

/// The shape of `count` elements, if the signature leaves one dimension open at most.
fn derive_shape(spec: &TensorSpec, count: usize) -> Result<Shape, InvalidRequest> {
    let known: Option<usize> = element_count(
        &spec
            .dims()
            .iter()
            .map(|dim| if let Dim::Fixed(size) = dim { *size } else { 1 })
            .collect::<Shape>(),
    );
    let open = spec
        .dims()
        .iter()
        .filter(|dim| matches!(dim, Dim::Dynamic(_)))
        .count();
    if open > 1 {
        let message = format!(
            "input '{}' has the shape {}, of which a raw body tells too little; add the header X-Tensor-Shape",
            spec.name,
            spec.shape_text()
        );
        return Err(InvalidRequest(message));
    }
    let known = known.unwrap_or(usize::MAX);
    let fits = if open == 1 {
        known > 0 && count.is_multiple_of(known)
    } else {
        count == known
    };
    if !fits {
        let row = match spec.datatype.size() {
            Some(size) => format!(" ({} bytes)", known.saturating_mul(size)),
            None => String::new(),
        };
        let expected = if open == 1 { "a multiple of " } else { "" };
        let message = format!(
            "input '{}' {}{} takes {expected}{known} elements{row}, got {count}",
            spec.name,
            spec.datatype,
            spec.shape_text()
        );
        return Err(InvalidRequest(message));
    }
    let size = |dim: &Dim| {
        if let Dim::Fixed(size) = dim {
            *size
        } else {
            count / known
        }
    };
    Ok(spec.dims().iter().map(size).collect())
}

macro_rules! by_datatype {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        /// The elements in `body`.
        fn read_elements(body: Bytes, spec: &TensorSpec) -> Result<TensorData, InvalidRequest> {
            let length = body.len();
            let data = match spec.datatype {
                DataType::Bool => read_truths(&body, spec).map(Some)?,
                DataType::Bytes => read_strings(&body, spec).map(Some)?,
                $(DataType::$variant => Elements::<$element>::from_bytes(body).map(TensorData::$variant),)+
            };
            data.ok_or_else(|| {
                let message = format!("input '{}' is {}, and {length} bytes are no whole number of elements", spec.name, spec.datatype);
                InvalidRequest(message)
            })
        }
    };
}
for_each_plain_datatype!(by_datatype);

fn read_truths(body: &[u8], spec: &TensorSpec) -> Result<TensorData, InvalidRequest> {
    let truths: Option<Vec<bool>> = body
        .iter()
        .map(|byte| (*byte <= 1).then_some(*byte == 1))
        .collect();
    truths.map(TensorData::Bool).ok_or_else(|| {
        InvalidRequest(format!(
            "input '{}' is BOOL, so each byte is 0 or 1",
            spec.name
        ))
    })
}

/// The strings in `body`, as far as it is one after the other.
pub(super) fn count_strings(body: &[u8]) -> usize {
    let (mut rest, mut count) = (body, 0);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some(after) = after.get(length..) else {
            break;
        };
        (rest, count) = (after, count + 1);
    }
    count
}

/// Strings in the form of the Open Inference Protocol: a 32-bit little-endian length before each.
fn read_strings(body: &[u8], spec: &TensorSpec) -> Result<TensorData, InvalidRequest> {
    let wrong = |what: &str| {
        InvalidRequest(format!(
            "input '{}' is BYTES, so each element is a 32-bit little-endian length and that many bytes of UTF-8; {what}",
            spec.name
        ))
    };
    let mut strings = Vec::with_capacity(count_strings(body));
    let mut rest = body;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (bytes, after) = after
            .split_at_checked(length)
            .ok_or_else(|| wrong("a length exceeds the body"))?;
        let string = std::str::from_utf8(bytes).map_err(|_| wrong("one is not valid UTF-8"))?;
        if string.contains('\0') {
            return Err(wrong("one has U+0000, which the model cannot be given"));
        }
        strings.push(string.to_owned());
        rest = after;
    }
    if rest.is_empty() {
        Ok(TensorData::Bytes(strings))
    } else {
        Err(wrong("bytes are left over"))
    }
}

/// The elements of `rows` as the body of an answer, and the bytes that are kept for it.
pub(super) fn write(rows: &Tensor, max_bytes: usize) -> Result<(Bytes, usize), EncodeError> {
    let view = rows.view();
    if view.byte_len() > max_bytes {
        return Err(EncodeError::TooLarge { max_bytes });
    }
    let body: Bytes = match view {
        TensorView::Bytes(strings) => {
            let mut body = Vec::with_capacity(strings.iter().map(|string| string.len() + 4).sum());
            for string in strings {
                let length =
                    u32::try_from(string.len()).map_err(|_| EncodeError::TooLarge { max_bytes })?;
                body.extend_from_slice(&length.to_le_bytes());
                body.extend_from_slice(string.as_bytes());
            }
            body.into()
        }
        plain => {
            let bytes = plain.as_bytes().unwrap_or_default();
            let held = rows.held_bytes();
            // A small part of a batch must not keep the rest of it from being freed.
            if bytes.len() > COPY_LIMIT && 2 * bytes.len() >= held {
                return Ok((Bytes::from_owner(SharedRows(rows.clone())), held));
            }
            Bytes::copy_from_slice(bytes)
        }
    };
    let length = body.len();
    Ok((body, length))
}

/// Output memory that is sent without a copy.
struct SharedRows(Tensor);

impl AsRef<[u8]> for SharedRows {
    fn as_ref(&self) -> &[u8] {
        self.0.view().as_bytes().unwrap_or_default()
    }
}
