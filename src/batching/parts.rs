//! Requests with more rows than an execution takes: executed part by part, and the outputs put together again.
//!
//! Invariant: only independent rows are parted, and what comes out is what one execution would have given: where the
//! outputs of the parts cannot be put together, the request is executed whole.
//!
//! Fairness: an instance has one such request in hand at most. Between two parts whoever waits has a turn of one
//! execution, so that a request waits for one part, and not for all of them, and the large one gets half of the
//! instance's executions at least.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::ScheduleError;
use super::batch::InputBuffers;
use super::queue::Pending;
use crate::inference::{InferenceRequest, InferenceResponse, Timings};
use crate::runtime::buckets::Buckets;
use crate::runtime::{BatchInput, InputView, RuntimeError};
use crate::runtime::{Division, ModelOutput};
use crate::tensor::{Shape, TensorData, TensorView, element_count};

/// Which requests are executed in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartRule {
    /// The most rows of a part.
    pub(super) rows: usize,
    /// Whether rows are known to be independent, without which nothing is parted.
    pub(super) independent: bool,
}

impl PartRule {
    /// Whether a request of `rows` rows is executed in parts.
    pub(super) fn parts(self, rows: usize) -> bool {
        self.independent && rows > self.rows
    }
}

/// A request that is being executed in parts.
#[derive(Debug)]
pub(super) struct InParts {
    pub(super) pending: Pending,
    rule: PartRule,
    done: usize,
    joined: Joined,
    timings: Timings,
    started_at: Instant,
}

impl InParts {
    /// `pending`, of which nothing is executed yet.
    pub(super) fn new(pending: Pending, rule: PartRule, now: Instant) -> Self {
        let timings = Timings {
            queue: now.saturating_duration_since(pending.enqueued_at),
            ..Timings::default()
        };
        Self {
            pending,
            rule,
            done: 0,
            joined: Joined::default(),
            timings,
            started_at: now,
        }
    }

    /// The rows of the next part; none when all are done.
    pub(super) fn next(&self) -> Range<usize> {
        let rows = self.pending.request.rows();
        self.done..rows.min(self.done + self.rule.rows)
    }

    /// The rows that are not executed yet.
    pub(super) fn left(&self) -> usize {
        self.pending.request.rows().saturating_sub(self.done)
    }

    /// Takes the outputs of the next part, which was executed with `padded` rows.
    ///
    /// # Errors
    /// Why the request cannot go on in parts.
    pub(super) fn take(
        &mut self,
        outputs: &[ModelOutput],
        padded: usize,
        timings: Timings,
    ) -> Result<(), Stop> {
        let rows = self.next();
        let parts = self.joined.fitting(outputs, rows.len(), padded);
        let parts = parts.ok_or(Stop::Misfit)?;
        let bytes = parts.iter().map(|part| part.elements.byte_len()).sum();
        // The parts' outputs are the request's until it is answered.
        self.pending
            .request
            .reserve(bytes)
            .map_err(|_| Stop::OutOfMemory)?;
        if !self.joined.append(&parts) {
            return Err(Stop::Misfit);
        }
        self.done = rows.end;
        self.timings.compute_input += timings.compute_input;
        self.timings.compute_infer += timings.compute_infer;
        Ok(())
    }

    /// Whether no row is left.
    pub(super) fn is_done(&self) -> bool {
        self.next().is_empty()
    }

    /// From being queued to the start of the first part.
    pub(super) fn queue_time(&self) -> Duration {
        self.timings.queue
    }

    /// The request, without what was executed of it.
    pub(super) fn into_pending(self) -> Pending {
        self.pending
    }

