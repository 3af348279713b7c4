//! Which models could not be loaded, as the metrics and `/ready` say it.
//!
//! Invariant: what is said of a model is what came of its files when they were last tried.

use std::collections::{BTreeMap, BTreeSet};

use super::error::ReloadError;
use super::troubles::Troubles;
use crate::model::versions::ModelId;
use crate::models::registry::Models;
use crate::telemetry::metrics::Metrics;

/// The models whose files were refused when they were last tried.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Why, in words that anybody may read.
    refused: BTreeMap<ModelId, &'static str>,
    /// What of `ml_model_load_failed` is set.
    counted: BTreeSet<(String, String)>,
}

impl Failures {
    /// The files of `id` were refused because of `error`.
    pub(super) fn note(&mut self, id: &ModelId, error: &ReloadError) {
        self.refused.insert(id.clone(), error.public());
    }

    /// The files of `id` were loaded.
    pub(super) fn forget(&mut self, id: &ModelId) {
        self.refused.remove(id);
    }

    /// Forgets what is not `wanted` any more.
    pub(super) fn keep_only(&mut self, wanted: impl Fn(&ModelId) -> bool) {
        self.refused.retain(|id, _| wanted(id));
    }

    /// What was refused, and why in words that anybody may read.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&ModelId, &'static str)> {
        self.refused.iter().map(|(id, reason)| (id, *reason))
    }

    /// Says in `metrics` what was refused, what of the `troubles` was told, and whether anything waits, which it does while
    /// something `is_loading` that others did not wait for.
    pub(super) fn count(&mut self, metrics: &Metrics, troubles: &Troubles, is_loading: bool) {
        let refused = self.refused.keys().cloned();
        let refused = refused.map(|id| (id.name, id.version));
        let troubles_of_models = troubles.told().filter(|trouble| trouble.is_failure);
        let troubles_of_models = troubles_of_models.filter_map(|trouble| {
            let version = trouble.version.clone().unwrap_or_default();
            Some((trouble.model.clone()?, version))
        });
        let failures: BTreeSet<(String, String)> = refused.chain(troubles_of_models).collect();
        for (name, version) in &failures {
            metrics.set_load_failed(name, version, true);
        }
        for (name, version) in self.counted.difference(&failures) {
            metrics.set_load_failed(name, version, false);
        }
        self.counted = failures;
        let blocked = troubles.are_told() || !self.refused.is_empty() || is_loading;
        metrics.reload_blocked.set(i64::from(blocked));
    }
}

/// Writes into the log why `model`, if it is known which, could not be loaded while `models` serve.
pub(super) fn tell(models: &Models, model: Option<&str>, version: Option<&str>, reason: &str) {
    let (serves, others_serve) = match (model, version) {
        (Some(name), Some(version)) => (
            models.version(name, version).is_some(),
            models.get(name).is_some(),
        ),
        (Some(name), None) => (models.get(name).is_some(), false),
        (None, _) => (!models.is_empty(), false),
    };
    if serves {
        tracing::warn!(
            model,
            version,
            reason,
            "the model could not be loaded again; what served before goes on serving"
        );
    } else if others_serve {
        tracing::warn!(
            model,
            version,
            reason,
            "this version of the model could not be loaded; what serves under its name goes on serving"
        );
    } else {
        tracing::warn!(
            model,
            version,
            reason,
            "the model could not be loaded, and is not served"
        );
    }
}
