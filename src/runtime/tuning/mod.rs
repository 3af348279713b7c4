//! Instances, threads and batch sizes for one model on this machine's CPUs, chosen by running it.
//!
//! No fixed settings suit every model: on two CPUs a row in a batch of 32 costs a tiny network a fifteenth of a single
//! row, while a convolutional one loses by every batch. So they are tried, for a short while, before the model serves.
//!
//! Invariant: what the user has fixed is never changed, what was shown not to pay is not done, and what was not measured is
//! not said to have been.

mod measurement;
mod settings;

use std::path::Path;
use std::time::{Duration, Instant};

pub use measurement::{Effort, Measurement};
pub use settings::{MAX_INSTANCES, ModelSettings, TuningConstraints, instance_groups};

use super::buckets::Buckets;
use super::session::{InstanceGroup, OpenedModel, OrtModel};
use super::{LoadError, RuntimeError, warmup};
use measurement::measure;
use settings::{is_still_rising, merge_rows, merging, threads_pay};

/// Runs shorter than this are no faster with more threads: waking one costs about as much.
const QUICK: Duration = Duration::from_micros(200);

/// The longest that one setting is measured where nobody has said how long.
const LONGEST: Duration = Duration::from_secs(2);

/// What tuning found, with the sessions that it was found with.
pub struct Tuned {
    /// One model per instance; each has run every size that is merged, if anything was measured and the user has not fixed
    /// what is merged.
    pub models: Vec<OrtModel>,
    /// What suits the model best.
    pub choice: ModelSettings,
    /// Everything that was measured, in the order in which it was. Nothing if the model refuses dummy rows.
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

/// Tries the settings that `constraints` leaves open on `opened`, of which `first` is a session, preferably one with the
/// threads that [`TuningConstraints::first_threads`] says.
///
/// # Errors
/// When a session cannot be created, or a run fails for another reason than dummy values.
pub fn tune(
    opened: &OpenedModel<'_>,
    first: OrtModel,
    constraints: &TuningConstraints,
    budget: Budget,
) -> Result<Tuned, LoadError> {
    let mut tuning = Tuning {
        opened,
        constraints,
        budget,
        end: Instant::now() + budget.time,
        measurements: Vec::new(),
        models: vec![first],
    };
    match tuning.run() {
        Ok(choice) => Ok(Tuned {
            models: tuning.models,
            choice,
            measurements: tuning.measurements,
        }),
        Err(Failure::Refused) => {
            // Zeros are what we can make up, not what the model was made for; some models rightly refuse them.
            let choice = constraints.untuned();
            tuning.make_sessions(choice.instance_group)?;
            Ok(Tuned {
                models: tuning.models,
                choice,
                measurements: Vec::new(),
            })
        }
        Err(Failure::Load(error)) => Err(error),
    }
}

/// The median time of a run of `rows` rows, or nothing if the model refuses dummy rows.
///
/// # Errors
/// When a run fails for another reason.
pub fn run_time(
    model: &mut OrtModel,
    rows: usize,
    path: &Path,
) -> Result<Option<Duration>, LoadError> {
    let end = Instant::now() + LONGEST;
    match measure(std::slice::from_mut(model), rows, Effort::BRIEF, end) {
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
    /// The model refuses dummy rows, so that nothing can be measured.
    Refused,
    Load(LoadError),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

/// Tuning in progress: the sessions of the best setting so far.
struct Tuning<'a, 'l> {
    opened: &'a OpenedModel<'l>,
    constraints: &'a TuningConstraints,
    budget: Budget,
    end: Instant,
    measurements: Vec<Measurement>,
    models: Vec<OrtModel>,
}

impl Tuning<'_, '_> {
    fn run(&mut self) -> Result<ModelSettings, Failure> {
        let untuned = self.constraints.untuned();
        let threads = self.constraints.first_threads();
        self.make_sessions(InstanceGroup {
            instances: 1,
            intra_op_threads: threads,
        })?;
        let alone = self.measure_one_row()?;
        if alone.run >= QUICK {
            if !self.has_time_for(alone.run) {
                self.make_sessions(untuned.instance_group)?;
                return Ok(untuned);
            }
            let instance_group = self.choose_instance_group(alone.run)?;
            let (merge_rows, measured) = self.choose_merge_rows()?;
            return Ok(ModelSettings {
                instance_group,
                merge_rows,
                measured,
            });
        }
        let (merge_rows, measured) = self.choose_merge_rows()?;
        let rates = self.measurements.iter().map(|size| size.rows_per_second);
        let rate = rates.fold(0.0, f64::max);
        let instance_group = self.constraints.quick(rate, self.opened.weights());
        self.make_sessions(instance_group)?;
        // The first has run every size that was measured.
        let others = self.models.iter_mut().skip(1).filter(|_| measured);
        for model in others {
            for rows in Buckets::up_to(merge_rows).sizes() {
                warmup::run_once(model, rows)
                    .map_err(|error| failed(self.opened.path(), rows, error))?;
            }
        }
        Ok(ModelSettings {
            instance_group,
            merge_rows,
            measured,
        })
    }

    /// Measures every placement, and keeps the sessions of the best. `run` is what a run takes alone.
    fn choose_instance_group(&mut self, run: Duration) -> Result<InstanceGroup, Failure> {
        let mut best: Option<Measurement> = None;
        for instance_group in instance_groups(self.constraints, self.opened.weights()) {
            if best.is_some() && !self.has_time_for(run) {
                break;
            }
            let before = std::mem::take(&mut self.models);
            // Only the first can use a session that is there; later ones stand beside the best so far.
            if best.is_none() {
                self.models = before;
                self.make_sessions(instance_group)?;
                best = Some(self.measure_one_row()?);
                continue;
            }
            self.make_sessions(instance_group)?;
            let measurement = self.measure_one_row()?;
            if best.is_none_or(|best| threads_pay(&best, &measurement)) {
                best = Some(measurement);
            } else {
                self.models = before;
            }
        }
        Ok(
            best.map_or(self.constraints.untuned().instance_group, |best| {
                best.instance_group
            }),
        )
    }

    /// Measures batches until they gain nothing any more. Says how many rows to merge, and whether that was measured.
    fn choose_merge_rows(&mut self) -> Result<(usize, bool), Failure> {
        let limit = self.constraints.merge_limit();
        if limit == 1 || self.constraints.merging_fixed {
            return Ok((limit, false));
        }
        let mut sizes = vec![self.measure_one_row()?];
        for rows in Buckets::up_to(limit).sizes() {
            let hopeless = !is_still_rising(&sizes) && !self.budget.everything;
            if rows == 1 {
                continue;
            }
            // A smaller size tells how long this one will take.
            let expected = sizes.last().map_or(Duration::ZERO, |last| {
                let ratio = u32::try_from(rows.div_ceil(last.rows)).unwrap_or(u32::MAX);
                last.run.saturating_mul(ratio)
            });
            if hopeless || !self.has_time_for(expected) {
                break;
            }
            match self.measure(rows) {
                Ok(size) => sizes.push(size),
                // It took dummy rows of other values.
                Err(Failure::Refused) => break,
                Err(error) => return Err(error),
            }
        }
        // A batch is not formed for one disturbed measurement: what seems to pay must do so twice.
        let rows = merge_rows(&sizes);
        if rows > 1 {
            for size in &mut sizes {
                if size.rows == 1 || size.rows == rows {
                    let again = self.measure(size.rows)?;
                    size.rows_per_second = size.rows_per_second.max(again.rows_per_second);
                }
            }
        }
        Ok(merging(&sizes, limit))
    }

    /// Whether measuring runs of this time will probably end in time.
    fn has_time_for(&self, run: Duration) -> bool {
        Instant::now() + self.budget.effort.longest(run) <= self.end
    }

    /// The measurement of one row with the sessions there are, taken now unless it was before.
    fn measure_one_row(&mut self) -> Result<Measurement, Failure> {
        let instance_group = measurement::instance_group_of(&self.models);
        let known = self.measurements.iter().find(|measurement| {
            measurement.rows == 1 && measurement.instance_group == instance_group
        });
        match known {
            Some(known) => Ok(*known),
            None => self.measure(1),
        }
    }

    fn measure(&mut self, rows: usize) -> Result<Measurement, Failure> {
        let measured = measure(&mut self.models, rows, self.budget.effort, self.end);
        let measurement = measured.map_err(|error| match error {
            RuntimeError::Refused(_) => Failure::Refused,
            error => Failure::Load(failed(self.opened.path(), rows, error)),
        })?;
        self.measurements.push(measurement);
        Ok(measurement)
    }

    /// Keeps the sessions that `instance_group` has, lets others go, and creates those that it lacks.
    fn make_sessions(&mut self, instance_group: InstanceGroup) -> Result<(), LoadError> {
        let threads = instance_group.intra_op_threads;
        self.models
            .retain(|model| model.intra_op_threads() == threads);
        self.models.truncate(instance_group.instances);
        while self.models.len() < instance_group.instances {
            self.models.push(self.opened.session(threads)?);
        }
        Ok(())
    }
}
