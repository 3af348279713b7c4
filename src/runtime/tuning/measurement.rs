//! How fast sessions run beside each other, for a short while.
//!
//! Invariant: a measurement ends by itself soon after it has run often enough to be believed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::runtime::session::{OrtModel, Placement};
use crate::runtime::{RuntimeError, warmup};

/// What was measured of one setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Sessions that ran at once, and their threads.
    pub placement: Placement,
    /// Rows of each run.
    pub rows: usize,
    /// Rows per second of all sessions together.
    pub rows_per_second: f64,
    /// The median time of a run.
    pub run: Duration,
}

/// How long is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Runs that are enough when they are short.
    many: usize,
    /// The time that `many` runs must take at least.
    least: Duration,
    /// Runs that are enough when they are long.
    few: usize,
    /// The time after which `few` runs suffice.
    enough: Duration,
}

impl Effort {
    /// While somebody waits for the server to be ready: below a millisecond for each setting of a tiny model.
    pub const BRIEF: Self = Self {
        many: 10,
        least: Duration::from_micros(200),
        few: 3,
        enough: Duration::from_millis(60),
    };

    /// While somebody waits for nothing else.
    pub const THOROUGH: Self = Self {
        many: 200,
        least: Duration::from_millis(100),
        few: 5,
        enough: Duration::from_millis(600),
    };

    /// The time that measuring takes if a run takes `run`, as long as that is long.
    pub(super) fn longest(&self, run: Duration) -> Duration {
        // One more, which is not counted.
        run.saturating_mul(u32::try_from(self.few + 1).unwrap_or(u32::MAX))
    }

    fn is_enough(&self, runs: usize, elapsed: Duration) -> bool {
        (runs >= self.many && elapsed >= self.least) || (runs >= self.few && elapsed >= self.enough)
    }
}

/// Runs every one of `models` on `rows` made-up rows, all at once.
///
/// # Errors
/// What a run said; [`RuntimeError::Refused`] when the model does not take made-up rows.
pub(super) fn measure(
    models: &mut [OrtModel],
    intra_op_threads: usize,
    rows: usize,
    effort: Effort,
) -> Result<Measurement, RuntimeError> {
    let placement = Placement {
        instances: models.len(),
        intra_op_threads,
    };
    let medians = match models {
        [model] => vec![median_run(model, rows, effort, None)?],
        models => {
            let barrier = Barrier::new(models.len());
            let barrier = &barrier;
            thread::scope(|scope| {
                let running: Vec<_> = models
                    .iter_mut()
                    .map(|model| {
                        scope.spawn(move || median_run(model, rows, effort, Some(barrier)))
                    })
                    .collect();
                let panicked = |_| RuntimeError::Broken("a measured run panicked".to_owned());
                running
                    .into_iter()
                    .map(|thread| thread.join().map_err(panicked)?)
                    .collect::<Result<Vec<_>, _>>()
            })?
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
    let rate = |run: &Duration| rows as f64 / run.as_secs_f64().max(1e-9);
    Ok(Measurement {
        placement,
        rows,
        rows_per_second: medians.iter().map(rate).sum(),
        run: medians.iter().max().copied().unwrap_or_default(),
    })
}

/// The median time of a run of `model`, after one that is not counted.
fn median_run(
    model: &mut OrtModel,
    rows: usize,
    effort: Effort,
    together: Option<&Barrier>,
) -> Result<Duration, RuntimeError> {
    // Whoever fails, however it does, must still come, or the others would wait for ever.
    let first = catch_unwind(AssertUnwindSafe(|| warmup::run_once(model, rows)))
        .unwrap_or_else(|_| Err(RuntimeError::Broken("a measured run panicked".to_owned())));
    if let Some(barrier) = together {
        barrier.wait();
    }
    first?;
    let started = Instant::now();
    let mut runs = Vec::with_capacity(effort.many);
    while !effort.is_enough(runs.len(), started.elapsed()) {
        let run = Instant::now();
        warmup::run_once(model, rows)?;
        runs.push(run.elapsed());
    }
    runs.sort_unstable();
    Ok(runs.get(runs.len() / 2).copied().unwrap_or_default())
}
