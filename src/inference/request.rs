//! What is asked of a model: requests that are valid by construction.
//!
//! Invariant: an [`InferenceRequest`] has exactly the tensors that its model's signature asks for, of fitting
//! datatype, rank and dimensions. Nothing behind this file checks a request again. Sizes that the signature leaves open
//! are the model's affair: nothing is refused here that it might compute.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use thiserror::Error;

use super::budget::{Exhausted, Reservation};
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::telemetry::request_ids::RequestIds;
use crate::tensor::{Shape, Tensor, element_count};

/// Why a request was refused: one sentence that says what, where, what was expected and what was got.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct InvalidRequest(pub String);

/// A request for one execution, checked against the model's signature.
#[derive(Debug)]
pub struct InferenceRequest {
    inputs: SmallVec<[Tensor; 2]>,
    rows: usize,
    /// In what the inputs disagree with each other, by the names of the signature's dimensions.
    disagreement: Option<Arc<str>>,
    deadline: Instant,
    /// The memory that the tensors take, given back when the request is dropped.
    reservation: Reservation,
    /// Bytes of the answer that somebody else has reserved.
    output_reserved: usize,
    /// What the log and traces call it.
    ids: Option<RequestIds>,
}

impl InferenceRequest {
    /// A request with `inputs` in the order of the signature.
    ///
    /// # Errors
    /// When an input does not fit its specification, or there are no rows or more than `max_rows`.
    pub fn new(
        metadata: &ModelMetadata,
        inputs: SmallVec<[Tensor; 2]>,
        max_rows: usize,
        deadline: Instant,
        reservation: Reservation,
    ) -> Result<Self, InvalidRequest> {
        if inputs.len() != metadata.inputs.len() {
            let message = format!(
                "expected {} inputs, got {}",
                metadata.inputs.len(),
                inputs.len()
            );
            return Err(InvalidRequest(message));
        }
        for (spec, tensor) in metadata.inputs.iter().zip(&inputs) {
            check(spec, tensor)?;
        }
        let disagreement = disagreement(metadata, &inputs);
        let rows = inputs
            .first()
            .and_then(|tensor| tensor.shape().first().copied())
            .filter(|_| metadata.has_rows() && disagreement.is_none());
        if let Some(rows) = rows {
            check_rows(rows, max_rows)?;
        }
        Ok(Self {
            inputs,
            rows: rows.unwrap_or(1),
            disagreement,
            deadline,
            reservation,
            output_reserved: 0,
            ids: None,
        })
    }

