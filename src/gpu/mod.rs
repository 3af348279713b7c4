//! What the GPUs of this machine do: a thread that reads NVML once a second and sets the gauges.
//!
//! NVML is the driver's own library and is loaded when the server starts, so one binary runs with and without a GPU.
//! The same thread tells when the GPU that serves is lost.
//!
//! Invariant: nothing waits for NVML, and a reading that cannot be had is a gauge that is not there, never a zero and
//! never an error.

mod watch;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use crate::runtime::device_health::DeviceHealth;
use crate::telemetry::metrics::{GpuReading, Metrics};
use crate::telemetry::supervision;
use watch::Watch;

/// The driver averages utilisation over up to a second, so reading more often shows nothing new.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long NVML is waited for at a time.
const TURN: Duration = Duration::from_millis(100);

/// How long a stop waits for the thread. A driver that has lost its GPU can hold a call for long.
const FAREWELL: Duration = Duration::from_millis(200);

/// The driver's library. Containers are given this name only; the one without the number belongs to the toolkit.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// The thread that reads NVML. Dropping it ends the thread.
pub struct Sampler {
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
}

/// Starts to set the GPU gauges of `metrics`, and to watch the GPU of `device`. A machine without NVML has none, which is one line in the log.
///
/// # Errors
/// When the operating system gives no thread.
pub fn start(metrics: Arc<Metrics>, device: Arc<DeviceHealth>) -> std::io::Result<Sampler> {
    let (stop, stopped) = mpsc::channel();
    let (ending, ended) = mpsc::channel();
    let thread = thread::Builder::new().name("gpu".to_owned());
    thread.spawn(move || {
        // Whoever stops the sampler lets go of the other end.
        let is_wanted =
            |pause| matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout));
        supervision::keep_running("gpu", is_wanted, || {
            #[cfg(feature = "testkit")]
            crate::testkit::panic_at("gpu");
            sample_until(&stopped, &metrics, &device);
        });
        drop(ending);
    })?;
    Ok(Sampler {
        stop: Some(stop),
        ended,
    })
}

impl Drop for Sampler {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.ended.recv_timeout(FAREWELL);
    }
}

fn sample_until(stopped: &Receiver<()>, metrics: &Metrics, device: &DeviceHealth) {
    let nvml = match open() {
        Ok(nvml) => nvml,
        Err(reason) => {
            tracing::info!(reason, "no NVML, so there are no GPU metrics");
            return;
        }
    };
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => {
            let reason = error.to_string();
            tracing::warn!(reason, "NVML names no GPUs, so there are no GPU metrics");
            return;
        }
    };
    tracing::info!(
        gpus = count,
        driver = nvml.sys_driver_version().ok(),
        "NVML is read for the GPU metrics"
    );
    let mut faults = Faults::default();
    // Nothing until it is known what serves; then it may be nothing that can be watched.
    let mut watch: Option<Option<Watch<'_>>> = None;
    loop {
        let round = Instant::now();
        if let (None, Some(cuda)) = (&watch, device.serving()) {
            watch = Some(Watch::start(&nvml, count, cuda));
        }
        for index in 0..count {
            let reading = read(&nvml, index);
            let error = reading.as_ref().err();
            faults.note(index, error);
            let watched = watch.iter().flatten().any(|watch| watch.index == index);
            if let Some(reason) = Watch::loss_by(error).filter(|_| watched) {
                device.lose(&reason);
            }
            metrics.set_gpu(&index.to_string(), &reading.unwrap_or_default());
        }
        while round.elapsed() < INTERVAL {
            let rest = INTERVAL.saturating_sub(round.elapsed());
            let reporting = watch.iter().flatten().find(|watch| watch.reports());
            // NVML cannot be told to stop waiting, so that it is asked in short turns.
            let (pause, turn) = match reporting {
                Some(_) => (Duration::ZERO, rest.min(TURN)),
                None => (rest, Duration::ZERO),
            };
            if let Some(reason) = reporting.and_then(|watch| watch.wait(turn)) {
                device.lose(&reason);
            }
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Loads and initializes NVML under the first of its names that is there.
fn open() -> Result<Nvml, String> {
    let mut reason = String::new();
    for library in LIBRARIES {
        match Nvml::builder().lib_path(OsStr::new(library)).init() {
            Ok(nvml) => return Ok(nvml),
            // The first name is the one to tell about; if it could be loaded, the second is the same library.
            Err(NvmlError::LibloadingError(_)) if reason.is_empty() => {
                reason = format!("{library} is not on this machine");
            }
            Err(NvmlError::LibloadingError(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(reason)
}

/// Reads the GPU of this index. What one GPU does not support is left out; what it cannot do any more is an error.
fn read(nvml: &Nvml, index: u32) -> Result<GpuReading, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = supported(device.memory_info())?;
    Ok(GpuReading {
        utilization_percent: supported(device.utilization_rates())?.map(|rates| rates.gpu),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        temperature_celsius: supported(device.temperature(TemperatureSensor::Gpu))?,
        power_milliwatts: supported(device.power_usage())?,
    })
}

/// Tells a reading that this GPU or driver never has (a slice of a GPU has no power) from a GPU that is in trouble.
fn supported<T>(reading: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match reading {
        Ok(value) => Ok(Some(value)),
        Err(
            NvmlError::NotSupported
            | NvmlError::NoPermission
            | NvmlError::NoData
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_),
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What was wrong with each GPU the last time, so that the log has one line per change and not one per second.
#[derive(Default)]
struct Faults(BTreeMap<u32, String>);

impl Faults {
    fn note(&mut self, gpu_id: u32, error: Option<&NvmlError>) {
        match error.map(ToString::to_string) {
            Some(reason) if self.0.get(&gpu_id) != Some(&reason) => {
                tracing::warn!(gpu_id, reason, "the GPU cannot be read, so its metrics end");
                self.0.insert(gpu_id, reason);
            }
            Some(_) => {}
            None => {
                if self.0.remove(&gpu_id).is_some() {
                    tracing::info!(gpu_id, "the GPU can be read again");
                }
            }
        }
    }
}
