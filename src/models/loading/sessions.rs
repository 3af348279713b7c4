//! The sessions of one model, and the settings that they are made with: the user's, those that `model-serving tune` wrote
//! down, those of the model that is replaced, or those that a short measurement speaks for, in this order.
//!
//! Invariant: settings given by the user are never overridden.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use super::row_trial::{DEFAULT_MAX_BATCH_SIZE, RowTrial};
use crate::model::Batchability;
use crate::model::ModelMetadata;
use crate::model::repository::ModelSource;
use crate::model::sidecar::TuningSettings;
use crate::runtime::LoadError;
use crate::runtime::buckets::Buckets;
use crate::runtime::provider::ExecutionProvider;
use crate::runtime::session::{InstanceGroup, OpenedModel, OrtModel};
use crate::runtime::tuning::{
    self, Budget, Effort, Measurement, ModelSettings, Tuned, TuningConstraints,
};

/// Runs up to this long may hold up the connections beside them. It is some ten times what waking an instance's thread,
/// and waking the connection again, cost on a busy machine.
const SHORT_RUN: Duration = Duration::from_micros(500);

/// Where settings come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This start: what was measured in it, or what is done without measuring.
    Start,
    /// What the sidecar says under `[tuning]`.
    Sidecar,
    /// The model that is replaced.
    Before,
}

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

/// What the user has fixed by flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Sessions per model.
    pub instances: Option<NonZeroUsize>,
    /// Threads per session.
    pub intra_op_threads: Option<NonZeroUsize>,
    /// Rows per execution.
    pub max_batch_size: Option<NonZeroUsize>,
}

/// The most rows that the user wants in one execution, if that is said.
pub(super) fn fixed_batch_size(flags: Fixed, source: &ModelSource) -> Option<NonZeroUsize> {
    flags
        .max_batch_size
        .or(source.sidecar.batching.max_batch_size)
}

/// The most rows that may be executed together by the settings.
pub(super) fn max_batch_size(flags: Fixed, source: &ModelSource) -> usize {
    fixed_batch_size(flags, source).map_or(DEFAULT_MAX_BATCH_SIZE, NonZeroUsize::get)
}

/// What the user leaves open of a model's settings on `provider`. Before its rows were tried, it is not known whether they
/// may be merged.
pub(crate) fn constraints(
    flags: Fixed,
    source: &ModelSource,
    provider: ExecutionProvider,
    trial: Option<&RowTrial>,
) -> TuningConstraints {
    let fixed = fixed_batch_size(flags, source);
    let max_batch_size = max_batch_size(flags, source);
    let merges = trial.is_none_or(|trial| trial.metadata.batchability == Batchability::Rows);
    // A GPU works on one batch at a time, and its host's threads only hand it over.
    let on_gpu = provider.is_gpu().then_some(NonZeroUsize::MIN);
    TuningConstraints {
        // The number that the container's CPU quota allows, not the number that the host has.
        cpus: thread::available_parallelism().map_or(1, NonZeroUsize::get),
        instances: flags.instances.or(on_gpu).map(NonZeroUsize::get),
        intra_op_threads: flags.intra_op_threads.or(on_gpu).map(NonZeroUsize::get),
        max_batch_size,
        mergeable: merges && max_batch_size > 1,
        independent_rows: trial.map_or(usize::MAX, |trial| trial.independent_rows),
        merging_fixed: fixed.is_some() || on_gpu.is_some(),
    }
}

/// The most sessions of a model that there are at once, with what the user has fixed.
pub(crate) fn most_sessions(flags: Fixed) -> usize {
    let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    flags
        .instances
        .map_or(cpus.clamp(2, tuning::MAX_INSTANCES), NonZeroUsize::get)
}

/// The threads of the first session, which is made before it is known whether what is written down is of this model.
pub(crate) fn first_threads(
    constraints: &TuningConstraints,
    written: Option<&TuningSettings>,
) -> usize {
    let written = written.filter(|written| written.cpus.get() == constraints.cpus);
    let choice = written.and_then(|written| as_choice(written, constraints));
    choice.map_or(constraints.first_threads(), |choice| {
        choice.instance_group.intra_op_threads
    })
}

/// The settings that are known without measuring, if any.
pub(super) fn known(
    constraints: &TuningConstraints,
    written: Option<&TuningSettings>,
    replaced: Option<(TuningConstraints, ModelSettings)>,
    sha256: &str,
) -> Option<(ModelSettings, Origin)> {
    if let Some(written) = written {
        let stale = written.cpus.get() != constraints.cpus || written.sha256 != sha256;
        if stale {
            tracing::warn!(
                "[tuning] in the sidecar was written for another machine or model, and is ignored; run 'model-serving tune' again"
            );
        } else if let Some(choice) = as_choice(written, constraints) {
            return Some((choice, Origin::Sidecar));
        }
    }
    replaced
        .filter(|(then, _)| then.leaves_the_same_as(constraints))
        .map(|(_, choice)| {
            let (merge_rows, measured) = up_to(choice.merge_rows, constraints.merge_limit());
            let measured = measured && choice.measured;
            let choice = ModelSettings {
                merge_rows,
                measured,
                ..choice
            };
            (choice, Origin::Before)
        })
}

/// As many of `rows` as may be merged, and whether what was measured for `rows` speaks for them.
fn up_to(rows: usize, limit: usize) -> (usize, bool) {
    (rows.min(limit), rows <= limit)
}

/// What is written down, if the user has not fixed something else.
fn as_choice(written: &TuningSettings, constraints: &TuningConstraints) -> Option<ModelSettings> {
    let (instances, threads) = (written.instances.get(), written.intra_op_threads.get());
    let fits = constraints.instances.is_none_or(|fixed| fixed == instances)
        && constraints
            .intra_op_threads
            .is_none_or(|fixed| fixed == threads);
    let limit = constraints.merge_limit();
    let (merge_rows, measured) = match written.merge_rows {
        Some(rows) if !constraints.merging_fixed => up_to(rows.get(), limit),
        _ => (limit, false),
    };
    fits.then_some(ModelSettings {
        instance_group: InstanceGroup {
            instances,
            intra_op_threads: threads,
        },
        merge_rows,
        measured,
    })
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
