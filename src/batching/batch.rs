//! One execution's worth of requests: gathering their inputs, and handing each its rows of the outputs.
//!
//! Invariant: members keep their order, so the rows of a member are known by the rows of those before it.

use std::ops::Range;
use std::time::Instant;

use super::ScheduleError;
use super::output_sizes::RowSize;
use super::queue::Pending;
use crate::model::ModelMetadata;
use crate::runtime::{BatchInput, InputView, RuntimeError};
use crate::runtime::{Division, ModelOutput};
use crate::tensor::{Shape, Tensor, TensorData};

/// Requests that execute together.
#[derive(Debug)]
pub struct Batch {
    members: Vec<Pending>,
    rows: usize,
}

/// The most bytes of a gathered input that are kept for the next batch.
const KEPT_BYTES: usize = 4 << 20;

/// Memory for gathered inputs, kept by an instance from batch to batch.
#[derive(Debug)]
pub struct InputBuffers {
    tensors: Vec<TensorData>,
}

impl InputBuffers {
    /// Empty buffers for the inputs of `metadata`.
    #[must_use]
    pub fn new(metadata: &ModelMetadata) -> Self {
        Self {
            tensors: metadata
                .inputs
                .iter()
                .map(|spec| TensorData::empty(spec.datatype))
                .collect(),
        }
    }
}

impl InputBuffers {
    /// The buffers, one for each input, in the order of the signature.
    pub(super) fn tensors(&mut self) -> &mut [TensorData] {
        &mut self.tensors
    }
}

impl InputBuffers {
    /// Gives the memory of large inputs back. It is not reserved by any request once their execution is over.
    pub fn release_large(&mut self) {
        for tensor in &mut self.tensors {
            let view = tensor.view();
            if view.byte_len() > KEPT_BYTES {
                *tensor = TensorData::empty(view.datatype());
            }
        }
    }
}

impl Batch {
    /// A batch of `members`.
    #[must_use]
    pub fn new(members: Vec<Pending>) -> Self {
        let rows = members.iter().map(|member| member.request.rows()).sum();
        Self { members, rows }
    }

    /// The rows of all members together.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The requests, in order.
    #[must_use]
    pub fn members(&self) -> &[Pending] {
        &self.members
    }

    /// Takes the member out, if there is only one.
    pub(super) fn take_only(&mut self) -> Option<Pending> {
        if self.members.len() > 1 {
            return None;
        }
        self.rows = 0;
        self.members.pop()
    }

    /// Answers every member with `error`.
    pub fn refuse(self, error: &ScheduleError) {
        for member in self.members {
            member.answer(Err(error.clone()));
        }
    }

    /// The last moment at which anybody waits for this batch.
    #[must_use]
    pub fn latest_deadline(&self) -> Option<Instant> {
        self.members
            .iter()
            .map(|member| member.request.deadline())
            .max()
    }

    /// Two halves, for finding the member that makes an execution fail.
    #[must_use]
    pub fn split(mut self) -> (Self, Self) {
        let second = self.members.split_off(self.members.len() / 2);
        (Self::new(self.members), Self::new(second))
    }

    /// Keeps the first members, as many as there `may` be of their rows together, and one in any case. Returns the rest.
    #[must_use]
    pub(super) fn split_off(&mut self, may: impl Fn(usize) -> bool) -> Option<Self> {
        let mut rows = 0;
        let fits = |member: &&Pending| {
            rows += member.request.rows();
            may(rows)
        };
        let kept = self.members.iter().take_while(fits).count().max(1);
        if kept >= self.members.len() {
            return None;
        }
        let rest = Self::new(self.members.split_off(kept));
        self.rows -= rest.rows;
        Some(rest)
    }

    /// The bytes of one row of the member whose rows have the most; members differ in the lengths of their strings only.
    pub(super) fn row_size(&self, metadata: &ModelMetadata) -> RowSize {
        let of_rows = |member: &Pending, bytes: usize| bytes.div_ceil(member.request.rows().max(1));
        let input = |member: &Pending| {
            let inputs = member.request.inputs().iter();
            of_rows(member, inputs.map(|tensor| tensor.view().byte_len()).sum())
        };
        let output = |member: &Pending| {
            let bytes = member.request.told_output_bytes(metadata)?;
            Some(of_rows(member, bytes))
        };
        RowSize {
            input: self.members.iter().map(input).max().unwrap_or(0),
            output: self.members.first().and_then(output),
        }
    }

    /// Drops the members that nobody waits for at `now`, and hands them back to be refused.
    pub fn remove_unwanted(&mut self, now: Instant) -> Vec<Pending> {
        let (wanted, unwanted) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(|member| member.is_wanted(now));
        *self = Self::new(wanted);
        unwanted
    }

