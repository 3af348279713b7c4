//! Instances, threads and batch sizes for one model on this machine's CPUs, chosen by running it.
//!
//! No fixed settings suit every model: on two CPUs a row in a batch of 32 costs a tiny network a fifteenth of a single
//! row, while a convolutional one loses by every batch. So they are tried, for a short while, before the model serves.
//!
//! Invariant: what the user has fixed is never changed, and what was not shown to pay is not done.

mod choice;
mod measurement;

use std::path::Path;
use std::time::{Duration, Instant};

pub use choice::{Choice, Freedom, placements};
pub use measurement::{Effort, Measurement};

use super::buckets::Buckets;
use super::session::{OpenedModel, OrtModel, Placement};
use super::{LoadError, RuntimeError, warmup};
use choice::{is_still_rising, merge_rows, threads_pay};
use measurement::measure;

/// Runs shorter than this are no faster with more threads: waking one costs about as much.
const QUICK: Duration = Duration::from_micros(200);

/// What tuning found, with the sessions that it was found with.
pub struct Tuned {
    /// One model per instance; each has run every size that is merged, if anything was measured.
    pub models: Vec<OrtModel>,
    /// What suits the model best.
    pub choice: Choice,
    /// Everything that was measured, in the order in which it was. Nothing if the model refuses made-up rows.
    pub measurements: Vec<Measurement>,
}

/// How long may be tuned, and how carefully.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Nothing new is tried afterwards.
    pub time: Duration,
    /// How long each setting is measured.
    pub effort: Effort,
    /// Whether settings are tried that cannot be expected to win, for the table's sake.
    pub everything: bool,
}

/// Tries the settings that `freedom` leaves open. `first` is the first session of the model `opened`, with the threads
/// that the first of [`placements`] has.
///
/// # Errors
/// When a session cannot be created, or a run fails for another reason than made-up values.
pub fn tune(
    opened: &OpenedModel<'_>,
    first: OrtModel,
    freedom: &Freedom,
    budget: Budget,
) -> Result<Tuned, LoadError> {
    let placements = placements(freedom, opened.file_size());
    let placement = placements.first().copied();
    let placement = placement.unwrap_or(freedom.untuned().placement);
    let mut tuning = Tuning {
        opened,
        freedom,
        budget,
        end: Instant::now() + budget.time,
        measurements: Vec::new(),
        models: vec![first],
        placement,
    };
    match tuning.run(&placements) {
        Ok(choice) => Ok(Tuned {
            models: tuning.models,
            choice,
            measurements: tuning.measurements,
        }),
        Err(Failure::Refused) => {
            // Zeros are what we can make up, not what the model was made for; some models rightly refuse them.
            let choice = freedom.untuned();
            tuning.models.truncate(choice.placement.instances);
            if choice.placement.intra_op_threads != placement.intra_op_threads {
                tuning.models.clear();
            }
            tuning.placement = choice.placement;
            tuning.add_instances()?;
            Ok(Tuned {
                models: tuning.models,
                choice,
                measurements: Vec::new(),
            })
        }
        Err(Failure::Load(error)) => Err(error),
    }
}

/// The longest run that the rows of one request can make, or nothing if the model refuses made-up rows.
///
/// # Errors
/// When a run fails for another reason.
pub fn longest_run(
    model: &mut OrtModel,
    rows: usize,
    path: &Path,
) -> Result<Option<Duration>, LoadError> {
    match measure(std::slice::from_mut(model), 1, rows, Effort::BRIEF) {
        Ok(measurement) => Ok(Some(measurement.run)),
        Err(RuntimeError::Refused(_)) => Ok(None),
        Err(source) => Err(failed(path, rows, source)),
    }
}

fn failed(path: &Path, rows: usize, source: RuntimeError) -> LoadError {
    LoadError::WarmUp {
        path: path.to_owned(),
        rows,
        source,
    }
}

