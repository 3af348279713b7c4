//! Every metric family of the server, in one file: typed fields, whose doc comment is the help text.
//!
//! Invariant: label values come from a closed set (loaded models, our own routes and status words). Those of a model are
//! resolved when it is loaded, never on the path of a request.

use parking_lot::Mutex;
use prometheus::core::{Atomic, Collector, GenericGaugeVec};
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::log_writer;

/// Bucket edges of durations, in seconds. From 10 ms up they are the prescribed ones; the finer ones below are for
/// models that answer in less than that.
const SECONDS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];

/// Bucket edges of the duration of predictions, in seconds: those above, and between 0.1 and 0.3 so many that a quantile
/// which is read out of them is at most a tenth wrong. The thresholds of autoscalers and alerts lie there (0.2 s), and
/// between 0.1 and 0.25 a true 110 ms would be read as 248 ms.
const PREDICTION_SECONDS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.11, 0.12, 0.13, 0.14,
    0.15, 0.165, 0.18, 0.19, 0.2, 0.22, 0.24, 0.25, 0.275, 0.3, 0.4, 0.5, 1.0, 2.5, 5.0,
];

/// Bucket edges of batch sizes, in rows.
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// What the documentation says about one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyDescription {
    /// The name in the exposition.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The label names.
    pub labels: &'static [&'static str],
    /// What it says, with its unit.
    pub help: &'static str,
}

macro_rules! kind_of {
    (IntCounterVec) => {
        "counter"
    };
    (IntGaugeVec) => {
        "gauge"
    };
    (GaugeVec) => {
        "gauge"
    };
    (HistogramVec) => {
        "histogram"
    };
}

macro_rules! options_of {
    (HistogramVec, $name:literal, $help:literal, $buckets:expr) => {
        HistogramOpts::new($name, $help.trim()).buckets($buckets.to_vec())
    };
    ($kind:ident, $name:literal, $help:literal,) => {
        Opts::new($name, $help.trim())
    };
}

