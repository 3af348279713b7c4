//! Models whose files are gone: which of them are let go, and which wait.
//!
//! A folder that is renamed looks like one model that goes and another that comes. While the new one cannot serve, the old
//! one stays, so that clients find one of the two all the time.
//!
//! Invariant: a model waits only for what appeared at the look at which its files were gone; what was broken before then
//! keeps nobody.

use std::collections::{BTreeMap, BTreeSet};

/// The models whose files are gone.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// What could not serve at the last look.
    unserved: BTreeSet<String>,
    /// What each of them waits for.
    waiting: BTreeMap<String, BTreeSet<String>>,
}

impl Departures {
    /// Takes note of the models that are `gone`, and of what lies there and does not serve.
    pub(super) fn look(&mut self, gone: &BTreeSet<String>, unserved: BTreeSet<String>) {
        self.waiting.retain(|name, _| gone.contains(name));
        for name in gone {
            let appeared = || unserved.difference(&self.unserved).cloned().collect();
            self.waiting.entry(name.clone()).or_insert_with(appeared);
        }
        for successors in self.waiting.values_mut() {
            successors.retain(|name| unserved.contains(name));
        }
        self.unserved = unserved;
    }

    /// Whether nothing is there that the model may have become.
    pub(super) fn may_go(&self, name: &str) -> bool {
        self.waiting.get(name).is_none_or(BTreeSet::is_empty)
    }

    /// Whether the model, whose files are gone, may have become something else than `successor`; nothing if they are not gone.
    pub(super) fn is_doubtful(&self, name: &str, successor: &str) -> Option<bool> {
        let mut successors = self.waiting.get(name)?.iter();
        Some(successors.any(|it| it != successor))
    }

    /// The models that wait, each with what it waits for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&str, &BTreeSet<String>)> {
        let waiting = self.waiting.iter().filter(|(_, for_)| !for_.is_empty());
        waiting.map(|(name, successors)| (name.as_str(), successors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_model_waits_for_what_appeared_when_its_files_were_gone() {
        let mut departures = Departures::default();
        departures.look(&names(&[]), names(&["old"]));
        // What was broken before keeps nobody.
        departures.look(&names(&["a"]), names(&["old"]));
        assert!(departures.may_go("a"));
        departures.look(&names(&["a", "b"]), names(&["old", "new"]));
        assert!(departures.may_go("a"));
        assert!(!departures.may_go("b"));
        assert_eq!(departures.is_doubtful("a", "new"), Some(false));
        assert_eq!(departures.is_doubtful("b", "new"), Some(false));
        assert_eq!(departures.is_doubtful("b", "newer"), Some(true));
        assert_eq!(departures.is_doubtful("c", "new"), None);
        let waiting: Vec<_> = departures.waiting().collect();
        assert_eq!(waiting, [("b", &names(&["new"]))]);
        // It serves, or is gone.
        departures.look(&names(&["b"]), names(&["old"]));
        assert!(departures.may_go("b"));
        // It comes back, and goes again.
        departures.look(&names(&[]), names(&["old", "new"]));
        departures.look(&names(&["b"]), names(&["old", "new"]));
        assert!(departures.may_go("b"));
    }
}
