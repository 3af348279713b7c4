//! Whether a model may take its place, by what clients were told of its signature.
//!
//! Invariant: whoever asks for a model by its version, or without one, gets the signature that was told; only a start, when
//! nobody was told any, is free.

use super::error::ReloadError;
use super::plan::Load;
use crate::model::versions::ModelId;
use crate::models::registry::Models;
use crate::models::served::ServedModel;

/// Why `model` cannot take its place among `models`, because of its signature. Whoever asks for it by its version, or
/// without one if it is to answer that, was told another one.
pub(super) fn difference(model: &ServedModel, models: &Models, load: &Load) -> Option<ReloadError> {
    let Load { id, instead_of } = load;
    let change = |before: &ServedModel| before.declared.signature_change(&model.declared);
    if let Some(same) = models.version(&id.name, &id.version) {
        return change(same).map(ReloadError::Signature);
    }
    if let Some(old) = instead_of.as_ref().filter(|old| old.name != id.name) {
        let change = change(models.get(&old.name)?)?;
        let old = old.name.clone();
        return Some(ReloadError::Successor { old, change });
    }
    let highest = models.get(&id.name)?;
    let is_replaced = instead_of.as_ref() == Some(&highest.metadata.id());
    if is_replaced || *id > highest.metadata.id() {
        return change(highest).map(ReloadError::Signature);
    }
    None
}

/// Tells if who names no version gets another signature, now that `id` was taken out of `before`, which leaves `after`.
pub(super) fn compare_next(id: &ModelId, before: &Models, after: &Models) {
    if let (Some(before), Some(next)) = (before.get(&id.name), after.get(&id.name))
        && let Some(change) = before.declared.signature_change(&next.declared)
    {
        tracing::warn!(
            model = id.name,
            version = next.metadata.version,
            reason = change,
            "requests that name no version are answered by one of another signature now, because the higher one is gone"
        );
    }
}
