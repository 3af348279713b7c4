//! Whether rows of different requests may share an execution, tried before the first request does.
//!
//! A dynamic first dimension says that a model takes several rows. It does not say that it computes each of them by
//! itself: a normalisation over the batch, a quantisation by the largest value, or a sum along the wrong axis would mix
//! the requests of strangers, and texts may be padded to the longest one beside them. What is asked of the graph:
//!
//! - Has each output a row for each row of the inputs, and otherwise the sizes that a row alone gives? A size that nothing
//!   but values explains is doubted, whatever the dummy values gave. An output that no value reaches may be shared.
//! - Does a row's answer change when only its neighbours do? Both runs have the same shape, and so the same kernels, so
//!   that hardly any difference is rounding. The neighbours are extreme or blank, so that any influence shows. This must
//!   hold for every kind of rows that the model takes.
//! - Does it change with the number of rows, or with its place among them? Here kernels differ and round differently, and
//!   on rows such as nobody sends some networks amplify that. A difference that only one kind of rows shows is taken for
//!   such rounding if it is small, and rows of another kind, which give answers far apart from each other, show none.
//!
//! Executions of 1, 2 and 3 rows are tried, and larger ones as far as time and memory let them. Invariant: what was not
//! shown to be independent is not merged, nor are more rows than it was shown for.

mod comparison;
mod pace;
mod row_dependence;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use row_dependence::RowDependence;

use comparison::{Agreement, Difference, Elements, are_telling, other_kernels, same_kernels};
use pace::{Clock, Pace};
use row_dependence::{lengths, no_rows, percent};
use rows::{Kind, Row};

use super::division::{DivisionPlan, OutputPlan, Size};
use super::dummy_inputs::{self, LARGEST_INPUT};
use super::{BatchOutput, Model, RuntimeError};
use crate::model::flow::Flow;
use crate::model::operators::Operators;
use crate::model::{Dim, ModelMetadata, TensorSpec};
use crate::runtime::{Division, ModelOutput};

/// Different rows that are executed alone. Batches repeat them.
const ROWS: usize = 3;

/// The first size beyond those that every model is tried with, and by how much sizes grow from there.
const FIRST_LARGE: usize = 8;
const GROWTH: usize = 4;

/// Sizes to try for open dimensions other than the batch, until the model takes one: images and texts, and at last sounds.
/// At 1, a wrong axis may hide.
const OPEN: [usize; 10] = [64, 224, 48, 32, 16, 3, 1, 512, 1600, 16_000];

/// The largest difference, as a part of an output's largest value, that may be amplified rounding.
const AMPLIFIED: f64 = 0.05;

/// What came out of trying a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Why rows must not share executions, if so.
    pub dependence: Option<RowDependence>,
    /// The most rows of an execution in which they were shown not to depend on each other.
    pub rows: usize,
    /// How outputs are handed out to the requests that share an execution.
    pub plan: DivisionPlan,
    /// What the verdict rests on, for people.
    pub tried: String,
}

/// Tries it with executions of up to `max_rows` rows; `flows` are what the outputs follow from by the graph, whose
/// `operators` are what a refusal is told by.
///
/// # Errors
/// When a run fails for another reason than that the model refuses the dummy rows.
pub fn check(
    model: &mut dyn Model,
    flows: &[Flow],
    operators: &Operators,
    max_rows: usize,
    tf32: bool,
) -> Result<Verdict, RuntimeError> {
    let started = Instant::now();
    let clock = || started.elapsed();
    let limits = Limits {
        max_rows,
        tf32,
        largest: LARGEST_INPUT,
    };
    Trial::new(model, (flows, operators), limits, &clock).run(false)
}

/// Only finds out how the outputs are to be handed out: the user says that rows do not depend on each other.
///
/// # Errors
/// As [`check`].
pub fn probe(
    model: &mut dyn Model,
    flows: &[Flow],
    operators: &Operators,
) -> Result<Verdict, RuntimeError> {
    let clock = || Duration::ZERO;
    let limits = Limits {
        max_rows: 2,
        tf32: false,
        largest: LARGEST_INPUT,
    };
    Trial::new(model, (flows, operators), limits, &clock).run(true)
}

