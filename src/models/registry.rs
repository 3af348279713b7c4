//! The models that are served, by name, and whether the server is ready to serve them.
//!
//! Invariant: a name that is not in the registry reaches nothing: no file, no metric series. A request is answered by
//! the one model that it found here, whatever is published while it is on its way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::served::ServedModel;
use crate::batching::InstanceHealth;
use crate::model::repository::SkippedList;
use crate::runtime::device_health::DeviceHealth;

/// Models by their names.
pub type Models = BTreeMap<String, Arc<ServedModel>>;

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

    /// Publishes `model` under its name, and returns the one that had it before. Requests that have looked that one up
    /// already are answered by it; all later ones by the new one.
    pub fn publish(&self, model: &Arc<ServedModel>) -> Option<Arc<ServedModel>> {
        self.publish_instead_of(model, &model.metadata.name, true)
    }

    /// The same for a model that comes instead of the one called `old`, whose name is gone at the same moment. If the
    /// default `follows`, requests that name no model go with it.
    pub fn publish_instead_of(
        &self,
        model: &Arc<ServedModel>,
        old: &str,
        follows: bool,
    ) -> Option<Arc<ServedModel>> {
        let before = self.directory.rcu(|directory| {
            let mut models = Models::clone(&directory.models);
            models.remove(old);
            models.insert(model.metadata.name.clone(), Arc::clone(model));
            // Whoever names no model must not meet a moment without one.
            let default = directory.default.clone();
            let default = default.map(|name| {
                if name == old && follows {
                    model.metadata.name.clone()
                } else {
                    name
                }
            });
            Directory {
                models: Arc::new(models),
                default,
            }
        });
        before.models.get(old).cloned()
    }

    /// Takes the model called `name` out.
    pub fn remove(&self, name: &str) -> Option<Arc<ServedModel>> {
        let before = self.directory.rcu(|directory| {
            let mut models = Models::clone(&directory.models);
            models.remove(name);
            Directory {
                models: Arc::new(models),
                default: directory.default.clone(),
            }
        });
        before.models.get(name).cloned()
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

    /// Whether predictions are answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && self.fault().is_none()
    }

    /// The model called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<ServedModel>> {
        self.directory.load().models.get(name).cloned()
    }

    /// The models as they are now, in the order of their names.
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
        for model in self.directory.load().models.values() {
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
