//! First runs of a loaded model: whether its rows may share an execution, and the sizes that will occur.
//!
//! Invariant: rows of different requests are merged only if that pays and they were shown not to touch each other.

use std::sync::Arc;

use super::DEFAULT_MAX_BATCH_SIZE;
use crate::model::repository::ModelSource;
use crate::model::{Batchability, ModelMetadata};
use crate::runtime::buckets::Buckets;
use crate::runtime::session::OrtModel;
use crate::runtime::{LoadError, Model, RuntimeError, batch_check, warmup};
use crate::telemetry::metrics::Merging;

/// Why rows are not merged where that does not pay, for people.
const NO_GAIN: &str = "a row costs as much in a batch as by itself on this machine";

/// The most rows that are made up on the CPU, where a size needs no preparation of its own. A start is not to take longer,
/// nor to take more memory, because larger executions are allowed.
const MOST_ROWS: usize = DEFAULT_MAX_BATCH_SIZE;

/// Sizes that tell whether rows depend on each other where they are not merged.
const SMALL_SIZES: [usize; 2] = [1, 2];

/// The sizes with which it is tried whether rows depend on each other. What holds for these is taken to hold for larger
/// ones.
pub(super) fn checked_sizes(merge_rows: usize) -> Vec<usize> {
    Buckets::up_to(merge_rows.min(MOST_ROWS)).sizes()
}

/// The sizes that are run before a model is ready: on a GPU all that will occur, each of which is prepared by its first
/// run.
pub(super) fn warm_sizes(merge_rows: usize, on_gpu: bool) -> Vec<usize> {
    if on_gpu {
        Buckets::up_to(merge_rows).sizes()
    } else {
        checked_sizes(merge_rows)
    }
}

/// Tries whether rows depend on each other in executions of up to `merge_rows` rows, and describes the model as what came
/// out.
///
/// # Errors
/// When the device or the runtime fails.
pub fn check_batching(
    model: &mut OrtModel,
    max_batch_size: usize,
    merge_rows: usize,
    tf32: bool,
    source: &ModelSource,
) -> Result<(Arc<ModelMetadata>, Merging), LoadError> {
    let metadata = Arc::clone(model.metadata());
    let described = |batchability| {
        Arc::new(ModelMetadata {
            batchability,
            ..ModelMetadata::clone(&metadata)
        })
    };
    if metadata.batchability != Batchability::Rows {
        return Ok((metadata, Merging::Off("signature")));
    }
    if max_batch_size == 1 {
        return Ok((metadata, Merging::Off("limit")));
    }
    let merges = merge_rows > 1;
    let trusted = || {
        if merges {
            (Arc::clone(&metadata), Merging::On)
        } else {
            let batchability = Batchability::Unmerged(NO_GAIN.to_owned());
            (described(batchability), Merging::Off("cost"))
        }
    };
    if source.sidecar.batching.check == Some(false) {
        return Ok(trusted());
    }
    // Large requests are executed in parts where rows are independent, so that this is worth knowing without merging, too.
    let sizes = if merges {
        checked_sizes(merge_rows)
    } else {
        SMALL_SIZES.to_vec()
    };
    let doubt =
        batch_check::check(model, &sizes, tf32).map_err(|source_error| LoadError::BatchCheck {
            path: source.path.clone(),
            source: source_error,
        })?;
    let Some(doubt) = doubt else {
        return Ok(trusted());
    };
    let reason = doubt.to_string();
    tracing::warn!(
        model = metadata.name,
        reason,
        "requests for this model are executed one by one; if its rows are independent all the same, say 'check = false' under [batching] in its sidecar"
    );
    let never = described(Batchability::Never(reason));
    Ok((never, Merging::Off(doubt.kind())))
}

/// Runs the batch sizes in `sizes`, or one run if there is no batch.
///
/// # Errors
/// What a run said, unless the model refuses made-up rows.
pub(super) fn warm_up(
    model: &mut dyn Model,
    sizes: &[usize],
    source: &ModelSource,
) -> Result<(), LoadError> {
    let metadata = Arc::clone(model.metadata());
    let sizes = if metadata.has_batch_axis() {
        sizes
    } else {
        sizes.get(..1).unwrap_or_default()
    };
    for &rows in sizes {
        match warmup::run_once(model, rows) {
            Ok(()) => {}
            Err(RuntimeError::Refused(reason)) => {
                // Zeros are what we can make up, not what the model was made for; some models rightly refuse them.
                tracing::warn!(
                    model = metadata.name,
                    rows,
                    reason,
                    "the model refused zeros, so this size is not warmed up"
                );
            }
            Err(error) => {
                return Err(LoadError::WarmUp {
                    path: source.path.clone(),
                    rows,
                    source: error,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_runs_no_more_sizes_because_larger_ones_are_allowed() {
        let default = [1, 2, 4, 8, 16, 32];
        for merge_rows in [32, 33, 64, 16_384, usize::MAX] {
            assert_eq!(checked_sizes(merge_rows), default);
            assert_eq!(warm_sizes(merge_rows, false), default);
        }
        assert_eq!(checked_sizes(20), [1, 2, 4, 8, 16, 20]);
    }

    #[test]
    fn on_a_gpu_every_size_that_occurs_is_warmed_up() {
        assert_eq!(warm_sizes(64, true), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(warm_sizes(1, true), [1]);
    }
}