/// How far a trial goes.
#[derive(Debug, Clone, Copy)]
struct Limits {
    max_rows: usize,
    tf32: bool,
    /// Bytes of an input that may be made up.
    largest: usize,
}

/// What an output may be, by all executions so far.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// It had a row for each row.
    rows: bool,
    /// It was always the same, and no value reaches it.
    shared: bool,
}

/// Why a kind of rows shows nothing.
enum Unusable {
    /// The model does not take them.
    Refused(String),
    /// The model takes one of them, and refuses two.
    OneRow(String),
    /// An input would be too large.
    TooLarge,
    /// A run takes so long.
    TooSlow(Duration),
}

/// Ends the trial of a kind of rows, or all.
enum Stop {
    RowDependence(RowDependence),
    Unusable(Unusable),
    Failed(RuntimeError),
}

impl From<RowDependence> for Stop {
    fn from(dependence: RowDependence) -> Self {
        Self::RowDependence(dependence)
    }
}

impl From<Unusable> for Stop {
    fn from(unusable: Unusable) -> Self {
        Self::Unusable(unusable)
    }
}

/// What one kind of rows has shown.
struct Shown {
    kind: Kind,
    open: usize,
    alone: Vec<BatchOutput>,
    /// By output: whether the rows' answers are far apart.
    telling: Vec<bool>,
    /// By output: whether no answer has a finite number.
    nothing: Vec<bool>,
    /// By output: the difference between executions of different sizes, if it is more than rounding.
    beyond: Vec<Option<(usize, Difference)>>,
    /// The largest difference between executions of different sizes.
    worst: f64,
}

impl Shown {
    fn is_clean(&self) -> bool {
        self.beyond.iter().all(Option::is_none)
    }
}

/// One trial of a model.
struct Trial<'a> {
    model: &'a mut dyn Model,
    metadata: std::sync::Arc<ModelMetadata>,
    flows: &'a [Flow],
    operators: &'a Operators,
    limits: Limits,
    pace: Pace<'a>,
    /// The outputs of the first run.
    first: Option<BatchOutput>,
    /// The size of open dimensions in that run.
    first_open: usize,
    axes: Vec<Axis>,
    /// The numbers of rows that were executed.
    sizes: BTreeSet<usize>,
    /// The most rows for which everything was compared.
    rows: usize,
    /// Why larger executions were not tried.
    stopped: Option<String>,
}

impl<'a> Trial<'a> {
    fn new(
        model: &'a mut dyn Model,
        (flows, operators): (&'a [Flow], &'a Operators),
        limits: Limits,
        clock: Clock<'a>,
    ) -> Self {
        let metadata = std::sync::Arc::clone(model.metadata());
        let unseen = |index| Axis {
            rows: true,
            shared: flows.get(index).is_some_and(|flow: &Flow| flow.constant),
        };
        let axes = (0..metadata.outputs.len()).map(unseen).collect();
        Self {
            model,
            metadata,
            flows,
            operators,
            limits,
            pace: Pace::new(clock),
            first: None,
            first_open: 1,
            axes,
            sizes: BTreeSet::new(),
            rows: 1,
            stopped: None,
        }
    }

    /// Tries everything, or, if the rows are `trusted` not to depend on each other, only shapes.
    fn run(mut self, trusted: bool) -> Result<Verdict, RuntimeError> {
        let mut shown = Vec::new();
        let found = if trusted {
            self.probe()
        } else {
            self.compare(&mut shown)
        };
        let dependence = match found {
            Ok(()) => None,
            Err(Stop::RowDependence(dependence)) => Some(dependence),
            Err(Stop::Unusable(unusable)) => Some(unusable.into_dependence()),
            Err(Stop::Failed(error)) => return Err(error),
        };
        Ok(Verdict {
            rows: if trusted { usize::MAX } else { self.rows },
            plan: self.plan(),
            tried: self.tried(&shown),
            dependence,
        })
    }