    /// Answers the request with what was put together.
    pub(super) fn answer(self) {
        let answer = match self.joined.finish() {
            Some(outputs) => Ok(InferenceResponse {
                outputs: outputs
                    .iter()
                    .map(|output| output.tensor().clone())
                    .collect(),
                timings: self.timings,
                started_at: self.started_at,
                batch_rows: self.rule.rows,
            }),
            None => Err(ScheduleError::Internal(
                "the outputs of the parts do not make a tensor".into(),
            )),
        };
        self.pending.answer(answer);
    }
}

/// Why a request cannot go on in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The outputs have not the part's rows, or another shape than those before.
    Misfit,
    /// The memory of requests does not suffice for the outputs, now.
    OutOfMemory,
}

/// The inputs of an execution of `rows` of `request`: lent where they lie, or copied into `buffers` if the last row has to
/// be repeated up to `padded` rows.
///
/// # Errors
/// When the request has not these rows, which its validation rules out.
pub(super) fn gather<'a>(
    request: &'a InferenceRequest,
    rows: Range<usize>,
    buffers: &'a mut InputBuffers,
    padded: usize,
) -> Result<BatchInput<'a>, RuntimeError> {
    let broken = || RuntimeError::Broken("a request lacks rows".to_owned());
    let part = |tensor: &'a crate::tensor::Tensor| {
        let mut shape = Shape::from_slice(tensor.shape());
        if let Some(first) = shape.first_mut() {
            *first = padded.max(rows.len());
        }
        let row = row_len(tensor.shape());
        let elements = tensor.view().slice(rows.start * row..rows.end * row);
        Ok((shape, elements.ok_or_else(broken)?))
    };
    let parts = request.inputs().iter().map(part);
    if padded <= rows.len() {
        let lend = |part: Result<_, _>| part.map(|(shape, elements)| InputView { shape, elements });
        return parts.map(lend).collect();
    }
    let mut input = BatchInput::new();
    for (buffer, part) in buffers.tensors().iter_mut().zip(parts) {
        let (shape, elements) = part?;
        buffer.clear();
        if !buffer.append(elements) {
            return Err(broken());
        }
        buffer.pad(rows.len(), padded);
        input.push(InputView {
            shape,
            elements: buffer.view(),
        });
    }
    Ok(input)
}

/// The rows with which a part of `rows` rows is executed.
pub(super) fn padded(rows: usize, buckets: Option<Buckets>) -> usize {
    buckets.map_or(rows, |buckets| buckets.fit(rows))
}

/// The elements of one row of a tensor of `shape`.
fn row_len(shape: &[usize]) -> usize {
    let row = shape.get(1..).unwrap_or_default();
    // Beside a zero, a product that overflows is zero.
    element_count(row).unwrap_or(0)
}

/// One output of one part.
#[derive(Debug)]
struct OutputPart<'o> {
    shape: Shape,
    /// Without the padding; nothing of what is the same for all parts and there already.
    elements: TensorView<'o>,
    is_shared: bool,
}

/// One output being put together.
#[derive(Debug)]
struct JoinedOutput {
    shape: Shape,
    data: TensorData,
    is_shared: bool,
}

/// Outputs being put together along their first dimension; one that is the same whatever is executed is that of the
/// first part.
#[derive(Debug, Default)]
struct Joined {
    outputs: Vec<JoinedOutput>,
}

