//! One trial of a model: which executions are made, in which order, and what follows from them.
//!
//! Invariant: a doubt ends the trial, and what was not executed is not claimed.

use super::comparison::{Elements, are_telling};
use super::outputs::{Outputs, Shown, size_doubt};
use super::pace::Clock;
use super::row_dependence::{RowDependence, no_rows, percent};
use super::rows::{Kind, Row};
use super::runs::Runs;
use super::stop::{Stop, Unusable, worse};
use super::verdict::Verdict;
use crate::model::ModelMetadata;
use crate::model::flow::Flow;
use crate::model::operators::Operators;
use crate::runtime::{Model, RuntimeError};

/// Different rows that are executed alone. Batches repeat them.
const ROWS: usize = 3;

/// The first size beyond those that every model is tried with, and by how much sizes grow from there.
const FIRST_LARGE: usize = 8;
const GROWTH: usize = 4;

/// The largest difference, as a part of an output's largest value, that may be amplified rounding.
const AMPLIFIED: f64 = 0.05;

/// How far a trial goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_rows: usize,
    pub(super) tf32: bool,
    /// Bytes of an input that may be made up.
    pub(super) largest: usize,
}

/// One trial of a model.
pub(super) struct Trial<'a> {
    metadata: &'a ModelMetadata,
    limits: Limits,
    runs: Runs<'a>,
    outputs: Outputs<'a>,
    /// The most rows for which everything was compared.
    rows: usize,
    /// Why larger executions were not tried.
    stopped: Option<String>,
}

impl<'a> Trial<'a> {
    /// A trial of `model`, which `metadata` describes.
    pub(super) fn new(
        model: &'a mut dyn Model,
        metadata: &'a ModelMetadata,
        (flows, operators): (&'a [Flow], &'a Operators),
        limits: Limits,
        clock: Clock<'a>,
    ) -> Self {
        Self {
            metadata,
            limits,
            runs: Runs::new(model, metadata, operators, limits.largest, clock),
            outputs: Outputs::new(metadata, flows, limits.tf32),
            rows: 1,
            stopped: None,
        }
    }

    /// Tries everything, or, if the rows are `trusted` not to depend on each other, only shapes.
    pub(super) fn run(mut self, trusted: bool) -> Result<Verdict, RuntimeError> {
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
            plan: self.outputs.plan(),
            tried: self.tried(&shown),
            dependence,
        })
    }

    /// Runs one row and two, to see what the outputs are.
    fn probe(&mut self) -> Result<(), Stop> {
        let mut kinds = Kind::of(self.metadata);
        kinds.extend(Kind::last_resorts(self.metadata));
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
        let (open, alone) = self.runs.open_size(kind)?;
        self.outputs.note_open(open);
        self.outputs.note_shapes(&alone, 1)?;
        let rows = [Row::ordinary(0), Row::ordinary(1)];
        let pair = self.runs.execute(kind, &rows, open)?;
        self.outputs.note_shapes(&pair, 2)?;
        Ok(())
    }

    fn compare(&mut self, shown: &mut Vec<Shown>) -> Result<(), Stop> {
        let mut unusable = None;
        for kind in Kind::of(self.metadata) {
            // One kind makes a verdict. More are tried if they cost little, or if a difference asks for them.
            let settled = shown.iter().any(Shown::is_clean);
            if settled && !self.runs.pace.has_time_for_kind(5, 2) {
                break;
            }
            self.try_next(kind, shown, &mut unusable)?;
            if !settled && shown.iter().any(Shown::is_clean) {
                self.enlarge(shown)?;
            }
        }
        if shown.is_empty() {
            // Each shows what one input does while the others hold zeros, so that one alone does not make a verdict.
            for kind in Kind::last_resorts(self.metadata) {
                self.try_next(kind, shown, &mut unusable)?;
            }
            self.enlarge(shown)?;
            let mut inputs = self.metadata.inputs.iter().enumerate();
            let constant = |index: usize| {
                !shown
                    .iter()
                    .any(|shown| shown.kind.varies(index, self.metadata))
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
                    return Err(size_doubt(self.metadata, spec, rows, difference, kind.kind));
                }
            }
        }
        Ok(())
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
                return Err(size_doubt(self.metadata, spec, rows, difference, kind.kind).into());
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
            if !self.runs.pace.is_small(rows) {
                self.stopped = Some(format!("executions of {rows} rows take much memory"));
            } else if !self.runs.pace.has_time_for_more(3, rows) {
                let seconds = self.runs.pace.expected(rows).as_secs_f64();
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
        let (open, first) = self.runs.open_size(kind)?;
        self.outputs.note_open(open);
        self.outputs.note_shapes(&first, 1)?;
        if is_first {
            // A first run may well take longer than others, but not by so much.
            self.afford(3)?;
            let again = self.runs.execute(kind, &[Row::ordinary(0)], open)?;
            self.outputs.note_shapes(&again, 1)?;
            self.outputs.repeats(&first, &again)?;
            self.afford(1)?;
        }
        let mut alone = vec![first];
        for number in 1..ROWS {
            if number > 1 && !self.runs.pace.has_time_for(1, 1) {
                break;
            }
            let row = Row::ordinary(u64::try_from(number).unwrap_or_default());
            let outputs = self.runs.execute(kind, &[row], open)?;
            self.outputs.note_shapes(&outputs, 1)?;
            alone.push(outputs);
        }
        self.outputs.same_lengths(&alone, open)?;
        let mut shown = Shown {
            kind,
            open,
            telling: self
                .outputs
                .of_rows(&alone, |rows| are_telling(rows, self.limits.tf32)),
            nothing: self
                .outputs
                .of_rows(&alone, |rows| rows.iter().all(Elements::say_nothing)),
            alone,
            beyond: vec![None; self.metadata.outputs.len()],
            worst: 0.0,
        };
        self.group(&mut shown, 2)?;
        self.rows = self.rows.max(2);
        if self.limits.max_rows > 2 && self.runs.pace.has_time_for(3, ROWS) {
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
        let run = self.runs.pace.expected(1);
        let rows = (1 + 3 * 2_usize).div_ceil(times);
        if self.runs.pace.can_afford(rows, 1) {
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
        let before = match self.runs.execute(kind, &ordinary, open) {
            Err(Stop::Unusable(Unusable::Refused(reason))) => {
                return Err(Unusable::OneRow(reason).into());
            }
            other => other?,
        };
        // A value that depends on others says more than a shape that does.
        let misshapen = self.outputs.note_shapes(&before, rows).err();
        self.outputs
            .agree(shown, &before, rows, misshapen.is_some())?;
        if let Some(dependence) = misshapen {
            return Err(dependence.into());
        }
        for place in [0, rows - 1] {
            let Some(after) = self.runs.beside_others(kind, &ordinary, place, open)? else {
                let reason = "it refuses all rows beside which others were to be tried".to_owned();
                return Err(Unusable::Refused(reason).into());
            };
            self.outputs.note_shapes(&after, rows)?;
            self.outputs
                .same_beside(&before, &after, place, rows, kind)?;
        }
        Ok(())
    }

    /// What was executed and compared, for people.
    fn tried(&self, shown: &[Shown]) -> String {
        if self.runs.sizes.is_empty() {
            return "nothing could be executed".to_owned();
        }
        let sizes: Vec<String> = self.runs.sizes.iter().map(ToString::to_string).collect();
        let mut text = format!("executions of {} row(s)", sizes.join(", "));
        for (index, kind) in shown.iter().enumerate() {
            text.push_str(if index == 0 { " of " } else { "; of " });
            text.push_str(&kind.kind.describe(self.metadata));
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
