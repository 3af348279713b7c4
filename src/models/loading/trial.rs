//! First runs of a loaded model: whether its rows may share an execution, and the sizes that will occur.
//!
//! Invariant: rows of different requests are merged only if they were shown not to touch each other, and whatever is said
//! of that, or of what it pays, was tried or is marked as not tried.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::row_trial::RowTrial;
use super::sessions::Sessions;
use crate::model::repository::ModelSource;
use crate::model::rows::Rows;
use crate::model::{Batchability, Dim, ModelMetadata};
use crate::models::settings::{DEFAULT_MAX_BATCH_SIZE, Origin};
use crate::runtime::batch_check::{self, RowDependence, Verdict};
use crate::runtime::buckets::Buckets;
use crate::runtime::division::DivisionPlan;
use crate::runtime::session::{OpenedModel, OrtModel};
use crate::runtime::tuning::{Measurement, TuningConstraints};
use crate::runtime::{LoadError, Model, RuntimeError, warmup};
use crate::telemetry::metrics::Merging;

/// How long sizes may be warmed up that nothing has to be prepared for: most of them have been run by the trial.
const WARM_UP: Duration = Duration::from_millis(250);

/// The most rows that are made up on the CPU, where a size needs no preparation of its own. A start is not to take longer,
/// nor to take more memory, because larger executions are allowed: what holds for these is taken to hold for larger ones.
const MOST_ROWS: usize = DEFAULT_MAX_BATCH_SIZE;

/// Tries whether rows of `opened` depend on each other, in executions of up to `max_batch_size` rows of `model`.
///
/// # Errors
/// When the device or the runtime fails.
pub(super) fn try_rows(
    opened: &OpenedModel<'_>,
    model: &mut OrtModel,
    max_batch_size: usize,
    tf32: bool,
    source: &ModelSource,
) -> Result<RowTrial, LoadError> {
    let metadata = Arc::clone(&opened.metadata);
    if let Batchability::Never(_) = metadata.batchability {
        return Ok(RowTrial {
            metadata,
            dependence: Some("signature"),
            independent_rows: 1,
            plan: Arc::default(),
            tried: "its declaration alone".to_owned(),
        });
    }
    let trusted = source.sidecar.batching.check == Some(false);
    let (flows, operators) = (opened.flows(), opened.operators());
    // Where nothing is to be merged, it is of use all the same to know whether requests have rows, which are counted.
    let most = if max_batch_size == 1 {
        3
    } else {
        max_batch_size.min(MOST_ROWS)
    };
    let tried = if trusted {
        batch_check::probe(model, &flows, &operators)
    } else {
        batch_check::check(model, &flows, &operators, most, tf32)
    };
    let verdict = tried.map_err(|error| LoadError::BatchCheck {
        path: source.path.clone(),
        source: error,
    })?;
    let Verdict {
        dependence,
        rows,
        plan,
        tried,
    } = verdict;
    let rows_apart = opened.rows();
    let dependence = dependence.or_else(|| {
        if trusted {
            None
        } else {
            meeting(&metadata, &rows_apart)
        }
    });
    let tried = if trusted {
        format!("the sidecar's word ('check = false'), and {tried}")
    } else if rows_apart.iter().all(|rows| *rows == Rows::Apart) {
        format!("its graph, which keeps rows apart, and {tried}")
    } else {
        tried
    };
    let Some(dependence) = dependence else {
        return Ok(RowTrial {
            metadata: Arc::new(as_it_ran(&metadata, &plan)),
            dependence: None,
            // What holds for as many as are made up at most is taken to hold for more.
            independent_rows: if rows >= most {
                max_batch_size.max(rows)
            } else {
                rows
            },
            plan: Arc::new(plan),
            tried,
        });
    };
    let (kind, reason) = (dependence.kind(), dependence.to_string());
    if trusted {
        tracing::warn!(
            model = metadata.name,
            reason,
            "requests for this model are executed one by one, although its sidecar says 'check = false': its outputs cannot be divided"
        );
    } else if kind == "untested" {
        // That may be the fault of what we made up, and none of the model's.
        tracing::info!(
            model = metadata.name,
            reason,
            "requests for this model are executed one by one; if its rows are independent all the same, say 'check = false' under [batching] in its sidecar"
        );
    } else if kind != "signature" {
        tracing::warn!(
            model = metadata.name,
            reason,
            "requests for this model are executed one by one; if its rows are independent all the same, say 'check = false' under [batching] in its sidecar"
        );
    }
    Ok(RowTrial {
        metadata: Arc::new(ModelMetadata {
            batchability: Batchability::Never(reason),
            ..ModelMetadata::clone(&metadata)
        }),
        dependence: Some(kind),
        independent_rows: 1,
        plan: Arc::default(),
        tried,
    })
}