    /// The inputs of the execution: a single member's are borrowed, those of several are copied once, side by side. If
    /// `padded` is more than the rows there are, the last row is repeated: values that the model takes for sure.
    ///
    /// # Errors
    /// When members do not fit together, which the queue rules out.
    pub fn gather<'a>(
        &'a self,
        buffers: &'a mut InputBuffers,
        padded: usize,
    ) -> Result<BatchInput<'a>, RuntimeError> {
        if let ([only], true) = (self.members.as_slice(), padded <= self.rows) {
            let lend = |tensor: &'a crate::tensor::Tensor| InputView {
                shape: Shape::from_slice(tensor.shape()),
                elements: tensor.view(),
            };
            return Ok(only.request.inputs().iter().map(lend).collect());
        }
        let mut input = BatchInput::new();
        for (index, buffer) in buffers.tensors.iter_mut().enumerate() {
            buffer.clear();
            let mut shape = Shape::new();
            for member in &self.members {
                let Some(tensor) = member.request.inputs().get(index) else {
                    return Err(RuntimeError::Broken("a request lacks an input".to_owned()));
                };
                if !buffer.append(tensor.view()) {
                    return Err(RuntimeError::Broken(
                        "requests of different datatypes were merged".to_owned(),
                    ));
                }
                shape = Shape::from_slice(tensor.shape());
            }
            if let Some(first) = shape.first_mut() {
                *first = self.rows.max(padded);
            }
            buffer.pad(self.rows, padded);
            input.push(InputView {
                shape,
                elements: buffer.view(),
            });
        }
        Ok(input)
    }

    /// Whether `outputs` of an execution of `padded` rows can be handed out: to a single member as they are, and to
    /// several if each has as many rows, or belongs to everybody.
    #[must_use]
    pub fn can_scatter(&self, outputs: &[ModelOutput], padded: usize) -> bool {
        let divides = |output: &ModelOutput| match output.division() {
            Division::Rows => output.shape().first() == Some(&padded),
            Division::Shared => true,
            Division::Alone => false,
        };
        self.is_whole(padded) || outputs.iter().all(divides)
    }

    /// Whether an execution of `padded` rows is all of a single member.
    fn is_whole(&self, padded: usize) -> bool {
        self.members.len() == 1 && padded == self.rows
    }

    /// Each member with its rows of `outputs` of an execution of `padded` rows; `None` if an output lacks them, which
    /// [`can_scatter`](Self::can_scatter) rules out.
    pub fn scatter(
        self,
        outputs: &[ModelOutput],
        padded: usize,
    ) -> impl Iterator<Item = (Pending, Option<Vec<Tensor>>)> {
        let alone = self.is_whole(padded);
        let mut start = 0;
        self.members.into_iter().map(move |member| {
            let rows: Range<usize> = start..start + member.request.rows();
            start = rows.end;
            let part = |output: &ModelOutput| {
                if alone || output.division() == Division::Shared {
                    Some(output.tensor().clone())
                } else {
                    output.tensor().rows(rows.clone())
                }
            };
            (member, outputs.iter().map(part).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::batching::testing;
    use crate::tensor::TensorView;

    fn batch(values: &[&[f32]]) -> Batch {
        let deadline = Instant::now() + Duration::from_secs(60);
        // One column, so that every value is a row.
        Batch::new(
            values
                .iter()
                .map(|rows| testing::pending_with(rows, 1, deadline).0)
                .collect(),
        )
    }

    #[test]
    fn gathered_rows_stand_in_the_order_of_the_requests_and_come_back_to_them() {
        let metadata = testing::metadata(&[("x", &["N", "1"])], &[("y", &["N", "1"])]);
        let mut buffers = InputBuffers::new(&metadata);
        for values in [
            &[&[1.0_f32, 2.0][..], &[3.0], &[4.0, 5.0, 6.0]][..],
            &[&[7.0][..]][..],
        ] {
            let batch = batch(values);
            let input = batch.gather(&mut buffers, batch.rows()).unwrap();
            let all: Vec<f32> = values.concat();
            assert_eq!(input[0].shape.as_slice(), [all.len(), 1]);
            assert_eq!(input[0].elements, TensorView::Fp32(&all));
            let output = ModelOutput::new(
                input[0].shape.clone(),
                Arc::new(TensorData::from(all.clone())),
            )
            .unwrap();
            drop(input);
            let rows = batch.rows();
            assert!(batch.can_scatter(std::slice::from_ref(&output), rows));
            let parts: Vec<Vec<Tensor>> = batch
                .scatter(&[output], rows)
                .map(|(_, rows)| rows.unwrap())
                .collect();
            for (part, expected) in parts.iter().zip(values) {
                assert_eq!(part[0].view(), TensorView::Fp32(expected));
                assert_eq!(part[0].shape(), [expected.len(), 1]);
            }
        }
    }

    #[test]
    fn large_gathered_inputs_are_not_kept() {
        let metadata = testing::metadata(&[("x", &["N", ""])], &[("y", &["N", ""])]);
        let mut buffers = InputBuffers::new(&metadata);
        let deadline = Instant::now() + Duration::from_secs(60);
        for (width, kept) in [(10, 20), (KEPT_BYTES / 8 + 1, 0)] {
            let member = || testing::pending(1, width, deadline).0;
            let batch = Batch::new(vec![member(), member()]);
            batch.gather(&mut buffers, 2).unwrap();
            buffers.release_large();
            assert_eq!(buffers.tensors[0].view().len(), kept);
        }
    }

    #[test]
    fn padding_repeats_the_last_row_and_is_given_to_nobody() {
        let metadata = testing::metadata(&[("x", &["N", "1"])], &[("y", &["N", "1"])]);
        let mut buffers = InputBuffers::new(&metadata);
        for (values, padded) in [
            (&[&[1.0_f32, 2.0][..], &[3.0]][..], [1.0_f32, 2.0, 3.0, 3.0]),
            (&[&[7.0, 8.0, 9.0][..]][..], [7.0, 8.0, 9.0, 9.0]),
        ] {
            let batch = batch(values);
            let input = batch.gather(&mut buffers, 4).unwrap();
            assert_eq!(input[0].shape.as_slice(), [4, 1]);
            assert_eq!(input[0].elements, TensorView::Fp32(&padded));
            drop(input);
            let data = Arc::new(TensorData::from(padded.to_vec()));
            let output = ModelOutput::new(Shape::from_slice(&[4, 1]), data).unwrap();
            assert!(batch.can_scatter(std::slice::from_ref(&output), 4));
            let outputs = [output];
            let parts = batch.scatter(&outputs, 4).map(|(_, rows)| rows.unwrap());
            for (part, expected) in parts.zip(values) {
                assert_eq!(part[0].view(), TensorView::Fp32(expected));
            }
        }
    }

    #[test]
    fn outputs_without_the_batch_s_rows_cannot_be_handed_out() {
        let output = ModelOutput::new(
            Shape::from_slice(&[4]),
            Arc::new(TensorData::from(vec![0.0_f32; 4])),
        )
        .unwrap();
        assert!(!batch(&[&[1.0], &[2.0]]).can_scatter(std::slice::from_ref(&output), 2));
        assert!(batch(&[&[1.0]]).can_scatter(std::slice::from_ref(&output), 1));
        assert!(!batch(&[&[1.0]]).can_scatter(&[output], 2));
    }

    #[test]
    fn an_output_that_everybody_shares_is_handed_out_whole_and_one_for_a_single_request_is_not() {
        let output = |shape: &[usize], division| {
            let data = TensorData::from(vec![7.0_f32; shape.iter().product()]);
            let mut output = ModelOutput::new(Shape::from_slice(shape), Arc::new(data)).unwrap();
            output.divide(division);
            output
        };
        let outputs = [
            output(&[3, 1], Division::Rows),
            output(&[], Division::Shared),
        ];
        let three = batch(&[&[1.0], &[2.0, 3.0]]);
        assert!(three.can_scatter(&outputs, 3));
        for (_, parts) in three.scatter(&outputs, 3) {
            let parts = parts.unwrap();
            assert_eq!(parts[1].view(), TensorView::Fp32(&[7.0]));
            assert_eq!(parts[1].shape(), [0_usize; 0]);
        }
        let alone = [output(&[3, 1], Division::Alone)];
        assert!(!batch(&[&[1.0], &[2.0, 3.0]]).can_scatter(&alone, 3));
        assert!(batch(&[&[1.0, 2.0, 3.0]]).can_scatter(&alone, 3));
    }

    #[test]
    fn the_first_members_that_fit_are_kept_and_one_in_any_case() {
        let values: [&[f32]; 4] = [&[1.0], &[2.0, 3.0], &[4.0], &[5.0]];
        for (most, kept, rest) in [
            (5, 5, None),
            (4, 4, Some(1)),
            (2, 1, Some(4)),
            (0, 1, Some(4)),
        ] {
            let mut batch = batch(&values);
            let split = batch.split_off(|rows| rows <= most);
            assert_eq!(batch.rows(), kept, "{most}");
            assert_eq!(split.map(|split| split.rows()), rest, "{most}");
        }
        assert!(batch(&values[1..2]).split_off(|_| false).is_none());
    }

    #[test]
    fn the_size_of_a_row_is_that_of_its_inputs_and_of_what_the_signature_tells_of_its_outputs() {
        let size = |dims: &[&str]| {
            let metadata = testing::metadata(&[("x", &["N", "1"])], &[("y", dims)]);
            batch(&[&[1.0, 2.0], &[3.0]]).row_size(&metadata)
        };
        let (told, untold) = (size(&["N", "10"]), size(&["N", ""]));
        assert_eq!((told.input, told.output), (4, Some(40)));
        assert_eq!((untold.input, untold.output), (4, None));
    }

    #[test]
    fn splitting_keeps_every_member_once() {
        let (first, second) = batch(&[&[1.0], &[2.0, 3.0], &[4.0]]).split();
        assert_eq!((first.rows(), second.rows()), (1, 3));
    }
}