    /// Runs one row and two, to see what the outputs are.
    fn probe(&mut self) -> Result<(), Stop> {
        let mut kinds = Kind::of(&self.metadata);
        kinds.extend(Kind::last_resorts(&self.metadata));
        for kind in kinds {
            match self.probe_with(kind) {
                Err(Stop::Unusable(_)) => {}
                other => return other,
            }
        }
        // Nothing could be seen, so that the declaration must do.
        let mut outputs = self.metadata.outputs.iter();
        match outputs.find(|spec| !spec.has_dynamic_first()) {
            Some(spec) => Err(no_rows(spec).into()),
            None => Ok(()),
        }
    }

    fn probe_with(&mut self, kind: Kind) -> Result<(), Stop> {
        let (open, alone) = self.open_size(kind)?;
        self.note_shapes(&alone, 1)?;
        let rows = [Row::ordinary(0), Row::ordinary(1)];
        let pair = self.execute(kind, &rows, open)?;
        self.note_shapes(&pair, 2)?;
        Ok(())
    }

    fn compare(&mut self, shown: &mut Vec<Shown>) -> Result<(), Stop> {
        let mut unusable = None;
        for kind in Kind::of(&self.metadata) {
            // One kind makes a verdict. More are tried if they cost little, or if a difference asks for them.
            let settled = shown.iter().any(Shown::is_clean);
            if settled && !self.pace.has_time_for_kind(5, 2) {
                break;
            }
            self.try_next(kind, shown, &mut unusable)?;
            if !settled && shown.iter().any(Shown::is_clean) {
                self.enlarge(shown)?;
            }
        }
        if shown.is_empty() {
            // Each shows what one input does while the others hold zeros, so that one alone does not make a verdict.
            for kind in Kind::last_resorts(&self.metadata) {
                self.try_next(kind, shown, &mut unusable)?;
            }
            self.enlarge(shown)?;
            let mut inputs = self.metadata.inputs.iter().enumerate();
            let constant = |index: usize| {
                !shown
                    .iter()
                    .any(|shown| shown.kind.varies(index, &self.metadata))
            };
            if let Some((_, spec)) = inputs.find(|(index, _)| constant(*index))
                && !shown.is_empty()
            {
                // Where it holds something else, it may say which of the rows is meant.
                let reason = format!(
                    "it takes no dummy values but zeros in input '{}'",
                    spec.name
                );
                return Err(Unusable::Refused(reason).into());
            }
        }
        match unusable {
            Some(reason) if shown.is_empty() => Err(reason.into()),
            _ => Ok(self.judge(shown)?),
        }
    }

    fn try_next(
        &mut self,
        kind: Kind,
        shown: &mut Vec<Shown>,
        unusable: &mut Option<Unusable>,
    ) -> Result<(), Stop> {
        match self.try_kind(kind) {
            Ok(found) => shown.push(found),
            // Rows of another kind take as long.
            Err(stop @ Stop::Unusable(Unusable::TooSlow(_))) => return Err(stop),
            Err(Stop::Unusable(reason)) => *unusable = Some(worse(unusable.take(), reason)),
            Err(stop) => return Err(stop),
        }
        Ok(())
    }

