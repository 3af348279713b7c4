//! What keeps models from being found at a reload, and whether that was told.
//!
//! Invariant: what is wrong at two looks in turn is told once, since a file may be replaced just now. Whoever asks is told
//! each time.

use std::collections::BTreeSet;

use crate::model::repository::{Broken, RepositoryError};
use crate::model::versions::ModelId;

/// Why a model, or any, cannot be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The model, where it is one: as it is served, else by its folder.
    pub(super) model: Option<String>,
    /// Its version, where it is one of a repository's.
    pub(super) version: Option<String>,
    /// Where it lies, relative to the repository.
    pub(super) place: String,
    /// The reason, for the log.
    pub(super) reason: String,
    /// The reason without paths, for `/ready`.
    pub(super) public: String,
    /// Whether the model could not be loaded; else it goes on serving without its files.
    pub(super) is_failure: bool,
}

impl Trouble {
    /// What is wrong with `broken`, which is served as `served` if it is, and perhaps one `of_several` versions.
    pub(super) fn of_model(broken: &Broken, served: Option<&ModelId>, of_several: bool) -> Self {
        let served_version = || served.map(|id| id.version.clone());
        let version = broken.version.clone();
        let place = match &version {
            Some(version) if of_several => format!("{}/{version}", broken.name),
            _ => broken.name.clone(),
        };
        Self {
            model: Some(served.map_or_else(|| broken.name.clone(), |id| id.name.clone())),
            version: version.or_else(served_version),
            place,
            reason: broken.fault.to_string(),
            public: public(&broken.fault),
            is_failure: true,
        }
    }

    /// That the model called `name` goes on serving without its files, because of its possible `successors`.
    pub(super) fn of_departure(name: &str, successors: &BTreeSet<String>) -> Self {
        let successors: Vec<&str> = successors.iter().map(String::as_str).collect();
        Self {
            model: Some(name.to_owned()),
            version: None,
            place: name.to_owned(),
            reason: format!(
                "its files are gone, and it may be '{}' now, which cannot be served; mend or remove that",
                successors.join("' or '")
            ),
            public: "its files are gone; it goes on serving, because what came in the same moment cannot be served".to_owned(),
            is_failure: false,
        }
    }

    /// Why no model at all is found in the repository, or the file, called `name`.
    pub(super) fn of_all(name: String, fault: &RepositoryError) -> Self {
        Self {
            model: None,
            version: None,
            place: name,
            reason: fault.to_string(),
            public: public(fault),
            is_failure: true,
        }
    }
}

/// The reason in words that anybody may read.
fn public(fault: &RepositoryError) -> String {
    let words = match fault {
        RepositoryError::Unusable { reason, .. } => reason,
        RepositoryError::Empty { .. } => "it holds no model",
        RepositoryError::Missing { .. } => "it is gone",
        RepositoryError::SameName { .. } => "another model has the same name; the log says which",
        RepositoryError::Name { .. } => "its name cannot be a model's; the log says why",
        RepositoryError::Sidecar(_)
        | RepositoryError::Version { .. }
        | RepositoryError::PolicyForFile { .. } => "its sidecar is not valid; the log says why",
        RepositoryError::Unreadable { .. }
        | RepositoryError::BrokenLink { .. }
        | RepositoryError::Address { .. }
        | RepositoryError::NameForFolder { .. }
        | RepositoryError::Several(_) => "it could not be looked at; the log says why",
    };
    words.to_owned()
}

/// What is wrong, as of the last look.
#[derive(Debug, Default)]
pub(super) struct Troubles(Vec<(Trouble, bool)>);

impl Troubles {
    /// Takes note that `current` is wrong now, and gives back what is to be told of it; all of it, if somebody `asked`.
    pub(super) fn see(&mut self, current: Vec<Trouble>, asked: bool) -> Vec<Trouble> {
        let before = std::mem::take(&mut self.0);
        let mut to_tell = Vec::new();
        for trouble in current {
            let known = before.iter().find(|(known, _)| *known == trouble);
            let told = known.is_some_and(|(_, told)| *told);
            let tell = asked || (known.is_some() && !told);
            if tell {
                to_tell.push(trouble.clone());
            }
            self.0.push((trouble, told || tell));
        }
        to_tell
    }

    /// Whether any of it was told.
    pub(super) fn are_told(&self) -> bool {
        self.told().next().is_some()
    }

    /// What of it was told.
    pub(super) fn told(&self) -> impl Iterator<Item = &Trouble> {
        let told = self.0.iter().filter(|(_, told)| *told);
        told.map(|(trouble, _)| trouble)
    }

    /// What is wrong.
    pub(super) fn current(&self) -> impl Iterator<Item = &Trouble> {
        self.0.iter().map(|(trouble, _)| trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(name: &str, reason: &str) -> Trouble {
        Trouble {
            model: Some(name.to_owned()),
            version: None,
            place: name.to_owned(),
            reason: reason.to_owned(),
            public: "it is broken".to_owned(),
            is_failure: true,
        }
    }

    /// The models that are told of.
    fn told(troubles: &mut Troubles, current: &[&Trouble], asked: bool) -> Vec<String> {
        let current = current.iter().map(|it| (*it).clone()).collect();
        let told = troubles.see(current, asked);
        told.into_iter().filter_map(|it| it.model).collect()
    }

    #[test]
    fn trouble_is_told_at_its_second_look_once_and_to_whoever_asks() {
        let mut troubles = Troubles::default();
        let (a, b) = (trouble("a", "x"), trouble("b", "x"));
        assert_eq!(told(&mut troubles, &[&a], false), [""; 0]);
        assert!(!troubles.are_told());
        assert_eq!(told(&mut troubles, &[&a, &b], false), ["a"]);
        assert!(troubles.are_told());
        assert_eq!(told(&mut troubles, &[&a, &b], false), ["b"]);
        assert_eq!(told(&mut troubles, &[&a, &b], false), [""; 0]);
        assert_eq!(told(&mut troubles, &[&a], true), ["a"]);
        // Another reason is another trouble, which has to settle first.
        let changed = trouble("a", "y");
        assert_eq!(told(&mut troubles, &[&changed], false), [""; 0]);
        assert_eq!(told(&mut troubles, &[&changed], false), ["a"]);
        assert_eq!(told(&mut troubles, &[], false), [""; 0]);
        assert!(!troubles.are_told());
        assert_eq!(troubles.current().count(), 0);
    }
}