macro_rules! families {
    ($(#[doc = $help:literal] $field:ident: $kind:ident $(($buckets:expr))? = $name:literal [$($label:literal),*];)+) => {
        struct Families {
            $(#[doc = $help] $field: $kind,)+
        }

        impl Families {
            fn register(registry: &Registry) -> prometheus::Result<Self> {
                $(let $field = $kind::new(options_of!($kind, $name, $help, $($buckets)?), &[$($label),*])?;
                registry.register(Box::new($field.clone()))?;)+
                Ok(Self { $($field),+ })
            }
        }

        /// Every family of ours, in the order of the documentation.
        pub const FAMILIES: &[FamilyDescription] = &[
            $(FamilyDescription { name: $name, kind: kind_of!($kind), labels: &[$($label),*], help: $help },)+
        ];
    };
}

families! {
    #[doc = " Predictions answered or given up, by outcome: success, invalid, overloaded, timeout, cancelled, error."]
    predictions: IntCounterVec = "ml_predictions_total" ["model_name", "status"];
    #[doc = " Seconds from the request's head to its answer, for predictions that were admitted (success, timeout, error)."]
    prediction_duration: HistogramVec(PREDICTION_SECONDS) = "ml_prediction_duration_seconds" ["model_name"];
    #[doc = " Rows of each well-formed request received; 1 where the model has no batch axis."]
    batch_size: HistogramVec(ROWS) = "ml_batch_size" ["model_name"];
    #[doc = " Rows of each execution, after requests were merged, or of each part of a large one."]
    executed_batch_size: HistogramVec(ROWS) = "ml_executed_batch_size" ["model_name", "version"];
    #[doc = " Seconds that a request waited in the queue before its execution began."]
    queue_duration: HistogramVec(SECONDS) = "ml_queue_duration_seconds" ["model_name", "version"];
    #[doc = " Seconds of each execution in ONNX Runtime."]
    inference_duration: HistogramVec(SECONDS) = "ml_inference_duration_seconds" ["model_name", "version"];
    #[doc = " Requests by the route that they matched (unmatched if none) and the HTTP status of their answer; the status is none for those that ended without an answer."]
    responses: IntCounterVec = "ml_http_responses_total" ["route", "status"];
    #[doc = " Rows waiting in the queue."]
    queue_rows: IntGaugeVec = "ml_queue_rows" ["model_name", "version"];
    #[doc = " Prediction requests being worked on, from their head to their answer."]
    requests_in_flight: IntGaugeVec = "ml_requests_in_flight" ["model_name"];
    #[doc = " Predicted wait of a new request divided by the default deadline; 1 and more means that requests are refused."]
    saturation: GaugeVec = "ml_saturation" ["model_name", "version"];
    #[doc = " 1 for each loaded model, with what it is and what executes it."]
    model_info: IntGaugeVec = "ml_model_info" ["model_name", "version", "sha256", "device", "execution_provider", "onnxruntime"];
    #[doc = " 1 for each loaded model, with whether requests are merged (batching on or off), and if not, why: signature, limit, cost, neighbours, random, untested; unmeasured where they are merged although it was not measured whether that pays."]
    model_batching_info: IntGaugeVec = "ml_model_batching_info" ["model_name", "version", "batching", "reason"];
    #[doc = " 1 for each version of a model that lies there and could not be loaded when it was last tried; the log and /ready say why. What served before goes on serving."]
    model_load_failed: IntGaugeVec = "ml_model_load_failed" ["model_name", "version"];
    #[doc = " Attempts to load a model while serving, a new one or one again, by result: success, failure (what served before goes on serving)."]
    model_reloads: IntCounterVec = "ml_model_reloads_total" ["result"];
    #[doc = " 1 while the files of a model were refused when they were last tried, or are still being loaded after a minute, so that an older one serves or none; 0 otherwise."]
    reload_blocked: IntGaugeVec = "ml_model_reload_blocked" [];
    #[doc = " Percent of the last second or so in which a kernel ran on the GPU, as NVML reports it."]
    gpu_utilization: IntGaugeVec = "ml_gpu_utilization_percent" ["gpu_id"];
    #[doc = " Bytes of the GPU's memory in use, by this process and others."]
    gpu_memory_used: IntGaugeVec = "ml_gpu_memory_used_bytes" ["gpu_id"];
    #[doc = " Bytes of memory that the GPU has."]
    gpu_memory_total: IntGaugeVec = "ml_gpu_memory_total_bytes" ["gpu_id"];
    #[doc = " Temperature of the GPU in degrees Celsius."]
    gpu_temperature: IntGaugeVec = "ml_gpu_temperature_celsius" ["gpu_id"];
    #[doc = " Watts that the GPU draws."]
    gpu_power: GaugeVec = "ml_gpu_power_watts" ["gpu_id"];
    #[doc = " When all connections (--max-connections) were taken, by what came of it: a connection that waited for its client was closed for another (`gave_way`), or a request got 429 (`refused`)."]
    connections_full: IntCounterVec = "ml_connections_full_total" ["result"];
    #[doc = " 1 while the server answers predictions, 0 while it starts, drains or is broken."]
    ready: IntGaugeVec = "ml_ready" [];
    #[doc = " Panics caught anywhere in the process; each is a defect."]
    panics: IntCounterVec = "panics_total" [];
    #[doc = " Lines of the log that were dropped, because their reader was too slow or gone."]
    log_lines_dropped: IntCounterVec = "ml_log_lines_dropped_total" [];
}

/// The registry and everything in it.
pub struct Metrics {
    registry: Registry,
    families: Families,
    /// 1 while the server answers predictions.
    pub ready: IntGauge,
    /// Panics caught anywhere in the process.
    pub panics: IntCounter,
    /// Connections that were closed for others.
    pub connections_gave_way: IntCounter,
    /// Requests that were refused because every connection was taken.
    pub connections_refused: IntCounter,
    /// Lines of the log that were dropped, as far as that was looked at.
    log_lines_dropped: Mutex<IntCounter>,
    /// Models that were loaded again while serving.
    pub reloads_succeeded: IntCounter,
    /// Models that could not be loaded again.
    pub reloads_failed: IntCounter,
    /// 1 while files of a model are refused.
    pub reload_blocked: IntGauge,
}

/// How a prediction ended, as counted in `ml_predictions_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Success,
    /// Refused, because of what was asked.
    Invalid,
    /// Refused, because there was too much to do.
    Overloaded,
    /// Not answered, or not received, in time.
    Timeout,
    /// The client went away first.
    Cancelled,
    /// Failed by our fault or the device's, or refused while the server was not ready.
    Error,
}

impl Outcome {
    const ALL: [Self; 6] = [
        Self::Success,
        Self::Invalid,
        Self::Overloaded,
        Self::Timeout,
        Self::Cancelled,
        Self::Error,
    ];

    /// The value of the label `status`.
    fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// The metrics of one model at the edge, labels resolved.
pub struct PredictionMetrics {
    success: IntCounter,
    invalid: IntCounter,
    overloaded: IntCounter,
    timeout: IntCounter,
    cancelled: IntCounter,
    error: IntCounter,
    /// Seconds from the head of a request to its answer.
    pub duration: Histogram,
    /// Rows per request received.
    pub batch_size: Histogram,
    /// Requests being worked on.
    pub in_flight: IntGauge,
}

impl PredictionMetrics {
    /// The counter of `outcome`.
    #[must_use]
    pub fn counter(&self, outcome: Outcome) -> &IntCounter {
        match outcome {
            Outcome::Success => &self.success,
            Outcome::Invalid => &self.invalid,
            Outcome::Overloaded => &self.overloaded,
            Outcome::Timeout => &self.timeout,
            Outcome::Cancelled => &self.cancelled,
            Outcome::Error => &self.error,
        }
    }
}

/// The metrics of one model's queue and instances, labels resolved.
#[derive(Clone)]
pub struct BatchingMetrics {
    /// Rows per execution.
    pub executed_batch_size: Histogram,
    /// Seconds in the queue, per request.
    pub queue_duration: Histogram,
    /// Seconds in ONNX Runtime, per execution.
    pub inference_duration: Histogram,
    /// Rows waiting.
    pub queue_rows: IntGauge,
    /// Predicted wait over deadline.
    pub saturation: Gauge,
}

/// Whether requests for a model are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merging {
    /// Rows of several requests share executions.
    On,
    /// They do, although it was not measured whether that pays.
    Unmeasured,
    /// Requests are executed one by one, for a reason of this kind.
    Off(&'static str),
}

impl Merging {
    /// Whether rows of several requests share executions.
    #[must_use]
    pub fn is_on(self) -> bool {
        !matches!(self, Self::Off(_))
    }

    /// Whether they do, in a word.
    #[must_use]
    pub fn label(self) -> &'static str {
        if self.is_on() { "on" } else { "off" }
    }

    /// The kind of reason, if there is one.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::On => "",
            Self::Unmeasured => "unmeasured",
            Self::Off(reason) => reason,
        }
    }

    fn values(self) -> [&'static str; 2] {
        [self.label(), self.reason()]
    }
}

