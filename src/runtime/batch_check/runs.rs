//! The executions of a trial: rows of one kind, alone, together and beside others.
//!
//! Invariant: every execution is timed, and no input is made up that is larger than what may be.

use std::collections::BTreeSet;

use super::pace::{Clock, Pace};
use super::rows::{self, Kind, Row};
use super::stop::{Stop, Unusable, worse};
use crate::model::ModelMetadata;
use crate::model::operators::Operators;
use crate::runtime::ModelOutput;
use crate::runtime::dummy_inputs;
use crate::runtime::{BatchOutput, Model, RuntimeError};

/// Sizes to try for open dimensions other than the batch, until the model takes one: images and texts, and at last sounds.
/// At 1, a wrong axis may hide.
const OPEN: [usize; 10] = [64, 224, 48, 32, 16, 3, 1, 512, 1600, 16_000];

/// The executions of a trial.
pub(super) struct Runs<'a> {
    model: &'a mut dyn Model,
    metadata: &'a ModelMetadata,
    /// What a refusal is told by.
    operators: &'a Operators,
    /// Bytes of an input that may be made up.
    largest: usize,
    pub(super) pace: Pace<'a>,
    /// The numbers of rows that were executed.
    pub(super) sizes: BTreeSet<usize>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(
        model: &'a mut dyn Model,
        metadata: &'a ModelMetadata,
        operators: &'a Operators,
        largest: usize,
        clock: Clock<'a>,
    ) -> Self {
        Self {
            model,
            metadata,
            operators,
            largest,
            pace: Pace::new(clock),
            sizes: BTreeSet::new(),
        }
    }

    /// Executes `rows` with all but the one at `place` replaced, by the first others that the model takes.
    pub(super) fn beside_others(
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
    pub(super) fn execute(
        &mut self,
        kind: Kind,
        rows: &[Row],
        open: usize,
    ) -> Result<BatchOutput, Stop> {
        let size = dummy_inputs::Size {
            rows: rows.len(),
            open,
            largest: self.largest,
        };
        let started = self.pace.now();
        let result = rows::run(self.model, kind, rows, open, self.largest);
        let took = self.pace.now().saturating_sub(started);
        match result {
            Ok(Some(outputs)) => {
                let bytes = outputs.iter().map(bytes_of).sum::<usize>();
                let bytes = bytes.saturating_add(dummy_inputs::input_bytes(self.metadata, size));
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
    pub(super) fn open_size(&mut self, kind: Kind) -> Result<(usize, BatchOutput), Stop> {
        let sizes = if self.metadata.has_open_shapes() {
            &OPEN[..]
        } else {
            &[1]
        };
        let mut unusable = None;
        for open in sizes {
            match self.execute(kind, &[Row::ordinary(0)], *open) {
                Ok(outputs) => return Ok((*open, outputs)),
                Err(Stop::Unusable(reason)) => unusable = Some(worse(unusable, reason)),
                Err(stop) => return Err(stop),
            }
        }
        Err(unusable.unwrap_or(Unusable::TooLarge).into())
    }
}

fn bytes_of(output: &ModelOutput) -> usize {
    let view = output.view();
    view.len()
        .saturating_mul(view.datatype().size().unwrap_or(size_of::<String>()))
}
