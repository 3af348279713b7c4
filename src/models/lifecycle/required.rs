//! The models that the server is not ready without.
//!
//! Invariant: required is what was there at the first look and does not say otherwise, until it has served in all versions
//! that are wanted, is gone, or says otherwise. What comes later, or breaks later, makes no server unready.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::model::repository::Found;
use crate::model::versions::ModelId;

/// Where the models lie that the server is not ready without, and that have never served.
#[derive(Debug, Default)]
pub(super) struct Required(BTreeSet<PathBuf>);

impl Required {
    /// What is required of that which was `found` at the first look.
    pub(super) fn of(found: &Found) -> Self {
        let places = requirements(found).filter(|(_, required)| *required);
        Self(places.map(|(place, _)| place.to_owned()).collect())
    }

    /// Takes note of what was `found`, and of what `is_served` of it.
    pub(super) fn look(&mut self, found: &Found, is_served: impl Fn(&ModelId) -> bool) {
        let mut served = BTreeSet::new();
        let mut unserved: BTreeSet<&Path> = found
            .broken
            .iter()
            .map(|broken| broken.place.as_path())
            .collect();
        for source in &found.sources {
            let places = if is_served(&source.id()) {
                &mut served
            } else {
                &mut unserved
            };
            places.insert(source.place.as_path());
        }
        let mut optional: BTreeMap<&Path, bool> = BTreeMap::new();
        for (place, required) in requirements(found) {
            *optional.entry(place).or_insert(true) &= !required;
        }
        self.0.retain(|place| {
            let place = place.as_path();
            let is_complete = served.contains(place) && !unserved.contains(place);
            let is_gone = fs::symlink_metadata(place).is_err();
            !is_complete && !is_gone && !optional.get(place).is_some_and(|optional| *optional)
        });
    }

    /// Whether none is missing.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Where each version of a model lies that was `found`, broken or not, and whether it is required.
fn requirements(found: &Found) -> impl Iterator<Item = (&Path, bool)> {
    let sources = found.sources.iter();
    let sources = sources.map(|source| (source.place.as_path(), source.is_required()));
    let broken = found.broken.iter();
    let broken = broken.map(|broken| (broken.place.as_path(), broken.required));
    sources.chain(broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fingerprint::Fingerprint;
    use crate::model::repository::{Broken, ModelSource, RepositoryError};
    use crate::model::sidecar::Sidecar;

    /// What is found in `root`: versions as `name/version`, one that begins with `!` being broken, one that ends with `?`
    /// not required.
    fn found(root: &Path, texts: &[&str]) -> Found {
        let mut found = Found::default();
        for text in texts {
            let (is_broken, rest) = (text.starts_with('!'), text.trim_start_matches('!'));
            let (required, rest) = (!rest.ends_with('?'), rest.trim_end_matches('?'));
            let (name, version) = rest.split_once('/').unwrap();
            let place = root.join(name);
            fs::create_dir_all(&place).unwrap();
            let model = place.join(version).join("model.onnx");
            if is_broken {
                found.broken.push(Broken {
                    fault: RepositoryError::Unusable {
                        path: model.clone(),
                        reason: "is broken".to_owned(),
                    },
                    model,
                    place,
                    name: name.to_owned(),
                    version: Some(version.to_owned()),
                    required,
                });
            } else {
                let sidecar = Sidecar {
                    required: Some(required),
                    ..Sidecar::default()
                };
                found.sources.push(ModelSource {
                    path: model,
                    place,
                    name: name.to_owned(),
                    version: version.to_owned(),
                    sidecar,
                    fingerprint: Fingerprint::default(),
                });
            }
        }
        found
    }

    #[test]
    fn a_model_is_required_until_all_of_it_that_is_wanted_has_served() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (first, later, served, missing) in [
            // At the first look and later, what serves, and whether something is missed.
            (&["a/1"][..], &["a/1"][..], &["a/1"][..], false),
            (&["a/1"], &["a/1"], &[], true),
            (&["a/1?"], &["a/1?"], &[], false),
            (&["a/1", "a/2"], &["a/1", "a/2"], &["a/1"], true),
            (&["a/1", "a/2"], &["a/1", "a/2"], &["a/1", "a/2"], false),
            (&["a/1", "!b/1"], &["a/1", "!b/1"], &["a/1"], true),
            (&["a/1", "!b/1"], &["a/1", "b/1"], &["a/1", "b/1"], false),
            // It says so only now.
            (&["a/1", "!b/1"], &["a/1", "!b/1?"], &["a/1"], false),
            // It comes later.
            (&["a/1"], &["a/1", "!b/1"], &["a/1"], false),
            (&["a/1", "!b/1?"], &["a/1", "!b/1"], &["a/1"], false),
        ] {
            let first = found(root, first);
            let mut required = Required::of(&first);
            let later = found(root, later);
            let is_served = |id: &ModelId| served.contains(&id.to_string().as_str());
            required.look(&later, is_served);
            assert_eq!(!required.is_empty(), missing, "{later:?}");
        }
        let look = found(root, &["a/1", "!b/1"]);
        let mut required = Required::of(&look);
        fs::remove_dir_all(root.join("b")).unwrap();
        required.look(&found(root, &["a/1"]), |_| true);
        assert!(required.is_empty(), "it is gone");
    }
}