    /// Whether what the kinds of rows have shown together leaves a doubt.
    fn judge(&self, shown: &[Shown]) -> Result<(), RowDependence> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let is = |flags: &[bool]| flags.get(index).copied().unwrap_or_default();
            if shown.iter().all(|kind| is(&kind.nothing)) {
                let reason = format!("output '{}' has no number for any of the rows", spec.name);
                return Err(RowDependence::Untested(reason));
            }
            let beyond = |kind: &Shown| kind.beyond.get(index).cloned().flatten();
            let reassuring = shown
                .iter()
                .any(|kind| beyond(kind).is_none() && is(&kind.telling) && !is(&kind.nothing));
            for kind in shown {
                if let Some((rows, difference)) = beyond(kind)
                    && !(reassuring && difference.part <= AMPLIFIED)
                {
                    return Err(self.size_doubt(spec, rows, difference, kind.kind));
                }
            }
        }
        Ok(())
    }

    fn size_doubt(
        &self,
        spec: &TensorSpec,
        rows: usize,
        difference: Difference,
        kind: Kind,
    ) -> RowDependence {
        RowDependence::Size {
            output: spec.name.clone(),
            rows,
            values: (difference.one, difference.other),
            part: difference.part,
            of: kind.describe(&self.metadata),
        }
    }

    /// Tries larger executions, as long as they can be expected to be small enough and to end in time.
    fn enlarge(&mut self, shown: &mut [Shown]) -> Result<(), Stop> {
        let Some(kind) = shown.iter_mut().find(|kind| kind.is_clean()) else {
            return Ok(());
        };
        while self.rows < self.limits.max_rows {
            let Some(rows) = self.next_size() else {
                break;
            };
            match self.group(kind, rows) {
                Ok(()) => {}
                Err(Stop::Unusable(Unusable::TooLarge | Unusable::TooSlow(_))) => {
                    self.stopped = Some(format!("executions of {rows} rows take too much"));
                    break;
                }
                // What takes each of the rows, and some of them together, but not all, counts or compares them.
                Err(Stop::Unusable(Unusable::Refused(reason) | Unusable::OneRow(reason))) => {
                    let reason = format!(
                        "it takes rows alone and {} of them together, and refuses {rows}: {reason}",
                        self.rows
                    );
                    return Err(RowDependence::Untested(reason).into());
                }
                Err(stop) => return Err(stop),
            }
            let specs = self.metadata.outputs.iter();
            if let Some((spec, (rows, difference))) = specs
                .zip(&kind.beyond)
                .find_map(|(spec, beyond)| Some((spec, beyond.clone()?)))
            {
                return Err(self.size_doubt(spec, rows, difference, kind.kind).into());
            }
            self.rows = rows;
        }
        Ok(())
    }

    /// The next larger size that can be expected to be small enough and to end in time.
    fn next_size(&mut self) -> Option<usize> {
        let larger = match self.rows {
            // Three were too slow already, unless many cost hardly more than one.
            1 | 2 => [GROWTH * FIRST_LARGE, ROWS],
            ROWS => [FIRST_LARGE, 2 * ROWS],
            rows => [rows.saturating_mul(GROWTH), rows.saturating_mul(2)],
        };
        for rows in larger.map(|rows| rows.min(self.limits.max_rows)) {
            if !self.pace.is_small(rows) {
                self.stopped = Some(format!("executions of {rows} rows take much memory"));
            } else if !self.pace.has_time_for_more(3, rows) {
                let seconds = self.pace.expected(rows).as_secs_f64();
                let reason = format!("an execution of {rows} rows takes some {seconds:.1} s");
                self.stopped = Some(reason);
            } else {
                self.stopped = None;
                return Some(rows);
            }
        }
        None
    }

    /// Executes rows of `kind` alone, and in groups of two and three.
    fn try_kind(&mut self, kind: Kind) -> Result<Shown, Stop> {
        let is_first = self.rows == 1;
        let (open, first) = self.open_size(kind)?;
        self.note_shapes(&first, 1)?;
        if is_first {
            // A first run may well take longer than others, but not by so much.
            self.afford(3)?;
            let again = self.execute(kind, &[Row::ordinary(0)], open)?;
            self.note_shapes(&again, 1)?;
            self.repeats(&first, &again)?;
            self.afford(1)?;
        }
        let mut alone = vec![first];
        for number in 1..ROWS {
            if number > 1 && !self.pace.has_time_for(1, 1) {
                break;
            }
            let row = Row::ordinary(u64::try_from(number).unwrap_or_default());
            let outputs = self.execute(kind, &[row], open)?;
            self.note_shapes(&outputs, 1)?;
            alone.push(outputs);
        }
        self.same_lengths(&alone, open)?;
        let mut shown = Shown {
            kind,
            open,
            telling: self.of_rows(&alone, |rows| are_telling(rows, self.limits.tf32)),
            nothing: self.of_rows(&alone, |rows| rows.iter().all(Elements::say_nothing)),
            alone,
            beyond: vec![None; self.axes.len()],
            worst: 0.0,
        };
        self.group(&mut shown, 2)?;
        self.rows = self.rows.max(2);
        if self.limits.max_rows > 2 && self.pace.has_time_for(3, ROWS) {
            match self.group(&mut shown, ROWS) {
                // What it takes two of, it need not take three of.
                Ok(()) if is_first => self.rows = ROWS,
                Ok(()) | Err(Stop::Unusable(_)) => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(shown)
    }

    /// Whether what a verdict needs besides a row that was run ends in time, if that row took `times` as long as others do:
    /// one other row alone, and two together thrice.
    fn afford(&self, times: usize) -> Result<(), Stop> {
        let run = self.pace.expected(1);
        let rows = (1 + 3 * 2_usize).div_ceil(times);
        if self.pace.can_afford(rows, 1) {
            Ok(())
        } else {
            Err(Unusable::TooSlow(run).into())
        }
    }

    /// Executes `rows` rows together, then with other neighbours for the first, and with others for the last.
    fn group(&mut self, shown: &mut Shown, rows: usize) -> Result<(), Stop> {
        let (kind, open) = (shown.kind, shown.open);
        let numbers = (0_u64..).take(shown.alone.len()).cycle();
        let ordinary: Vec<Row> = numbers.take(rows).map(Row::ordinary).collect();
        let before = match self.execute(kind, &ordinary, open) {
            Err(Stop::Unusable(Unusable::Refused(reason))) => {
                return Err(Unusable::OneRow(reason).into());
            }
            other => other?,
        };
        // A value that depends on others says more than a shape that does.
        let misshapen = self.note_shapes(&before, rows).err();
        self.agree(shown, &before, rows, misshapen.is_some())?;
        if let Some(dependence) = misshapen {
            return Err(dependence.into());
        }
        for place in [0, rows - 1] {
            let Some(after) = self.beside_others(kind, &ordinary, place, open)? else {
                let reason = "it refuses all rows beside which others were to be tried".to_owned();
                return Err(Unusable::Refused(reason).into());
            };
            self.note_shapes(&after, rows)?;
            self.same_beside(&before, &after, place, rows, kind)?;
        }
        Ok(())
    }

    /// Executes `rows` with all but the one at `place` replaced, by the first others that the model takes.
    fn beside_others(
        &mut self,
        kind: Kind,
        rows: &[Row],
        place: usize,
        open: usize,
    ) -> Result<Option<BatchOutput>, Stop> {
        let unlikely = |index: u64| {
            if index.is_multiple_of(2) {
                Row::extreme(index)
            } else {
                Row::blank()
            }
        };
        let usual = |index: u64| Row::ordinary(index + 3);
        let others: [&dyn Fn(u64) -> Row; 3] = [&unlikely, &Row::extreme, &usual];
        for other in others {
            let mut replaced: Vec<Row> = (0..).take(rows.len()).map(other).collect();
            // A single neighbour is an extreme one, on either side.
            replaced.rotate_right((place + 1) % rows.len());
            if let (Some(kept), Some(row)) = (replaced.get_mut(place), rows.get(place)) {
                *kept = *row;
            }
            match self.execute(kind, &replaced, open) {
                Err(Stop::Unusable(Unusable::Refused(_))) => {}
                other => return other.map(Some),
            }
        }
        Ok(None)
    }

    /// Runs rows of `kind`, and takes note of how long that takes.
    fn execute(&mut self, kind: Kind, rows: &[Row], open: usize) -> Result<BatchOutput, Stop> {
        let size = dummy_inputs::Size {
            rows: rows.len(),
            open,
            largest: self.limits.largest,
        };
        let started = self.pace.now();
        let result = rows::run(self.model, kind, rows, open, self.limits.largest);
        let took = self.pace.now().saturating_sub(started);
        match result {
            Ok(Some(outputs)) => {
                let bytes = outputs.iter().map(bytes_of).sum::<usize>();
                let bytes = bytes.saturating_add(dummy_inputs::input_bytes(&self.metadata, size));
                self.pace.note(rows.len(), took, bytes);
                self.sizes.insert(rows.len());
                Ok(outputs)
            }
            Ok(None) => Err(Unusable::TooLarge.into()),
            Err(RuntimeError::Refused(text)) => {
                let model = &self.metadata.name;
                tracing::debug!(model, onnxruntime = text, "a trial was refused");
                let who = match self.operators.named_in(&text) {
                    Some(operator) => format!("the model's {operator}"),
                    None => "the model".to_owned(),
                };
                Err(Unusable::Refused(format!("{who} refuses dummy values")).into())
            }
            Err(error) => Err(Stop::Failed(error)),
        }
    }

    /// The first size of open dimensions at which the model takes a row of `kind`, and what it answers.
    fn open_size(&mut self, kind: Kind) -> Result<(usize, BatchOutput), Stop> {
        let sizes = if self.metadata.has_open_shapes() {
            &OPEN[..]
        } else {
            &[1]
        };
        let mut unusable = None;
        for open in sizes {
            match self.execute(kind, &[Row::ordinary(0)], *open) {
                Ok(outputs) => {
                    if self.first.is_none() {
                        self.first_open = *open;
                    }
                    return Ok((*open, outputs));
                }
                Err(Stop::Unusable(reason)) => unusable = Some(worse(unusable, reason)),
                Err(stop) => return Err(stop),
            }
        }
        Err(unusable.unwrap_or(Unusable::TooLarge).into())
    }

    /// Takes note of the shapes of an execution of `rows` rows. The first output that can neither be handed out by rows
    /// nor be shared is a doubt.
    fn note_shapes(&mut self, outputs: &BatchOutput, rows: usize) -> Result<(), RowDependence> {
        let first = self.first.get_or_insert_with(|| outputs.clone());
        let specs = self.metadata.outputs.iter();
        let mut dependence = None;
        for ((axis, spec), (output, first)) in self
            .axes
            .iter_mut()
            .zip(specs)
            .zip(outputs.iter().zip(&*first))
        {
            axis.rows &= output.shape().first() == Some(&rows);
            axis.shared = axis.shared
                && output.shape() == first.shape()
                && same_kernels(&Elements::whole(first), &Elements::whole(output)).is_none();
            if !axis.rows && !axis.shared && dependence.is_none() {
                dependence = Some(if spec.has_dynamic_first() {
                    RowDependence::Shape {
                        output: spec.name.clone(),
                        rows,
                        shape: output.shape().to_vec(),
                    }
                } else {
                    no_rows(spec)
                });
            }
        }
        dependence.map_or(Ok(()), Err)
    }

    /// Whether the same row gives the same in two runs.
    fn repeats(&self, one: &BatchOutput, other: &BatchOutput) -> Result<(), RowDependence> {
        for (spec, (one, other)) in self.metadata.outputs.iter().zip(one.iter().zip(other)) {
            if one.shape() != other.shape() {
                return Err(lengths(spec, one, other));
            }
            if same_kernels(&Elements::whole(one), &Elements::whole(other)).is_some() {
                let output = spec.name.clone();
                return Err(RowDependence::Random { output });
            }
        }
        Ok(())
    }

    /// Whether every output of rows of the same shape has a shape that something but values explains.
    fn same_lengths(&self, alone: &[BatchOutput], open: usize) -> Result<(), RowDependence> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let mut outputs = alone.iter().filter_map(|outputs| outputs.get(index));
            let Some(first) = outputs.next() else {
                continue;
            };
            if let Some(other) = outputs.find(|output| output.shape() != first.shape()) {
                return Err(lengths(spec, first, other));
            }
            let by_shapes = self.flows.get(index).is_some_and(|flow| flow.sized);
            if by_shapes || self.axes.get(index).is_some_and(|axis| axis.shared) {
                continue;
            }
            let sizes = first.shape().iter().enumerate().skip(1);
            for (axis, size) in sizes {
                if self.explained(spec, axis, *size, open) == Size::Open {
                    return Err(RowDependence::Unexplained {
                        output: spec.name.clone(),
                        axis,
                    });
                }
            }
        }
        Ok(())
    }

    /// What the declaration says of the size of a dimension of an output, if that is what it was when open dimensions of
    /// the inputs had the size `open`.
    fn explained(&self, spec: &TensorSpec, axis: usize, size: usize, open: usize) -> Size {
        match spec.dims().get(axis) {
            Some(Dim::Fixed(fixed)) if *fixed == size => Size::Fixed(size),
            Some(dim @ Dim::Dynamic(Some(_))) if size == open => {
                let inputs = self.metadata.inputs.iter().enumerate();
                let mut same = inputs.flat_map(|(input, spec)| {
                    let dims = spec.dims().iter().enumerate().skip(1);
                    let same = dims.filter(|(_, other)| *other == dim);
                    same.map(move |(axis, _)| Size::OfInput { input, axis })
                });
                same.next().unwrap_or(Size::Open)
            }
            _ => Size::Open,
        }
    }

    /// Holds the rows of an execution against what they gave alone.
    fn agree(
        &self,
        shown: &mut Shown,
        together: &BatchOutput,
        rows: usize,
        misshapen: bool,
    ) -> Result<(), RowDependence> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            let Some(output) = together.get(index) else {
                continue;
            };
            if self.axes.get(index).is_none_or(|axis| !axis.rows) {
                continue;
            }
            let singles = shown.alone.iter().filter_map(|outputs| outputs.get(index));
            let singles: Vec<&ModelOutput> = singles.cycle().take(rows).collect();
            let same = |single: &&ModelOutput| single.shape().get(1..) == output.shape().get(1..);
            if !singles.iter().all(same) {
                return Err(RowDependence::Shape {
                    output: spec.name.clone(),
                    rows,
                    shape: output.shape().to_vec(),
                });
            }
            let alone: Vec<Elements<'_>> = singles
                .iter()
                .filter_map(|single| Elements::row(single, 0, 1))
                .collect();
            let among = (0..rows).filter_map(|place| Elements::row(output, place, rows));
            let among: Vec<Elements<'_>> = among.collect();
            let Agreement { worst, beyond } = other_kernels(&alone, &among, self.limits.tf32);
            shown.worst = shown.worst.max(worst);
            if let Some(difference) = beyond {
                if misshapen {
                    return Err(self.size_doubt(spec, rows, difference, shown.kind));
                }
                if let Some(beyond) = shown.beyond.get_mut(index)
                    && beyond
                        .as_ref()
                        .is_none_or(|(_, worst)| difference.part > worst.part)
                {
                    *beyond = Some((rows, difference));
                }
            }
        }
        Ok(())
    }

    /// Whether the row at `place` is the same in two executions that differ in all other rows.
    fn same_beside(
        &self,
        before: &BatchOutput,
        after: &BatchOutput,
        place: usize,
        rows: usize,
        kind: Kind,
    ) -> Result<(), RowDependence> {
        for (index, spec) in self.metadata.outputs.iter().enumerate() {
            if self.axes.get(index).is_none_or(|axis| !axis.rows) {
                continue;
            }
            let (Some(before), Some(after)) = (before.get(index), after.get(index)) else {
                continue;
            };
            if before.shape() != after.shape() {
                return Err(lengths(spec, before, after));
            }
            let row = |output| Elements::row(output, place, rows);
            if let (Some(one), Some(other)) = (row(before), row(after))
                && let Some(difference) = same_kernels(&one, &other)
            {
                return Err(RowDependence::Neighbours {
                    output: spec.name.clone(),
                    rows,
                    values: (difference.one, difference.other),
                    of: kind.describe(&self.metadata),
                });
            }
        }
        Ok(())
    }

    /// By output, what `of` says of its rows alone; `false` for one that has none.
    fn of_rows(&self, alone: &[BatchOutput], of: impl Fn(&[Elements<'_>]) -> bool) -> Vec<bool> {
        let flags = self.axes.iter().enumerate().map(|(index, axis)| {
            let outputs = alone.iter().filter_map(|outputs| outputs.get(index));
            let rows = outputs.filter_map(|output| Elements::row(output, 0, 1));
            let rows: Vec<Elements<'_>> = rows.collect();
            axis.rows && !rows.is_empty() && of(&rows)
        });
        flags.collect()
    }

    /// How outputs are handed out, by what was seen.
    fn plan(&self) -> DivisionPlan {
        let Some(first) = &self.first else {
            return DivisionPlan::default();
        };
        let specs = self.metadata.outputs.iter();
        let outputs = self.axes.iter().zip(specs).zip(first);
        let plan = |((axis, spec), output): ((&Axis, &TensorSpec), &ModelOutput)| {
            let sizes = output.shape().iter().enumerate();
            if axis.rows {
                let sizes = sizes.skip(1);
                OutputPlan {
                    division: Division::Rows,
                    sizes: sizes
                        .map(|(axis, size)| self.explained(spec, axis, *size, self.first_open))
                        .collect(),
                }
            } else {
                OutputPlan {
                    division: Division::Shared,
                    sizes: sizes
                        .map(|(axis, size)| self.explained(spec, axis, *size, self.first_open))
                        .collect(),
                }
            }
        };
        DivisionPlan {
            outputs: outputs.map(plan).collect(),
        }
    }

    /// What was executed and compared, for people.
    fn tried(&self, shown: &[Shown]) -> String {
        if self.sizes.is_empty() {
            return "nothing could be executed".to_owned();
        }
        let sizes: Vec<String> = self.sizes.iter().map(ToString::to_string).collect();
        let mut text = format!("executions of {} row(s)", sizes.join(", "));
        for (index, kind) in shown.iter().enumerate() {
            text.push_str(if index == 0 { " of " } else { "; of " });
            text.push_str(&kind.kind.describe(&self.metadata));
            if kind.worst > 0.0 {
                text.push_str(", apart by ");
                text.push_str(&percent(kind.worst));
                text.push_str(" between sizes");
            }
            if !kind.is_clean() {
                text.push_str(", taken for rounding");
            }
        }
        if let Some(stopped) = &self.stopped {
            text.push_str("; none larger, because ");
            text.push_str(stopped);
        }
        text
    }
}

impl Unusable {
    fn into_dependence(self) -> RowDependence {
        match self {
            Self::Refused(reason) => RowDependence::Untested(reason),
            Self::OneRow(reason) => RowDependence::Signature(format!(
                "the model takes one row, and refuses two: {reason}"
            )),
            Self::TooLarge => RowDependence::Untested("its rows are too large".to_owned()),
            Self::TooSlow(run) => RowDependence::Untested(format!(
                "a run of one row takes {:.1} s, which is too long to make the necessary ones",
                run.as_secs_f64()
            )),
        }
    }

    /// How much it says about the model.
    fn rank(&self) -> u8 {
        match self {
            Self::TooLarge => 0,
            Self::Refused(_) => 1,
            Self::TooSlow(_) => 2,
            Self::OneRow(_) => 3,
        }
    }
}

/// The one of two that says more.
fn worse(known: Option<Unusable>, next: Unusable) -> Unusable {
    match known {
        Some(known) if known.rank() >= next.rank() => known,
        _ => next,
    }
}

fn bytes_of(output: &ModelOutput) -> usize {
    let view = output.view();
    view.len()
        .saturating_mul(view.datatype().size().unwrap_or(size_of::<String>()))
}