    /// The tensors in the order of the signature.
    #[must_use]
    pub fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }

    /// The size of the batch axis. A request that has none is one row, whatever its size.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes of this request's outputs, as far as the signature of `metadata`, its model's, tells them before a run.
    #[must_use]
    pub fn expected_output_bytes(&self, metadata: &ModelMetadata) -> usize {
        let known = self.output_bytes(metadata).flatten();
        known.fold(0, usize::saturating_add)
    }

    /// The same, if the signature tells the size of every output.
    pub(crate) fn told_output_bytes(&self, metadata: &ModelMetadata) -> Option<usize> {
        self.output_bytes(metadata)
            .try_fold(0, |sum: usize, bytes| Some(sum.saturating_add(bytes?)))
    }

    /// The bytes of each output, where the signature tells.
    fn output_bytes<'a>(
        &'a self,
        metadata: &'a ModelMetadata,
    ) -> impl Iterator<Item = Option<usize>> + 'a {
        let known = move |symbol: &str| {
            let mut inputs = metadata.inputs.iter().zip(&self.inputs);
            inputs.find_map(|(spec, tensor)| {
                let mut dims = spec.dims().iter().zip(tensor.shape());
                let same = |dim: &Dim| matches!(dim, Dim::Dynamic(Some(name)) if name == symbol);
                dims.find_map(|(dim, size)| same(dim).then_some(*size))
            })
        };
        let size = move |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(size) => Some(*size),
            Dim::Dynamic(Some(symbol)) => known(symbol),
            Dim::Dynamic(None) => (axis == 0 && metadata.has_batch_axis()).then_some(self.rows),
        };
        let bytes = move |spec: &TensorSpec| {
            let dims = spec.dims.as_ref()?.iter().enumerate().map(size);
            let shape = dims.collect::<Option<Shape>>()?;
            element_count(&shape)?.checked_mul(spec.datatype.size()?)
        };
        metadata.outputs.iter().map(bytes)
    }

    /// What to tell the client if the model refuses this request, when that is no wonder: in what its inputs disagree.
    #[must_use]
    pub fn disagreement(&self) -> Option<&Arc<str>> {
        self.disagreement.as_ref()
    }

    /// Takes note that whoever waits for the answer has reserved `bytes` for it.
    pub fn note_output_reserved(&mut self, bytes: usize) {
        self.output_reserved = bytes;
    }

    /// Takes note of what the log and traces call this request.
    pub fn note_ids(&mut self, ids: RequestIds) {
        self.ids = Some(ids);
    }

    /// What the log and traces call this request, if somebody has said.
    #[must_use]
    pub fn ids(&self) -> Option<&RequestIds> {
        self.ids.as_ref()
    }

    /// The datatype and shape of each input, for people.
    #[must_use]
    pub fn inputs_text(&self, metadata: &ModelMetadata) -> String {
        let inputs = metadata.inputs.iter().zip(&self.inputs);
        let text = |(spec, tensor): (&TensorSpec, &Tensor)| {
            format!("{} {}{:?}", spec.name, spec.datatype, tensor.shape())
        };
        inputs.map(text).collect::<Vec<_>>().join(", ")
    }

    /// Sets aside memory for `bytes` of the answer, until the request is dropped.
    ///
    /// # Errors
    /// When requests hold as much as they may already.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let reserved = bytes.min(self.output_reserved);
        self.reservation.grow(bytes - reserved)?;
        self.output_reserved -= reserved;
        Ok(())
    }

    /// When the client stops waiting.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether rows of `other` may stand beside the rows of this request in one execution.
    #[must_use]
    pub fn merges_with(&self, other: &Self) -> bool {
        // That rows are independent was shown on inputs that agree.
        let agree = self.disagreement.is_none() && other.disagreement.is_none();
        agree
            && self
                .inputs
                .iter()
                .zip(&other.inputs)
                .all(|(left, right)| left.shape().get(1..) == right.shape().get(1..))
    }
}

/// In what `inputs` disagree: about a dimension that the graph gives one name, or about the number of rows.
///
/// That is no reason to refuse them. ONNX Runtime does not compare such dimensions either, and an operator may well
/// broadcast one of them.
fn disagreement(metadata: &ModelMetadata, inputs: &[Tensor]) -> Option<Arc<str>> {
    let mut symbols: SmallVec<[(&str, usize, &str); 4]> = SmallVec::new();
    for (spec, tensor) in metadata.inputs.iter().zip(inputs) {
        for (size, dim) in tensor.shape().iter().zip(spec.dims()) {
            let Dim::Dynamic(Some(symbol)) = dim else {
                continue;
            };
            match symbols.iter().find(|(seen, ..)| seen == symbol) {
                Some((_, expected, _)) if expected == size => {}
                Some((_, expected, first)) => {
                    let message = format!(
                        "input '{}' has {size} for dimension {symbol}, but input '{first}' has {expected}; they must be equal",
                        spec.name
                    );
                    return Some(message.into());
                }
                None => symbols.push((symbol, *size, &spec.name)),
            }
        }
    }
    if !metadata.has_rows() {
        return None;
    }
    let rows = |tensor: &Tensor| tensor.shape().first().copied();
    let (first, most) = (metadata.inputs.first()?, rows(inputs.first()?)?);
    let other = |(spec, tensor)| Some((spec, rows(tensor)?)).filter(|(_, other)| *other != most);
    let mut others = metadata.inputs.iter().zip(inputs).filter_map(other);
    others.next().map(|(spec, other): (&TensorSpec, usize)| {
        let message = format!(
            "input '{}' has {other} rows, but input '{}' has {most}",
            spec.name, first.name
        );
        message.into()
    })
}

