//! The sessions of one model, made with the settings that are known, else with those that a short measurement speaks for.
//!
//! Invariant: settings given by the user are never overridden.

use std::time::Duration;

use crate::model::ModelMetadata;
use crate::models::settings::{DEFAULT_MAX_BATCH_SIZE, Origin};
use crate::runtime::LoadError;
use crate::runtime::buckets::Buckets;
use crate::runtime::session::{OpenedModel, OrtModel};
use crate::runtime::tuning::{
    self, Budget, Effort, Measurement, ModelSettings, Tuned, TuningConstraints,
};

/// Runs up to this long may hold up the connections beside them. It is some ten times what waking an instance's thread,
/// and waking the connection again, cost on a busy machine.
const SHORT_RUN: Duration = Duration::from_micros(500);

/// What was made.
pub(crate) struct Sessions {
    /// One model per instance.
    pub(crate) models: Vec<OrtModel>,
    /// The settings.
    pub(crate) choice: ModelSettings,
    /// Where they come from.
    pub(crate) origin: Origin,
    /// Whether every model has run each size that is merged.
    pub(crate) warm: bool,
    /// What was measured for the settings, if anything.
    pub(crate) measurements: Vec<Measurement>,
}

/// Makes the sessions of `opened`, of which `first` is there.
pub(super) fn make(
    opened: &OpenedModel<'_>,
    first: OrtModel,
    constraints: &TuningConstraints,
    known: Option<(ModelSettings, Origin)>,
    time: Option<Duration>,
) -> Result<Sessions, LoadError> {
    let on_gpu = opened.provider.is_gpu();
    let (choice, origin) = match (known, time) {
        (Some(known), _) => known,
        (None, Some(time)) if !on_gpu => {
            let budget = Budget {
                time,
                effort: Effort::BRIEF,
                everything: false,
            };
            let Tuned {
                models,
                choice,
                measurements,
            } = tuning::tune(opened, first, constraints, budget)?;
            return Ok(Sessions {
                models,
                choice,
                origin: Origin::Start,
                warm: choice.measured,
                measurements,
            });
        }
        _ => (constraints.untuned(), Origin::Start),
    };
    let threads = choice.instance_group.intra_op_threads;
    let mut models = Vec::new();
    // The first session was made before the model's checksum and signature were known. One that does not fit is let go
    // before others are made.
    if first.intra_op_threads() == threads {
        models.push(first);
    } else {
        drop(first);
    }
    while models.len() < choice.instance_group.instances {
        models.push(opened.session(threads)?);
    }
    Ok(Sessions {
        models,
        choice,
        origin,
        warm: false,
        measurements: Vec::new(),
    })
}

/// The rows up to which each run of `sessions`, by all that shapes tell, is so short that it may be made beside the
/// connections; nothing if that is not so for the usual sizes. Who asks for a number of instances asks for as many threads.
pub(super) fn short_rows(
    opened: &OpenedModel<'_>,
    metadata: &ModelMetadata,
    sessions: &mut Sessions,
    max_batch_size: usize,
) -> Result<Option<usize>, LoadError> {
    let by_itself = sessions.choice.instance_group.intra_op_threads == 1;
    let on_cpu = !opened.provider.is_gpu();
    let Some(model) = sessions.models.first_mut() else {
        return Ok(None);
    };
    // A first dimension that is no batch may be as large as a client likes.
    let bounded = opened.has_bounded_work() && !metadata.has_open_sizes();
    if !(on_cpu && by_itself && bounded) {
        return Ok(None);
    }
    let most = if metadata.has_rows() {
        // A start is not to take longer because larger executions are allowed.
        max_batch_size.min(DEFAULT_MAX_BATCH_SIZE)
    } else {
        1
    };
    // In steps, so that a model whose runs are long makes none of the longest only to show it.
    for rows in Buckets::up_to(most).sizes() {
        let measured = sessions
            .measurements
            .iter()
            .find(|measurement| {
                measurement.rows == rows && measurement.instance_group.intra_op_threads == 1
            })
            .map(|measurement| measurement.run);
        let run = match measured {
            Some(run) => Some(run),
            None => tuning::run_time(model, rows, opened.path())?,
        };
        if run.is_none_or(|run| run > SHORT_RUN) {
            return Ok(None);
        }
    }
    Ok(Some(most))
}

/// The measurements as one line of the log has them: instances x threads x rows: rows/s, time of a run.
pub(super) fn summary(measurements: &[Measurement]) -> String {
    let one = |measurement: &Measurement| {
        format!(
            "{}x{}x{}: {:.0}/s {:.3} ms",
            measurement.instance_group.instances,
            measurement.instance_group.intra_op_threads,
            measurement.rows,
            measurement.rows_per_second,
            measurement.run.as_secs_f64() * 1e3
        )
    };
    measurements.iter().map(one).collect::<Vec<_>>().join("; ")
}
