//! What the life of models needs of the rest.

use std::sync::Arc;
use std::time::Duration;

use crate::models::registry::Registry;
use crate::telemetry::metrics::Metrics;

/// What the thread that loads models and lets them go needs.
pub struct LifecycleConfig {
    /// Where models take their names.
    pub registry: Arc<Registry>,
    /// Where reloads are counted.
    pub metrics: Arc<Metrics>,
    /// How often the files are looked at; never if not given.
    pub watch: Option<Duration>,
    /// The longest that a request can need a model that it has found.
    pub grace: Duration,
}
