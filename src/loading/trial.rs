//! First runs of a loaded model: whether its rows may share an execution, and the sizes that will occur.
//!
//! Invariant: rows of different requests are merged only if that pays and they were shown not to touch each other.

use std::sync::Arc;

use crate::model::repository::ModelSource;
use crate::model::{Batchability, ModelMetadata};
use crate::runtime::buckets::Buckets;
use crate::runtime::session::OrtModel;
use crate::runtime::{LoadError, Model, RuntimeError, batch_check, warmup};
use crate::telemetry::metrics::Merging;

/// Why rows are not merged where that does not pay, for people.
const NO_GAIN: &str = "a row costs as much in a batch as by itself on this machine";

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
    let never = |reason: String| {
        Arc::new(ModelMetadata {
            batchability: Batchability::Never(reason),
            ..ModelMetadata::clone(&metadata)
        })
    };
    if metadata.batchability != Batchability::Rows {
        return Ok((metadata, Merging::Off("signature")));
    }
    if max_batch_size == 1 {
        return Ok((metadata, Merging::Off("limit")));
    }
    if merge_rows == 1 {
        return Ok((never(NO_GAIN.to_owned()), Merging::Off("cost")));
    }
    if source.sidecar.batching.check == Some(false) {
        return Ok((metadata, Merging::On));
    }
    let sizes = Buckets::up_to(merge_rows).sizes();
    let doubt =
        batch_check::check(model, &sizes, tf32).map_err(|source_error| LoadError::BatchCheck {
            path: source.path.clone(),
            source: source_error,
        })?;
    let Some(doubt) = doubt else {
        return Ok((metadata, Merging::On));
    };
    let reason = doubt.to_string();
    tracing::warn!(
        model = metadata.name,
        reason,
        "requests for this model are executed one by one; if its rows are independent all the same, say 'check = false' under [batching] in its sidecar"
    );
    Ok((never(reason), Merging::Off(doubt.kind())))
}

/// Runs the batch sizes up to `rows`.
///
/// # Errors
/// What a run said, unless the model refuses made-up rows.
pub(super) fn warm_up(
    model: &mut dyn Model,
    rows: usize,
    source: &ModelSource,
) -> Result<(), LoadError> {
    let metadata = Arc::clone(model.metadata());
    let sizes = if metadata.has_batch_axis() {
        Buckets::up_to(rows).sizes()
    } else {
        vec![1]
    };
    for rows in sizes {
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