/// Where the graph puts rows together, if it does.
fn meeting(metadata: &ModelMetadata, rows: &[Rows]) -> Option<RowDependence> {
    let mut outputs = metadata.outputs.iter().zip(rows);
    outputs.find_map(|(spec, rows)| match rows {
        Rows::Mixed(by) => Some(RowDependence::Graph {
            output: spec.name.clone(),
            by: by.to_string(),
        }),
        Rows::Apart | Rows::Unknown => None,
    })
}

/// `metadata` with a dynamic first dimension for each output that was seen to have rows, whatever it declares.
fn as_it_ran(metadata: &ModelMetadata, plan: &DivisionPlan) -> ModelMetadata {
    let mut metadata = metadata.clone();
    let mut inputs = metadata.inputs.iter();
    let batch = inputs.find_map(|spec| spec.dims().first()).cloned();
    for (index, spec) in metadata.outputs.iter_mut().enumerate() {
        let has_rows = plan.has_rows(index);
        if let (true, Some(batch), Some(first)) = (
            has_rows && !spec.has_dynamic_first(),
            &batch,
            spec.dims.as_mut().and_then(|dims| dims.first_mut()),
        ) {
            *first = Dim::clone(batch);
        }
    }
    metadata
}

/// Whether requests are merged, and why not, or what is not known of it, for people. How many rows are merged may be
/// `given` by the user.
#[must_use]
pub(super) fn merging(
    trial: &RowTrial,
    constraints: &TuningConstraints,
    sessions: &Sessions,
    given: bool,
) -> (Merging, Option<String>) {
    let choice = &sessions.choice;
    if let (Some(kind), Batchability::Never(reason)) =
        (trial.dependence, &trial.metadata.batchability)
    {
        return (Merging::Off(kind), Some(reason.clone()));
    }
    if constraints.max_batch_size == 1 {
        let reason =
            "the maximum batch size is 1 (--max-batch-size, MAX_BATCH_SIZE, or the sidecar)";
        return (Merging::Off("limit"), Some(reason.to_owned()));
    }
    if choice.merge_rows == 1 && choice.measured {
        let reason = format!(
            "a row costs as much in a batch as by itself on this machine ({})",
            costs(sessions)
        );
        return (Merging::Off("cost"), Some(reason));
    }
    if choice.measured {
        return (Merging::On, None);
    }
    let because = if given {
        ", because the size of a batch is given (--max-batch-size, MAX_BATCH_SIZE, or the sidecar)"
    } else if constraints.merging_fixed {
        ", because that is done on the CPU only"
    } else {
        ""
    };
    let reason =
        format!("whether rows cost less in a batch than by themselves was not measured{because}");
    (Merging::Unmeasured, Some(reason))
}

