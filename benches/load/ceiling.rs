//! What the sessions reach when nothing stands around them: the ceiling of any server that uses them.

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use model_serving::model::repository;
use model_serving::runtime::library::Library;
use model_serving::runtime::providers::{CudaConfig, Device};
use model_serving::runtime::session::{self, InstanceGroup, LoadedModel, OrtModel, SessionConfig};
use model_serving::runtime::{InputView, Model};
use model_serving::tensor::{Shape, TensorView};
use serde_json::json;

use crate::{as_f64, dummy_inputs, median};

/// Loads the model into the sessions that the server would have.
pub(crate) fn load(
    path: &Path,
    library: Option<&Path>,
    intra_op_threads: usize,
    instances: usize,
) -> LoadedModel {
    let source = repository::find(path, None).unwrap().remove(0);
    let library = Library::load(library).unwrap();
    let config = SessionConfig {
        device: Device::CPU,
        cuda: CudaConfig::default(),
        run_memory: None,
        most_sessions: 1,
    };
    let instance_group = |_| InstanceGroup {
        instances,
        intra_op_threads,
    };
    session::load(&library, &source, config, instance_group).unwrap()
}

/// Runs `rows` rows at a time in every session at once, for `time`, and prints what came out.
pub(crate) fn measure(models: &mut [OrtModel], threads: usize, rows: usize, time: Duration) {
    let row = dummy_inputs::row_shape(models[0].metadata());
    let elements = dummy_inputs::values(row.iter().product()).repeat(rows);
    let shape: Shape = std::iter::once(rows).chain(row).collect();
    let instances = models.len();
    // The threads that measure, and this one, which reads the CPU time.
    let barrier = Barrier::new(instances + 1);
    let mut cpu = 0.0;
    let results: Vec<(Vec<f64>, f64)> = std::thread::scope(|scope| {
        let running: Vec<_> = models
            .iter_mut()
            .map(|model| {
                scope.spawn(|| {
                    let mut run = || {
                        let input = InputView {
                            shape: shape.clone(),
                            elements: TensorView::Fp32(&elements),
                        };
                        model.run([input].into_iter().collect()).unwrap();
                    };
                    // The first run of a shape plans its memory.
                    run();
                    barrier.wait();
                    barrier.wait();
                    let started = Instant::now();
                    let mut durations = Vec::new();
                    while durations.is_empty() || started.elapsed() < time {
                        let began = Instant::now();
                        run();
                        durations.push(began.elapsed().as_secs_f64());
                    }
                    let elapsed = started.elapsed().as_secs_f64();
                    barrier.wait();
                    // A thread that has ended is no longer listed, so it stays until the time is read.
                    barrier.wait();
                    (durations, elapsed)
                })
            })
            .collect();
        barrier.wait();
        let before = cpu_seconds();
        barrier.wait();
        barrier.wait();
        cpu = cpu_seconds() - before;
        barrier.wait();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let rate = |(durations, elapsed): &(Vec<f64>, f64)| as_f64(durations.len() * rows) / elapsed;
    let rows_per_second: f64 = results.iter().map(rate).sum();
    let mut durations: Vec<f64> = results.into_iter().flat_map(|result| result.0).collect();
    let runs = durations.len();
    let line = json!({
        "threads": threads,
        "instances": instances,
        "batch": rows,
        "runs": runs,
        "rows_per_second": rows_per_second,
        "seconds_per_run": median(&mut durations),
        "cpu_seconds_per_row": cpu / as_f64(runs * rows),
    });
    println!("{line}");
}

/// The CPU time of all threads that this process has now. The kernel counts it in nanoseconds there, and in hundredths
/// of a second where it is easier to read.
fn cpu_seconds() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = tasks.map(|task| {
        let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default();
        first.parse::<f64>().unwrap_or_default()
    });
    nanoseconds.sum::<f64>() / 1e9
}