/// What `ml_model_info` and `ml_model_batching_info` say about one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name it is served under.
    pub model_name: String,
    /// The version it is served as.
    pub version: String,
    /// SHA-256 of the `.onnx` file.
    pub sha256: String,
    /// The device that executes it.
    pub device: String,
    /// ONNX Runtime's name of the provider.
    pub execution_provider: &'static str,
    /// ONNX Runtime's version.
    pub onnxruntime: String,
    /// Whether its requests are merged.
    pub merging: Merging,
}

impl ModelInfo {
    fn batching_values(&self) -> [&str; 4] {
        let [batching, reason] = self.merging.values();
        [&self.model_name, &self.version, batching, reason]
    }

    fn values(&self) -> [&str; 6] {
        [
            &self.model_name,
            &self.version,
            &self.sha256,
            &self.device,
            self.execution_provider,
            &self.onnxruntime,
        ]
    }
}

/// What NVML said about one GPU. What is not given has no series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuReading {
    /// Percent of the time in which a kernel ran.
    pub utilization_percent: Option<u32>,
    /// Bytes of memory in use.
    pub memory_used_bytes: Option<u64>,
    /// Bytes of memory there are.
    pub memory_total_bytes: Option<u64>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Thousandths of a watt.
    pub power_milliwatts: Option<u32>,
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Errors
    /// When two families have the same name, which is a defect.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let families = Families::register(&registry)?;
        let process: Box<dyn Collector> = Box::new(ProcessCollector::for_self());
        registry.register(process)?;
        let no_labels: &[&str] = &[];
        let ready = families.ready.with_label_values(no_labels);
        let panics = families.panics.with_label_values(no_labels);
        let log_lines_dropped = families.log_lines_dropped.with_label_values(no_labels);
        let reload_blocked = families.reload_blocked.with_label_values(no_labels);
        let reloads = |result| families.model_reloads.with_label_values(&[result]);
        let (reloads_succeeded, reloads_failed) = (reloads("success"), reloads("failure"));
        let full = |result| families.connections_full.with_label_values(&[result]);
        let (connections_gave_way, connections_refused) = (full("gave_way"), full("refused"));
        Ok(Self {
            registry,
            families,
            ready,
            panics,
            connections_gave_way,
            connections_refused,
            log_lines_dropped: Mutex::new(log_lines_dropped),
            reloads_succeeded,
            reloads_failed,
            reload_blocked,
        })
    }

    /// The edge's metrics of the model `name`. Every status exists from the start, so that rates begin at zero.
    #[must_use]
    pub fn prediction(&self, name: &str) -> PredictionMetrics {
        let counter = |outcome: Outcome| {
            let labels = &[name, outcome.label()];
            self.families.predictions.with_label_values(labels)
        };
        PredictionMetrics {
            success: counter(Outcome::Success),
            invalid: counter(Outcome::Invalid),
            overloaded: counter(Outcome::Overloaded),
            timeout: counter(Outcome::Timeout),
            cancelled: counter(Outcome::Cancelled),
            error: counter(Outcome::Error),
            duration: self.families.prediction_duration.with_label_values(&[name]),
            batch_size: self.families.batch_size.with_label_values(&[name]),
            in_flight: self.families.requests_in_flight.with_label_values(&[name]),
        }
    }

    /// Takes out the series of [`Self::prediction`], of a model that is gone for good.
    pub fn remove_prediction(&self, name: &str) {
        let families = &self.families;
        for outcome in Outcome::ALL {
            let labels = &[name, outcome.label()];
            // An error says that it is not there, which is what was wanted.
            drop(families.predictions.remove_label_values(labels));
        }
        drop(families.prediction_duration.remove_label_values(&[name]));
        drop(families.batch_size.remove_label_values(&[name]));
        drop(families.requests_in_flight.remove_label_values(&[name]));
    }

    /// The queue's and the instances' metrics of this version of the model `name`.
    #[must_use]
    pub fn batching(&self, name: &str, version: &str) -> BatchingMetrics {
        let families = &self.families;
        let labels = &[name, version];
        BatchingMetrics {
            executed_batch_size: families.executed_batch_size.with_label_values(labels),
            queue_duration: families.queue_duration.with_label_values(labels),
            inference_duration: families.inference_duration.with_label_values(labels),
            queue_rows: families.queue_rows.with_label_values(labels),
            saturation: families.saturation.with_label_values(labels),
        }
    }

    /// Takes out the series of [`Self::batching`], of a version that is gone for good.
    pub fn remove_batching(&self, name: &str, version: &str) {
        let families = &self.families;
        let labels = &[name, version];
        // An error says that it is not there, which is what was wanted.
        drop(families.executed_batch_size.remove_label_values(labels));
        drop(families.queue_duration.remove_label_values(labels));
        drop(families.inference_duration.remove_label_values(labels));
        drop(families.queue_rows.remove_label_values(labels));
        drop(families.saturation.remove_label_values(labels));
    }

    /// States whether this version of the model `name` could not be loaded when it was last tried.
    pub fn set_load_failed(&self, name: &str, version: &str, failed: bool) {
        let gauges = &self.families.model_load_failed;
        let labels = &[name, version];
        if failed {
            gauges.with_label_values(labels).set(1);
        } else {
            // An error says that it is not there, which is what was wanted.
            drop(gauges.remove_label_values(labels));
        }
    }

    /// Counts a request of `route`, which was answered with `status`. Both come from closed sets: the routes that there are,
    /// and the statuses of the table of errors.
    pub fn count_response(&self, route: &str, status: &str) {
        self.families
            .responses
            .with_label_values(&[route, status])
            .inc();
    }

    /// States what is loaded now, and no longer what it replaced.
    pub fn set_model_info(&self, now: Option<&ModelInfo>, before: Option<&ModelInfo>) {
        let set = |info: &ModelInfo| {
            self.families
                .model_info
                .with_label_values(&info.values())
                .set(1);
            self.families
                .model_batching_info
                .with_label_values(&info.batching_values())
                .set(1);
        };
        if now == before {
            return;
        }
        if let Some(before) = before {
            // An error says that it is not there, which is what was wanted.
            drop(
                self.families
                    .model_info
                    .remove_label_values(&before.values()),
            );
            drop(
                self.families
                    .model_batching_info
                    .remove_label_values(&before.batching_values()),
            );
        }
        if let Some(now) = now {
            set(now);
        }
    }

    /// Sets the gauges of the GPU `gpu_id` to what was read, and removes those that could not be read.
    pub fn set_gpu(&self, gpu_id: &str, reading: &GpuReading) {
        let families = &self.families;
        let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let watts = |value: u32| f64::from(value) / 1e3;
        set(
            &families.gpu_utilization,
            gpu_id,
            reading.utilization_percent.map(i64::from),
        );
        set(
            &families.gpu_memory_used,
            gpu_id,
            reading.memory_used_bytes.map(bytes),
        );
        set(
            &families.gpu_memory_total,
            gpu_id,
            reading.memory_total_bytes.map(bytes),
        );
        set(
            &families.gpu_temperature,
            gpu_id,
            reading.temperature_celsius.map(i64::from),
        );
        set(
            &families.gpu_power,
            gpu_id,
            reading.power_milliwatts.map(watts),
        );
    }

    /// The exposition in Prometheus' text format, version 0.0.4.
    ///
    /// # Errors
    /// When a family cannot be encoded, which is a defect.
    pub fn encode(&self) -> Result<Vec<u8>, prometheus::Error> {
        {
            // The log began before there were metrics, and counts for itself. The lock keeps two scrapes from adding the same
            // lines twice.
            let counter = self.log_lines_dropped.lock();
            counter.inc_by(log_writer::dropped().saturating_sub(counter.get()));
        }
        let mut text = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Sets the gauge of the one label `label`, or removes it when there is nothing to say.
fn set<A: Atomic>(family: &GenericGaugeVec<A>, label: &str, value: Option<A::T>) {
    match value {
        Some(value) => family.with_label_values(&[label]).set(value),
        // An error says that it is not there, which is what was wanted.
        None => drop(family.remove_label_values(&[label])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Prometheus reads as the quantile `q` where every prediction took `seconds`: it takes them to be spread evenly
    /// over their bucket.
    fn quantile(q: f64, seconds: f64) -> f64 {
        let edges = PREDICTION_SECONDS;
        let above = edges.partition_point(|edge| *edge < seconds);
        let (low, high) = (edges[above - 1], edges[above]);
        low + (high - low) * q
    }

    #[test]
    fn a_p99_around_the_autoscalers_threshold_is_read_with_an_error_of_a_tenth_at_most() {
        for step in 0..2000 {
            let seconds = 0.1 + 0.0001 * f64::from(step);
            let error = (quantile(0.99, seconds) - seconds).abs() / seconds;
            assert!(
                error <= 0.1,
                "{seconds} s is read as {} s",
                quantile(0.99, seconds)
            );
        }
    }
}