/// What a row was measured to cost, by the sessions that were chosen, or who says that it was.
fn costs(sessions: &Sessions) -> String {
    match sessions.origin {
        Origin::Start => {}
        Origin::Sidecar => return "by [tuning] in the sidecar".to_owned(),
        Origin::Before => return "as it was measured of the model before it".to_owned(),
    }
    let mut sizes: Vec<&Measurement> = Vec::new();
    let threads = sessions.choice.instance_group.intra_op_threads;
    let of_choice = sessions
        .measurements
        .iter()
        .filter(|measurement| measurement.instance_group.intra_op_threads == threads);
    for measurement in of_choice {
        match sizes
            .iter_mut()
            .find(|known| known.rows == measurement.rows)
        {
            Some(known) => *known = measurement,
            None => sizes.push(measurement),
        }
    }
    let one = |size: &&Measurement| {
        let milliseconds = size.run.as_secs_f64() * 1e3;
        format!("{} row(s) {milliseconds:.3} ms", size.rows)
    };
    sizes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Runs batch sizes up to `rows`: on a GPU every one that will occur, because it prepares something for each; elsewhere
/// one row, and more as long as that takes little time.
///
/// # Errors
/// What a run said, unless the model refuses dummy rows.
pub(super) fn warm_up(
    model: &mut dyn Model,
    rows: usize,
    every_size: bool,
    path: &Path,
) -> Result<(), LoadError> {
    let started = Instant::now();
    let limit = (!every_size).then_some(WARM_UP);
    warm_up_within(model, rows, limit, &|| started.elapsed(), path)
}

fn warm_up_within(
    model: &mut dyn Model,
    rows: usize,
    limit: Option<Duration>,
    elapsed: &dyn Fn() -> Duration,
    path: &Path,
) -> Result<(), LoadError> {
    let metadata = Arc::clone(model.metadata());
    let rows = if limit.is_some() {
        rows.min(MOST_ROWS)
    } else {
        rows
    };
    let sizes = if metadata.has_batch_axis() {
        Buckets::up_to(rows).sizes()
    } else {
        vec![1]
    };
    let mut last: Option<(usize, Duration)> = None;
    for rows in sizes {
        let expected = last.map(|(fewer, run)| {
            run.saturating_mul(u32::try_from(rows.div_ceil(fewer)).unwrap_or(u32::MAX))
        });
        if let (Some(limit), Some(expected)) = (limit, expected)
            && elapsed().saturating_add(expected) > limit
        {
            tracing::debug!(
                model = metadata.name,
                rows,
                "executions of so many rows and more are not warmed up, because they take long"
            );
            break;
        }
        let before = elapsed();
        match warmup::run_once(model, rows) {
            Ok(()) => {}
            Err(RuntimeError::Refused(reason)) => {
                // Zeros are what we can make up, not what the model was made for; some models rightly refuse them.
                tracing::debug!(
                    model = metadata.name,
                    rows,
                    onnxruntime = reason,
                    "the model refused zeros, so this size is not warmed up"
                );
            }
            Err(error) => {
                return Err(LoadError::WarmUp {
                    path: path.to_owned(),
                    rows,
                    source: error,
                });
            }
        }
        last = Some((rows, elapsed().saturating_sub(before)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    use parking_lot::Mutex;

    use super::*;
    use crate::model::TensorSpec;
    use crate::runtime::session::InstanceGroup;
    use crate::runtime::tuning::ModelSettings;
    use crate::runtime::{BatchInput, BatchOutput, Interrupt};
    use crate::tensor::DataType;

    fn metadata() -> Arc<ModelMetadata> {
        let spec = |name: &str, dims: Vec<Dim>| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            dims: Some(dims),
            labels: Vec::new(),
        };
        Arc::new(ModelMetadata {
            name: "fake".to_owned(),
            version: "1".to_owned(),
            description: String::new(),
            inputs: vec![spec("x", vec![Dim::Dynamic(None), Dim::Fixed(4)])],
            outputs: vec![spec("y", vec![Dim::Fixed(1)])],
            batchability: Batchability::Rows,
            sha256: String::new(),
            file_size: 0,
            opsets: BTreeMap::new(),
            producer: String::new(),
            properties: BTreeMap::new(),
        })
    }

    /// Takes 100 ms a row by its own clock, and remembers the rows.
    struct Slow {
        metadata: Arc<ModelMetadata>,
        milliseconds: Arc<AtomicU64>,
        executed: Arc<Mutex<Vec<usize>>>,
    }

    impl Model for Slow {
        fn metadata(&self) -> &Arc<ModelMetadata> {
            &self.metadata
        }

        fn run(&mut self, input: BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
            let rows = input[0].shape[0];
            self.milliseconds
                .fetch_add(100 * rows as u64, Ordering::Relaxed);
            self.executed.lock().push(rows);
            Ok(Vec::new())
        }

        fn interrupt(&self) -> Arc<dyn Interrupt> {
            struct Nobody;
            impl Interrupt for Nobody {
                fn interrupt(&self) {}
            }
            Arc::new(Nobody)
        }
    }

    #[test]
    fn a_slow_model_is_warmed_up_by_few_rows_unless_every_size_prepares_something() {
        let warmed = |limit| {
            let milliseconds = Arc::new(AtomicU64::new(0));
            let executed = Arc::new(Mutex::new(Vec::new()));
            let mut model = Slow {
                metadata: metadata(),
                milliseconds: Arc::clone(&milliseconds),
                executed: Arc::clone(&executed),
            };
            let elapsed = || Duration::from_millis(milliseconds.load(Ordering::Relaxed));
            warm_up_within(&mut model, 32, limit, &elapsed, Path::new("fake.onnx")).unwrap();
            executed.lock().clone()
        };
        assert_eq!(warmed(Some(Duration::from_secs(1))), [1, 2, 4]);
        assert_eq!(warmed(None), [1, 2, 4, 8, 16, 32]);
    }

    fn said(
        dependence: Option<&'static str>,
        constraints: TuningConstraints,
        (choice, origin): (ModelSettings, Origin),
        given: bool,
    ) -> (Merging, String) {
        let trial = RowTrial {
            metadata: match dependence {
                None => metadata(),
                Some(_) => Arc::new(ModelMetadata {
                    batchability: Batchability::Never("of this".to_owned()),
                    ..ModelMetadata::clone(&metadata())
                }),
            },
            dependence,
            independent_rows: 32,
            plan: Arc::default(),
            tried: String::new(),
        };
        let measured = |rows, milliseconds| Measurement {
            instance_group: choice.instance_group,
            rows,
            rows_per_second: 1.0,
            run: Duration::from_millis(milliseconds),
        };
        let sessions = Sessions {
            models: Vec::new(),
            choice,
            origin,
            warm: false,
            measurements: vec![measured(1, 9), measured(1, 3), measured(2, 6)],
        };
        let (merging, reason) = merging(&trial, &constraints, &sessions, given);
        (merging, reason.unwrap_or_default())
    }

    #[test]
    fn what_is_said_of_merging_was_measured_or_says_that_it_was_not() {
        let constraints = TuningConstraints {
            cpus: 1,
            instances: None,
            intra_op_threads: None,
            max_batch_size: 32,
            mergeable: true,
            independent_rows: 32,
            merging_fixed: false,
        };
        let of = |origin, merge_rows, measured| {
            let choice = ModelSettings {
                instance_group: InstanceGroup {
                    instances: 1,
                    intra_op_threads: 1,
                },
                merge_rows,
                measured,
            };
            (choice, origin)
        };
        let choice = |merge_rows, measured| of(Origin::Start, merge_rows, measured);
        let (merging, reason) = said(None, constraints, choice(1, true), false);
        assert_eq!(merging, Merging::Off("cost"));
        assert!(
            reason.ends_with("(1 row(s) 3.000 ms, 2 row(s) 6.000 ms)"),
            "{reason}"
        );
        for (origin, end) in [
            (Origin::Sidecar, "(by [tuning] in the sidecar)"),
            (
                Origin::Before,
                "(as it was measured of the model before it)",
            ),
        ] {
            let (merging, reason) = said(None, constraints, of(origin, 1, true), false);
            assert_eq!(merging, Merging::Off("cost"));
            assert!(reason.ends_with(end), "{reason}");
        }
        let fixed = TuningConstraints {
            merging_fixed: true,
            ..constraints
        };
        for (constraints, given, end) in [
            (constraints, false, "was not measured"),
            (fixed, true, "or the sidecar)"),
            (fixed, false, "on the CPU only"),
        ] {
            let (merging, reason) = said(None, constraints, choice(32, false), given);
            assert_eq!(merging, Merging::Unmeasured);
            assert!(reason.contains("not measured"), "{reason}");
            assert!(reason.ends_with(end), "{reason}");
        }
        assert_eq!(
            said(None, constraints, choice(32, true), false).0,
            Merging::On
        );
        let one = TuningConstraints {
            max_batch_size: 1,
            ..fixed
        };
        assert_eq!(
            said(None, one, choice(1, false), true).0,
            Merging::Off("limit")
        );
        // What the model is goes before what it costs, or what the user wants.
        let (merging, reason) = said(Some("neighbours"), one, choice(1, true), true);
        assert_eq!(
            (merging, reason.as_str()),
            (Merging::Off("neighbours"), "of this")
        );
    }
}
