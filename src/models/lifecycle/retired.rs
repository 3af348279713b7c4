//! Models that were taken out of the registry, until nobody uses them any more.
//!
//! Invariant: a model is ended once it is held by nobody else, or no request can need it any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::versions::ModelId;
use crate::models::served::ServedModel;

/// How often a replaced model is looked at, until nobody uses it any more.
pub(super) const RETIRE_INTERVAL: Duration = Duration::from_millis(50);

/// How long a model without requests may take to end its threads.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The models that were taken out.
#[derive(Default)]
pub(super) struct RetiredModels(Vec<(Arc<ServedModel>, Instant)>);

impl RetiredModels {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `models`, which nobody can need after `deadline`.
    pub(super) fn add(
        &mut self,
        models: impl IntoIterator<Item = Arc<ServedModel>>,
        deadline: Instant,
    ) {
        let models = models.into_iter();
        self.0.extend(models.map(|model| (model, deadline)));
    }

    /// Ends those that nobody uses any more, and says which these were.
    pub(super) fn let_go(&mut self, now: Instant) -> Vec<ModelId> {
        let mut gone = Vec::new();
        self.0.retain(|(model, deadline)| {
            // Nobody can find it any more, so that once we are alone with it we stay alone.
            let alone = Arc::strong_count(model) == 1;
            if alone || now > *deadline {
                close(model);
                gone.push(model.metadata.id());
                return false;
            }
            let _ = model.scheduler.check(now);
            true
        });
        gone
    }

    /// Ends all of them.
    pub(super) fn close(&self) {
        for (model, _) in &self.0 {
            close(model);
        }
    }
}

/// Ends the instances of a model that nobody asks any more.
pub(super) fn close(model: &ServedModel) {
    model.scheduler.close();
    if !model.scheduler.join(Instant::now() + JOIN_TIMEOUT) {
        let name = &model.metadata.name;
        tracing::warn!(model = name, "an instance of a replaced model did not end");
    }
}
