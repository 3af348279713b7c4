//! Which models there are: names, the versions of each, and the one that is meant where none is named.
//!
//! Invariant: every name has at least one version; without a version, its highest is meant.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::versions::{self, ModelId};

/// Models by their names, each with its versions from the lowest to the highest.
pub struct Models<M>(BTreeMap<String, Vec<(String, Arc<M>)>>);

impl<M> Default for Models<M> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<M> Clone for Models<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Models<M> {
    /// The highest version of the model called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<M>> {
        let (_, model) = self.0.get(name)?.last()?;
        Some(model)
    }

    /// This version of the model called `name`.
    #[must_use]
    pub fn version(&self, name: &str, version: &str) -> Option<&Arc<M>> {
        let mut versions = self.0.get(name)?.iter();
        let (_, model) = versions.find(|(known, _)| known == version)?;
        Some(model)
    }

    /// The versions of the model called `name`, from the lowest to the highest.
    pub fn versions(&self, name: &str) -> impl Iterator<Item = &str> {
        let versions = self.0.get(name).into_iter().flatten();
        versions.map(|(version, _)| version.as_str())
    }

    /// The names, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Every version of every model, in the order of names and versions.
    pub fn all(&self) -> impl Iterator<Item = &Arc<M>> {
        self.0.values().flatten().map(|(_, model)| model)
    }

    /// Every version of every model by its name.
    pub fn ids(&self) -> impl Iterator<Item = ModelId> {
        self.0.iter().flat_map(|(name, versions)| {
            let versions = versions.iter();
            versions.map(|(version, _)| ModelId::new(name, version))
        })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `model`, and returns the one that was called so before.
    pub(super) fn insert(&mut self, id: &ModelId, model: Arc<M>) -> Option<Arc<M>> {
        let versions = self.0.entry(id.name.clone()).or_default();
        let place =
            versions.binary_search_by(|(version, _)| versions::compare(version, &id.version));
        match place {
            Ok(place) => {
                let known = versions.get_mut(place)?;
                Some(std::mem::replace(&mut known.1, model))
            }
            Err(place) => {
                versions.insert(place, (id.version.clone(), model));
                None
            }
        }
    }

    /// Takes this version out.
    pub(super) fn remove(&mut self, id: &ModelId) -> Option<Arc<M>> {
        let versions = self.0.get_mut(&id.name)?;
        let place = versions
            .iter()
            .position(|(version, _)| *version == id.version)?;
        let (_, model) = versions.remove(place);
        if versions.is_empty() {
            self.0.remove(&id.name);
        }
        Some(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_answers_where_none_is_named() {
        let mut models = Models::default();
        for (name, version) in [("m", "9"), ("m", "10"), ("m", "1"), ("n", "1.2.0")] {
            let id = ModelId::new(name, version);
            assert!(models.insert(&id, Arc::new(id.to_string())).is_none());
        }
        let named = |models: &Models<String>, name: &str| models.get(name).map(|it| (**it).clone());
        assert_eq!(named(&models, "m").as_deref(), Some("m/10"));
        assert_eq!(models.version("m", "9").unwrap().as_str(), "m/9");
        assert!(models.version("m", "2").is_none());
        assert!(models.version("x", "1").is_none());
        assert_eq!(models.versions("m").collect::<Vec<_>>(), ["1", "9", "10"]);
        assert_eq!(models.all().count(), 4);

        let ten = ModelId::new("m", "10");
        let before = models.insert(&ten, Arc::new("new".to_owned()));
        assert_eq!(before.unwrap().as_str(), "m/10");
        assert_eq!(named(&models, "m").as_deref(), Some("new"));
        assert!(models.remove(&ten).is_some());
        assert!(models.remove(&ten).is_none());
        assert_eq!(named(&models, "m").as_deref(), Some("m/9"));
        models.remove(&ModelId::new("n", "1.2.0"));
        assert_eq!(models.names().collect::<Vec<_>>(), ["m"]);
    }
}
