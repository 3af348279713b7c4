//! The models that are served, by name, and whether the server is ready to serve them.
//!
//! Invariant: a name that is not in the registry reaches nothing: no file, no metric series.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::batching::{InstanceHealth, Scheduler};
use crate::model::ModelMetadata;
use crate::telemetry::metrics::PredictionMetrics;

/// One model with everything that answers requests for it.
pub struct ServedModel {
    /// What the model is.
    pub metadata: Arc<ModelMetadata>,
    /// Its queue and instances.
    pub scheduler: Scheduler,
    /// Its metrics at the edge.
    pub metrics: PredictionMetrics,
    /// The device that really executes it.
    pub device: String,
    /// ONNX Runtime's name of the provider.
    pub execution_provider: &'static str,
    /// Why it is not executed on the preferred device, when `auto` fell back.
    pub fallback: Option<String>,
}

/// The loaded models, and the server's state.
#[derive(Default)]
pub struct Registry {
    models: OnceLock<BTreeMap<String, Arc<ServedModel>>>,
    phase: AtomicU8,
    fault: AtomicU8,
}

/// Where in its life the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Loading and warming up.
    Starting,
    /// Answering predictions.
    Ready,
    /// About to stop.
    Draining,
}

/// What a restart would cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An instance executes on and on.
    InstanceHung,
    /// An instance's thread ended.
    InstanceDead,
}

impl Fault {
    /// The fault in words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::InstanceHung => "an instance hangs in an execution",
            Self::InstanceDead => "an instance has died",
        }
    }
}

impl Registry {
    /// Publishes `models` and becomes ready, unless the server drains already.
    pub fn publish(&self, models: Vec<ServedModel>) {
        let models = models
            .into_iter()
            .map(|model| (model.metadata.name.clone(), Arc::new(model)))
            .collect();
        // A second publication would be a defect; the first one stands.
        let _ = self.models.set(models);
        let _ = self
            .phase
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Turns unready for good.
    pub fn drain(&self) {
        self.phase.store(2, Ordering::Release);
    }

    /// Where in its life the server is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// What a restart would cure, if anything.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match self.fault.load(Ordering::Acquire) {
            1 => Some(Fault::InstanceHung),
            2 => Some(Fault::InstanceDead),
            _ => None,
        }
    }

    /// Whether predictions are answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && self.fault().is_none()
    }

    /// The model called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<ServedModel>> {
        self.models.get()?.get(name)
    }

    /// The models, in the order of their names.
    pub fn models(&self) -> impl Iterator<Item = &Arc<ServedModel>> {
        self.models.get().into_iter().flat_map(BTreeMap::values)
    }

    /// The model that `/predict` means: the only one.
    #[must_use]
    pub fn default_model(&self) -> Option<&Arc<ServedModel>> {
        let mut models = self.models();
        models.next().filter(|_| models.next().is_none())
    }

    /// Looks at every instance: interrupts runs that nobody waits for, updates gauges, and notes faults.
    pub fn check(&self, now: Instant) {
        let mut fault = 0;
        for model in self.models() {
            fault = fault.max(match model.scheduler.check(now) {
                InstanceHealth::Well => 0,
                InstanceHealth::Hung => 1,
                InstanceHealth::Dead => 2,
            });
        }
        self.fault.store(fault, Ordering::Release);
    }
}