impl Joined {
    /// The first `rows` rows of each of `outputs`, if they are of an execution of `padded` rows and continue what is
    /// there.
    fn fitting<'o>(
        &self,
        outputs: &'o [ModelOutput],
        rows: usize,
        padded: usize,
    ) -> Option<Vec<OutputPart<'o>>> {
        let is_first = self.outputs.is_empty();
        let part = |(index, output): (usize, &'o ModelOutput)| {
            let before = self.outputs.get(index);
            if !is_first && before.is_none() {
                return None;
            }
            match output.division() {
                Division::Rows => rows_of(output, before, rows, padded),
                Division::Shared => shared(output, before),
                Division::Alone => None,
            }
        };
        let complete = is_first || outputs.len() == self.outputs.len();
        outputs
            .iter()
            .enumerate()
            .map(part)
            .collect::<Option<_>>()
            .filter(|_| complete)
    }

    /// Appends what [`fitting`](Self::fitting) gave. Returns whether it could be.
    fn append(&mut self, parts: &[OutputPart<'_>]) -> bool {
        if self.outputs.is_empty() {
            let empty = |part: &OutputPart<'_>| {
                let mut shape = part.shape.clone();
                if let Some(first) = shape.first_mut().filter(|_| !part.is_shared) {
                    *first = 0;
                }
                JoinedOutput {
                    shape,
                    data: TensorData::empty(part.elements.datatype()),
                    is_shared: part.is_shared,
                }
            };
            self.outputs = parts.iter().map(empty).collect();
        }
        for (output, part) in self.outputs.iter_mut().zip(parts) {
            if !output.data.append(part.elements) {
                return false;
            }
            if output.is_shared {
                continue;
            }
            if let (Some(all), Some(more)) = (output.shape.first_mut(), part.shape.first()) {
                *all += more;
            }
        }
        true
    }

    /// The outputs as tensors.
    fn finish(self) -> Option<Vec<ModelOutput>> {
        let whole =
            |output: JoinedOutput| ModelOutput::new(output.shape, std::sync::Arc::new(output.data));
        self.outputs.into_iter().map(whole).collect()
    }
}

/// The first `rows` rows of `output`, which has `padded`, if they continue `before`.
fn rows_of<'o>(
    output: &'o ModelOutput,
    before: Option<&JoinedOutput>,
    rows: usize,
    padded: usize,
) -> Option<OutputPart<'o>> {
    let mut shape = Shape::from_slice(output.shape());
    let first = shape.first_mut().filter(|first| **first == padded)?;
    *first = rows;
    let elements = output.view().slice(0..rows * row_len(&shape))?;
    let continues = before.is_none_or(|before| {
        !before.is_shared
            && before.shape.get(1..) == shape.get(1..)
            && before.data.view().datatype() == elements.datatype()
    });
    continues.then_some(OutputPart {
        shape,
        elements,
        is_shared: false,
    })
}

