//! The models that are served, by name, and whether the server is ready to serve them.
//!
//! Invariant: a name that is not in the registry reaches nothing: no file, no metric series. A request is answered by
//! the one model that it found here, whatever is published while it is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::served::ServedModel;
use crate::batching::InstanceHealth;
use crate::model::repository::SkippedList;
use crate::model::versions::ModelId;
use crate::runtime::device_health::DeviceHealth;

/// The models that are served.
pub type Models = super::directory::Models<ServedModel>;

/// What a request finds its model in.
#[derive(Clone, Default)]
struct Directory {
    models: Arc<Models>,
    /// The name of the model that answers requests which name none; perhaps of none that is served.
    default: Option<String>,
}

/// The loaded models, and the server's state.
#[derive(Default)]
pub struct Registry {
    directory: ArcSwap<Directory>,
    /// What lies in the repository and is not served.
    skipped: ArcSwap<SkippedList>,
    /// Whether a model is missing without which the server is not ready.
    incomplete: AtomicBool,
    phase: AtomicU8,
    fault: AtomicU8,
    stuck: AtomicBool,
    device: Arc<DeviceHealth>,
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
    /// An instance ended.
    InstanceDead,
    /// The threads of connections run nothing any more.
    Stuck,
    /// The GPU cannot be used any more.
    DeviceLost,
}

impl Fault {
    /// The fault in words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::InstanceHung => "an instance hangs in an execution",
            Self::InstanceDead => "an instance has died",
            Self::Stuck => "the threads of connections are stuck",
            Self::DeviceLost => "the GPU is lost",
        }
    }

    /// The word by which programs tell it apart.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::InstanceHung | Self::InstanceDead | Self::Stuck => "not_ready",
            Self::DeviceLost => "device_lost",
        }
    }
}

impl Registry {
    /// An empty registry of models that are executed on `device`.
    #[must_use]
    pub fn new(device: Arc<DeviceHealth>) -> Self {
        Self {
            device,
            ..Self::default()
        }
    }

    /// Publishes `model` under its name and version. What had these before is taken out at the same moment, and so is what
    /// it comes `instead_of`; both are returned. Requests that have looked those up already are answered by them; all later
    /// ones by the new one. If the default `follows`, requests that name no model go with it to another name.
    pub fn publish(
        &self,
        model: &Arc<ServedModel>,
        instead_of: Option<&ModelId>,
        follows: bool,
    ) -> Vec<Arc<ServedModel>> {
        let id = model.metadata.id();
        let before = self.directory.rcu(|directory| {
            let mut models = Models::clone(&directory.models);
            instead_of.and_then(|old| models.remove(old));
            models.insert(&id, Arc::clone(model));
            let mut default = directory.default.clone();
            // Whoever names no model must not meet a moment without one.
            if let Some(old) = instead_of.filter(|old| old.name != id.name)
                && follows
                && default.as_deref() == Some(&old.name)
            {
                default = Some(id.name.clone());
            }
            Directory {
                models: Arc::new(models),
                default,
            }
        });
        let replaced = [Some(&id), instead_of].into_iter().flatten();
        replaced
            .filter_map(|id| before.models.version(&id.name, &id.version).cloned())
            .collect()
    }

    /// Takes this version of a model out.
    pub fn remove(&self, id: &ModelId) -> Option<Arc<ServedModel>> {
        let before = self.directory.rcu(|directory| {
            let mut models = Models::clone(&directory.models);
            models.remove(id);
            Directory {
                models: Arc::new(models),
                default: directory.default.clone(),
            }
        });
        before.models.version(&id.name, &id.version).cloned()
    }

    /// Sets the model that answers requests which name none.
    pub fn set_default(&self, name: Option<&str>) {
        self.directory.rcu(|directory| Directory {
            models: Arc::clone(&directory.models),
            default: name.map(str::to_owned),
        });
    }

    /// Takes note of what lies in the repository and is not served.
    pub fn set_skipped(&self, skipped: SkippedList) {
        self.skipped.store(Arc::new(skipped));
    }

    /// What lies in the repository and is not served.
    #[must_use]
    pub fn skipped(&self) -> Arc<SkippedList> {
        self.skipped.load_full()
    }

    /// Becomes ready, unless the server drains already.
    pub fn become_ready(&self) {
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
        if self.device.is_lost() {
            return Some(Fault::DeviceLost);
        }
        match self.fault.load(Ordering::Acquire) {
            1 => Some(Fault::InstanceHung),
            2 => Some(Fault::InstanceDead),
            _ => self.stuck.load(Ordering::Acquire).then_some(Fault::Stuck),
        }
    }

    /// Says whether the threads of connections are stuck, as far as the watchdog sees.
    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Release);
    }

    /// Says whether a model is missing without which the server is not ready. Those that serve answer all the same.
    pub fn set_incomplete(&self, incomplete: bool) {
        self.incomplete.store(incomplete, Ordering::Release);
    }

    /// Whether a model is missing without which the server is not ready.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Acquire)
    }

    /// Whether predictions of all models that are required are answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && !self.is_incomplete() && self.fault().is_none()
    }

    /// The highest version of the model called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<ServedModel>> {
        self.directory.load().models.get(name).cloned()
    }

    /// This version of the model called `name`.
    #[must_use]
    pub fn version(&self, name: &str, version: &str) -> Option<Arc<ServedModel>> {
        self.directory.load().models.version(name, version).cloned()
    }

    /// The models as they are now.
    #[must_use]
    pub fn models(&self) -> Arc<Models> {
        Arc::clone(&self.directory.load().models)
    }

    /// The model that answers requests which name none.
    #[must_use]
    pub fn default_model(&self) -> Option<Arc<ServedModel>> {
        let directory = self.directory.load();
        let name = directory.default.as_ref()?;
        directory.models.get(name).cloned()
    }

    /// The name that [`Self::default_model`] looks for.
    #[must_use]
    pub fn default_name(&self) -> Option<String> {
        self.directory.load().default.clone()
    }

    /// Looks at every instance: interrupts runs that nobody waits for, updates gauges, and notes faults.
    pub fn check(&self, now: Instant) {
        let mut fault = 0;
        for model in self.directory.load().models.all() {
            model.scheduler.update_gauges();
            fault = fault.max(match model.scheduler.check(now) {
                InstanceHealth::Healthy => 0,
                InstanceHealth::Hung => 1,
                InstanceHealth::Dead => 2,
            });
        }
        self.fault.store(fault, Ordering::Release);
    }
}