/// Why nothing was chosen.
enum Failure {
    /// The model refuses made-up rows, so that nothing can be measured.
    Refused,
    Load(LoadError),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

/// Tuning in progress: the best setting so far, and its sessions.
struct Tuning<'a, 'l> {
    opened: &'a OpenedModel<'l>,
    freedom: &'a Freedom,
    budget: Budget,
    end: Instant,
    measurements: Vec<Measurement>,
    models: Vec<OrtModel>,
    placement: Placement,
}

impl Tuning<'_, '_> {
    fn run(&mut self, placements: &[Placement]) -> Result<Choice, Failure> {
        let alone = self.measure_one_row()?;
        if alone.run >= QUICK {
            self.choose_placement(placements)?;
            return Ok(Choice {
                placement: self.placement,
                merge_rows: self.choose_merge_rows()?,
            });
        }
        let merge_rows = self.choose_merge_rows()?;
        let rates = self.measurements.iter().map(|size| size.rows_per_second);
        let quick = self.freedom.quick(rates.fold(0.0, f64::max));
        if quick.intra_op_threads != self.placement.intra_op_threads {
            self.models.clear();
        }
        self.placement = quick;
        let measured = self.models.len();
        self.add_instances()?;
        for model in self.models.iter_mut().skip(measured) {
            for rows in Buckets::up_to(merge_rows).sizes() {
                warmup::run_once(model, rows)
                    .map_err(|error| failed(self.opened.path(), rows, error))?;
            }
        }
        Ok(Choice {
            placement: quick,
            merge_rows,
        })
    }

    /// Measures each of `placements`, and keeps the sessions of the best.
    fn choose_placement(&mut self, placements: &[Placement]) -> Result<(), Failure> {
        self.add_instances()?;
        let mut best = self.measure_one_row()?;
        for challenger in placements.iter().skip(1) {
            if Instant::now() >= self.end {
                break;
            }
            let before = std::mem::replace(&mut self.placement, *challenger);
            let models = std::mem::take(&mut self.models);
            self.add_instances()?;
            let measurement = self.measure_one_row()?;
            if threads_pay(&best, &measurement) {
                best = measurement;
            } else {
                self.placement = before;
                self.models = models;
            }
        }
        Ok(())
    }

    /// Measures batches until they gain nothing any more.
    fn choose_merge_rows(&mut self) -> Result<usize, Failure> {
        if !self.freedom.mergeable || self.freedom.merging_fixed {
            return Ok(self.freedom.merge_limit());
        }
        let mut sizes = vec![self.measure_one_row()?];
        for rows in Buckets::up_to(self.freedom.max_batch_size).sizes() {
            let hopeless = !is_still_rising(&sizes) && !self.budget.everything;
            if rows == 1 {
                continue;
            }
            if hopeless || !self.has_time_for(rows, sizes.last()) {
                break;
            }
            sizes.push(self.measure(rows)?);
        }
        // A batch is not formed for one disturbed measurement: what seems to pay must do so twice.
        let rows = merge_rows(&sizes);
        if rows > 1 {
            for size in sizes
                .iter_mut()
                .filter(|size| size.rows == 1 || size.rows == rows)
            {
                let again = self.measure(size.rows)?;
                size.rows_per_second = size.rows_per_second.max(again.rows_per_second);
            }
        }
        Ok(merge_rows(&sizes))
    }

    /// Whether measuring `rows` rows will probably end in time, `last` being what a smaller size took.
    fn has_time_for(&self, rows: usize, last: Option<&Measurement>) -> bool {
        let last = last.map_or(Duration::ZERO, |last| {
            let ratio = u32::try_from(rows.div_ceil(last.rows)).unwrap_or(u32::MAX);
            last.run.saturating_mul(ratio)
        });
        Instant::now() + self.budget.effort.longest(last) <= self.end
    }

    /// The measurement of one row with the sessions there are, taken now unless it was before.
    fn measure_one_row(&mut self) -> Result<Measurement, Failure> {
        let instances = self.models.len();
        let known = self.measurements.iter().find(|measurement| {
            measurement.rows == 1
                && measurement.placement.instances == instances
                && measurement.placement.intra_op_threads == self.placement.intra_op_threads
        });
        match known {
            Some(known) => Ok(*known),
            None => self.measure(1),
        }
    }

    fn measure(&mut self, rows: usize) -> Result<Measurement, Failure> {
        let threads = self.placement.intra_op_threads;
        let measured = measure(&mut self.models, threads, rows, self.budget.effort);
        let measurement = measured.map_err(|error| match error {
            RuntimeError::Refused(_) => Failure::Refused,
            error => Failure::Load(failed(self.opened.path(), rows, error)),
        })?;
        self.measurements.push(measurement);
        Ok(measurement)
    }

    /// Creates the sessions that the placement still lacks.
    fn add_instances(&mut self) -> Result<(), LoadError> {
        while self.models.len() < self.placement.instances {
            let model = self.opened.session(self.placement.intra_op_threads)?;
            self.models.push(model);
        }
        Ok(())
    }
}
