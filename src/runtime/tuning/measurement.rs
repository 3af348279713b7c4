//! How fast sessions run beside each other, for a short while.
//!
//! Invariant: a measurement ends by itself soon after it has run often enough to be believed.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::runtime::session::{InstanceGroup, OrtModel};
use crate::runtime::{RuntimeError, warmup};

/// What was measured of one setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Sessions that ran at once, and their threads.
    pub instance_group: InstanceGroup,
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
    /// While somebody waits for the server to be ready: below a millisecond for each setting of a tiny model, and three
    /// runs of a slow one.
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

/// Sessions and threads of `models`, which all have as many.
pub(super) fn instance_group_of(models: &[OrtModel]) -> InstanceGroup {
    InstanceGroup {
        instances: models.len(),
        intra_op_threads: models.first().map_or(1, OrtModel::intra_op_threads),
    }
}

/// Runs every one of `models` on `rows` dummy rows, all at once, until that was done often enough, or `end` is there.
///
/// # Errors
/// What a run said; [`RuntimeError::Refused`] when the model does not take dummy rows.
pub(super) fn measure(
    models: &mut [OrtModel],
    rows: usize,
    effort: Effort,
    end: Instant,
) -> Result<Measurement, RuntimeError> {
    let instance_group = instance_group_of(models);
    let medians = match models {
        [model] => vec![median_run(model, rows, effort, end, || ())?],
        models => together(models, rows, effort, end)?,
    };
    #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
    let rate = |run: &Duration| rows as f64 / run.as_secs_f64().max(1e-9);
    Ok(Measurement {
        instance_group,
        rows,
        rows_per_second: medians.iter().map(rate).sum(),
        run: medians.iter().max().copied().unwrap_or_default(),
    })
}

/// The median time of a run of each of `models`, while all of them run.
fn together(
    models: &mut [OrtModel],
    rows: usize,
    effort: Effort,
    end: Instant,
) -> Result<Vec<Duration>, RuntimeError> {
    let broken = |what: &str| RuntimeError::Broken(what.to_owned());
    thread::scope(|scope| {
        // Each thread lets go of its end of `ready` when its first run is over, however that ended, and then waits until
        // nobody holds the other end of its `go`: so nobody waits for a thread that is not there.
        let (ready, all_ready) = mpsc::channel::<()>();
        let mut starts = Vec::new();
        let mut running = Vec::new();
        for model in models.iter_mut() {
            let (start, go) = mpsc::channel::<()>();
            starts.push(start);
            let ready = ready.clone();
            let body = move || {
                let wait = || {
                    drop(ready);
                    let _ = go.recv();
                };
                median_run(model, rows, effort, end, wait)
            };
            let thread = thread::Builder::new().name("tune".to_owned());
            match thread.spawn_scoped(scope, body) {
                Ok(thread) => running.push(thread),
                Err(_) => return Err(broken("the operating system refused a thread")),
            }
        }
        drop(ready);
        // Nothing is ever sent; this ends when everybody is ready.
        let _ = all_ready.recv();
        drop(starts);
        let panicked = |_| broken("a measured run panicked");
        running
            .into_iter()
            .map(|thread| thread.join().map_err(panicked)?)
            .collect()
    })
}

/// The median time of a run of `model`, after one that is not counted, and after `wait`.
fn median_run(
    model: &mut OrtModel,
    rows: usize,
    effort: Effort,
    end: Instant,
    wait: impl FnOnce(),
) -> Result<Duration, RuntimeError> {
    let first = warmup::run_once(model, rows);
    wait();
    first?;
    let started = Instant::now();
    let mut runs = Vec::with_capacity(effort.many);
    let late = |runs: &[Duration]| !runs.is_empty() && Instant::now() >= end;
    while !late(&runs) && !effort.is_enough(runs.len(), started.elapsed()) {
        let run = Instant::now();
        warmup::run_once(model, rows)?;
        runs.push(run.elapsed());
    }
    runs.sort_unstable();
    Ok(runs.get(runs.len() / 2).copied().unwrap_or_default())
}