/// All of `output`, or nothing to be added if it is there `before`, with the same shape.
fn shared<'o>(output: &'o ModelOutput, before: Option<&JoinedOutput>) -> Option<OutputPart<'o>> {
    let all = output.view();
    let elements = match before {
        None => all,
        Some(before) => {
            let is_same = before.is_shared
                && before.shape.as_slice() == output.shape()
                && before.data.view().datatype() == all.datatype();
            all.slice(0..0).filter(|_| is_same)?
        }
    };
    Some(OutputPart {
        shape: Shape::from_slice(output.shape()),
        elements,
        is_shared: true,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use half::{bf16, f16};

    use super::*;
    use crate::batching::testing;

    fn output(shape: &[usize], data: impl Into<TensorData>) -> ModelOutput {
        ModelOutput::new(Shape::from_slice(shape), Arc::new(data.into())).unwrap()
    }

    /// Puts parts together; each is its rows, the rows that it was executed with, and its outputs.
    fn join(parts: &[(usize, usize, Vec<ModelOutput>)]) -> Option<Vec<ModelOutput>> {
        let mut joined = Joined::default();
        for (rows, padded, outputs) in parts {
            let fitting = joined.fitting(outputs, *rows, *padded)?;
            assert!(joined.append(&fitting));
        }
        joined.finish()
    }

    #[test]
    fn outputs_of_every_datatype_are_put_together_in_order() {
        macro_rules! check {
            ($($values:expr),+ $(,)?) => {
                $({
                    let values = $values.to_vec();
                    // Two rows of two, then one row of two, executed with one of padding.
                    let first = output(&[2, 2], values[..4].to_vec());
                    let second = output(&[2, 2], [&values[4..6], &values[4..6]].concat());
                    let all = join(&[(2, 2, vec![first]), (1, 2, vec![second])]).unwrap();
                    assert_eq!(all[0].shape(), [3, 2]);
                    assert_eq!(all[0].view(), TensorData::from(values).view());
                })+
            };
        }
        check!(
            [1_u8, 2, 3, 4, 5, 6],
            [1_u16, 2, 3, 4, 5, 6],
            [1_u32, 2, 3, 4, 5, 6],
            [1_u64, 2, 3, 4, 5, u64::MAX],
            [1_i8, -2, 3, 4, 5, 6],
            [1_i16, -2, 3, 4, 5, 6],
            [1_i32, -2, 3, 4, 5, 6],
            [i64::MIN, -2, 3, 4, 5, i64::MAX],
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(f16::from_f32),
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(bf16::from_f32),
            [1.0_f32, 2.0, 3.0, 4.0, 5.0, f32::INFINITY],
            [1.0_f64, 2.0, 3.0, 4.0, 5.0, 6.0],
            [true, false, false, true, true, false],
            ["", "a", "zwölf", "日本", "\u{0}", "f"].map(str::to_owned),
        );
    }

    #[test]
    fn several_outputs_of_other_ranks_and_types_are_each_put_together() {
        let part = |rows: usize, from: i64| {
            let labels: Vec<i64> = (from..).take(rows).collect();
            let texts: Vec<String> = labels.iter().map(ToString::to_string).collect();
            let wide = vec![0.5_f32; rows * 6];
            (
                rows,
                rows,
                vec![
                    output(&[rows], labels),
                    output(&[rows, 1], texts),
                    output(&[rows, 2, 3], wide),
                    output(&[rows, 0], Vec::<f32>::new()),
                ],
            )
        };
        let all = join(&[part(2, 0), part(2, 2), part(1, 4)]).unwrap();
        assert_eq!(all[0].view(), TensorView::Int64(&[0, 1, 2, 3, 4]));
        let texts = ["0", "1", "2", "3", "4"].map(str::to_owned);
        assert_eq!(all[1].view(), TensorView::Bytes(&texts));
        let shapes: Vec<&[usize]> = all.iter().map(ModelOutput::shape).collect();
        assert_eq!(shapes, [&[5][..], &[5, 1], &[5, 2, 3], &[5, 0]]);
    }

    #[test]
    fn what_is_no_row_for_each_row_is_not_put_together() {
        let f = |count: usize| vec![0.0_f32; count];
        let row = |columns| (1, 1, vec![output(&[1, columns], f(columns))]);
        assert!(join(&[row(2), row(2)]).is_some());
        assert!(join(&[row(2), row(3)]).is_none(), "another width");
        assert!(
            join(&[(2, 2, vec![output(&[3, 2], f(6))])]).is_none(),
            "other rows"
        );
        assert!(
            join(&[(2, 2, vec![output(&[], f(1))])]).is_none(),
            "a scalar"
        );
        let other_type = (1, 1, vec![output(&[1, 2], vec![0_i64; 2])]);
        assert!(join(&[row(2), other_type]).is_none(), "another datatype");
        let other_rank = (1, 1, vec![output(&[1, 2, 1], f(2))]);
        assert!(join(&[row(2), other_rank]).is_none(), "another rank");
        let two = (1, 1, vec![output(&[1, 2], f(2)), output(&[1, 2], f(2))]);
        assert!(join(&[row(2), two]).is_none(), "another number of outputs");
    }

    #[test]
    fn an_output_that_is_the_same_for_all_parts_is_that_of_the_first() {
        let divided = |mut output: ModelOutput, division| {
            output.divide(division);
            output
        };
        let shared = |shape: &[usize], values: &[f32]| {
            divided(output(shape, values.to_vec()), Division::Shared)
        };
        // The first dimension of the middle one is by chance what the first part has rows, and that of the scalar is none.
        let part = |values: &[i64], padded: usize| {
            let mut labels = values.to_vec();
            labels.resize(padded, 0);
            let outputs = vec![
                output(&[padded], labels),
                shared(&[2, 1], &[0.25, 0.75]),
                shared(&[], &[9.0]),
                shared(&[0], &[]),
            ];
            (values.len(), padded, outputs)
        };
        let all = join(&[part(&[1, 2], 2), part(&[3, 4], 2), part(&[5], 2)]).unwrap();
        let shapes: Vec<&[usize]> = all.iter().map(ModelOutput::shape).collect();
        assert_eq!(shapes, [&[5][..], &[2, 1], &[], &[0]]);
        assert_eq!(all[0].view(), TensorView::Int64(&[1, 2, 3, 4, 5]));
        assert_eq!(all[1].view(), TensorView::Fp32(&[0.25, 0.75]));
        assert_eq!(all[2].view(), TensorView::Fp32(&[9.0]));

        let row = |output| (1, 1, vec![output]);
        let one = || row(shared(&[1, 1], &[1.0]));
        assert_eq!(join(&[one(), one()]).unwrap()[0].shape(), [1, 1]);
        let wider = row(shared(&[1, 2], &[1.0, 1.0]));
        assert!(join(&[one(), wider]).is_none(), "another shape");
        let by_rows = || row(output(&[1, 1], vec![1.0_f32]));
        assert!(join(&[one(), by_rows()]).is_none(), "rows after all");
        assert!(join(&[by_rows(), one()]).is_none(), "no rows after all");
        let alone = row(divided(output(&[1, 1], vec![1.0_f32]), Division::Alone));
        assert!(join(&[alone]).is_none(), "of one execution only");
        let none: (usize, usize, Vec<ModelOutput>) = (1, 1, Vec::new());
        assert!(join(&[one(), none]).is_none(), "another number of outputs");
    }

    #[test]
    fn the_parts_are_all_rows_once_and_in_order() {
        let rule = PartRule {
            rows: 4,
            independent: true,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        for rows in [5, 8, 9] {
            assert!(rule.parts(rows));
            let (pending, _answer) = testing::pending(rows, 1, deadline);
            let mut large = InParts::new(pending, rule, Instant::now());
            let mut covered = Vec::new();
            while !large.is_done() {
                let part = large.next();
                assert!(part.len() <= 4);
                let values = vec![0.0_f32; part.len()];
                covered.extend(part.clone());
                let outputs = [output(&[part.len(), 1], values)];
                large
                    .take(&outputs, part.len(), Timings::default())
                    .unwrap();
            }
            assert_eq!(covered, (0..rows).collect::<Vec<_>>());
        }
        assert!(!rule.parts(4));
        let dependent = PartRule {
            independent: false,
            ..rule
        };
        assert!(!dependent.parts(1000));
    }

    #[test]
    fn the_inputs_of_a_part_are_its_rows_padded_with_the_last_one() {
        let metadata = testing::metadata(&[("x", &["N", "2"])], &[("y", &["N", "2"])]);
        let mut buffers = InputBuffers::new(&metadata);
        let deadline = Instant::now() + Duration::from_secs(60);
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (pending, _answer) = testing::pending_with(&values, 2, deadline);
        let mut shown = |rows: Range<usize>, padded| {
            let input = gather(&pending.request, rows, &mut buffers, padded).unwrap();
            let TensorView::Fp32(elements) = input[0].elements else {
                panic!("not FP32")
            };
            (input[0].shape.to_vec(), elements.to_vec())
        };
        assert_eq!(shown(0..2, 2), (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!(shown(2..3, 1), (vec![1, 2], vec![5.0, 6.0]));
        assert_eq!(shown(2..3, 2), (vec![2, 2], vec![5.0, 6.0, 5.0, 6.0]));
        assert!(gather(&pending.request, 2..4, &mut buffers, 2).is_err());
    }
}