/// Says that a request has no rows.
#[must_use]
pub(crate) fn no_rows() -> InvalidRequest {
    InvalidRequest("the request has no rows; send at least one".to_owned())
}

/// Says that a request, or its input `name`, has more rows than it may have.
#[must_use]
pub(crate) fn too_many_rows(what: &str, max_rows: usize) -> InvalidRequest {
    InvalidRequest(format!(
        "{what}, but a request may have {max_rows} rows at most; send fewer at a time, or raise --max-request-rows (MAX_REQUEST_ROWS)"
    ))
}

/// Refuses a request without rows, and one with more rows than a request may have.
fn check_rows(rows: usize, max_rows: usize) -> Result<(), InvalidRequest> {
    if rows == 0 {
        return Err(no_rows());
    }
    if rows > max_rows {
        return Err(too_many_rows(
            &format!("the request has {rows} rows"),
            max_rows,
        ));
    }
    Ok(())
}

/// Checks one tensor against its specification.
fn check(spec: &TensorSpec, tensor: &Tensor) -> Result<(), InvalidRequest> {
    let datatype = tensor.view().datatype();
    if datatype != spec.datatype {
        let message = format!(
            "input '{}' expects {}, got {datatype}",
            spec.name, spec.datatype
        );
        return Err(InvalidRequest(message));
    }
    let fits = tensor.shape().len() == spec.dims().len()
        && tensor
            .shape()
            .iter()
            .zip(spec.dims())
            .all(|(size, dim)| match dim {
                Dim::Fixed(expected) => size == expected,
                Dim::Dynamic(_) => true,
            });
    if !fits {
        let message = format!(
            "input '{}' expects shape {}, got {:?}",
            spec.name,
            spec.shape_text(),
            tensor.shape()
        );
        return Err(InvalidRequest(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smallvec::smallvec;

    use super::*;
    use crate::model::testing;
    use crate::tensor::TensorData;

    fn tensor(shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        Tensor::new(
            Shape::from_slice(shape),
            TensorData::from(vec![0.0_f32; count]),
        )
        .unwrap()
    }

    fn request(
        inputs: &[(&str, &[&str])],
        tensors: &[&[usize]],
    ) -> Result<InferenceRequest, String> {
        let metadata = testing::metadata(inputs, &[("y", &["N"])]);
        let tensors = tensors.iter().map(|shape| tensor(shape)).collect();
        let deadline = Instant::now() + Duration::from_secs(1);
        InferenceRequest::new(&metadata, tensors, 8, deadline, Reservation::none())
            .map_err(|error| error.to_string())
    }

    fn build(inputs: &[(&str, &[&str])], tensors: &[&[usize]]) -> Result<usize, String> {
        request(inputs, tensors).map(|request| request.rows())
    }

    #[test]
    fn rows_are_the_size_of_the_batch_axis() {
        assert_eq!(build(&[("x", &["N", "4"])], &[&[3, 4]]), Ok(3));
        assert_eq!(build(&[("x", &[])], &[&[]]), Ok(1));
        // What is no batch has no rows.
        assert_eq!(build(&[("x", &["2", "3"])], &[&[2, 3]]), Ok(1));
        assert_eq!(
            build(
                &[("x", &["T", "N"]), ("h", &["1", "N"])],
                &[&[40, 2], &[1, 2]]
            ),
            Ok(1)
        );
        assert_eq!(
            build(
                &[("table", &["rows", "2"]), ("idx", &["q"])],
                &[&[30, 2], &[0]]
            ),
            Ok(1)
        );
    }

    #[test]
    fn a_request_must_fit_the_signature() {
        for (tensors, part) in [
            (&[3, 5][..], "input 'x' expects shape [N,4], got [3, 5]"),
            (&[4][..], "expects shape [N,4], got [4]"),
            (&[0, 4][..], "no rows"),
            (
                &[9, 4][..],
                "the request has 9 rows, but a request may have 8 rows at most; send fewer at a time, or raise --max-request-rows (MAX_REQUEST_ROWS)",
            ),
        ] {
            let error = build(&[("x", &["N", "4"])], &[tensors]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(
            build(&[("x", &["N", "4"])], &[])
                .unwrap_err()
                .contains("expected 1 inputs, got 0")
        );
        let integers = Tensor::new(smallvec![1, 4], TensorData::from(vec![0_i64; 4])).unwrap();
        let metadata = testing::metadata(&[("x", &["N", "4"])], &[("y", &["N"])]);
        let error = InferenceRequest::new(
            &metadata,
            smallvec![integers],
            8,
            Instant::now(),
            Reservation::none(),
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "input 'x' expects FP32, got INT64");
    }

    #[test]
    fn the_size_of_the_outputs_is_known_where_the_inputs_tell_it() {
        let both = |outputs: &[(&str, &[&str])]| {
            let metadata = testing::metadata(&[("x", &["N", "L"]), ("z", &["N", "4"])], outputs);
            let tensors = smallvec![tensor(&[3, 5]), tensor(&[3, 4])];
            let deadline = Instant::now() + Duration::from_secs(1);
            let request =
                InferenceRequest::new(&metadata, tensors, 8, deadline, Reservation::none());
            let request = request.unwrap();
            (
                request.expected_output_bytes(&metadata),
                request.told_output_bytes(&metadata),
            )
        };
        let expected = |outputs| both(outputs).0;
        assert_eq!(expected(&[("y", &["N", "10"])]), 3 * 10 * 4);
        assert_eq!(expected(&[("y", &["N", "L", "2"])]), 3 * 5 * 2 * 4);
        assert_eq!(expected(&[("y", &["", "2"])]), 3 * 2 * 4);
        assert_eq!(expected(&[("y", &["N"]), ("u", &["N", "K"])]), 3 * 4);
        assert_eq!(expected(&[("y", &["N", ""])]), 0);
        let (one, all) = (
            both(&[("y", &["N"]), ("u", &["N", "K"])]),
            both(&[("y", &["N"]), ("u", &["N", "L"])]),
        );
        assert_eq!((one.1, all.1), (None, Some(3 * 4 + 3 * 5 * 4)));
    }

    #[test]
    fn inputs_that_disagree_are_the_model_s_affair_and_stand_alone() {
        let signature: &[(&str, &[&str])] = &[("a", &["N", "L"]), ("b", &["N", "L"])];
        let agreeing = request(signature, &[&[2, 5], &[2, 5]]).unwrap();
        assert_eq!((agreeing.rows(), agreeing.disagreement()), (2, None));
        assert!(agreeing.merges_with(&agreeing));
        let anonymous: &[(&str, &[&str])] = &[("a", &["", "4"]), ("b", &["", "4"])];
        for (signature, tensors, told) in [
            (
                signature,
                [&[2, 5], &[2, 6]],
                "input 'b' has 6 for dimension L, but input 'a' has 5",
            ),
            (
                signature,
                [&[2, 5], &[3, 5]],
                "input 'b' has 3 for dimension N, but input 'a' has 2",
            ),
            (
                anonymous,
                [&[2, 4], &[9, 4]],
                "input 'b' has 9 rows, but input 'a' has 2",
            ),
        ] {
            let request = request(signature, &tensors.map(<[usize; 2]>::as_slice)).unwrap();
            assert_eq!(request.rows(), 1);
            assert!(
                request.disagreement().unwrap().starts_with(told),
                "{request:?}"
            );
            assert!(!request.merges_with(&request));
        }
    }

    #[test]
    fn dimensions_without_a_name_are_compared_with_nothing() {
        let signature: &[(&str, &[&str])] = &[("x", &["4", "", ""]), ("z", &["4", "", ""])];
        let request = request(signature, &[&[4, 2, 3], &[4, 5, 6]]).unwrap();
        assert_eq!(request.disagreement(), None);
    }
}
