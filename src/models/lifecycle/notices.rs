//! What the log and `/ready` are told of a repository besides its models.
//!
//! Invariant: each thing is told once, and again only if it has changed or somebody asked.

use crate::model::default::DefaultModel;
use crate::model::repository::{Found, Skipped, SkippedList};
use crate::models::registry::Registry;

/// What the log and `/ready` are told of a repository besides its models: what is skipped, and which model is the default
/// one.
pub(super) struct Notices {
    default: DefaultModel,
    /// What was skipped at the last look.
    skipped: SkippedList,
    /// What of it is in the log.
    logged: Vec<Skipped>,
}

impl Notices {
    /// Nothing has been told yet; `default` is what the server begins with.
    pub(super) fn new(default: DefaultModel) -> Self {
        Self {
            default,
            skipped: SkippedList::default(),
            logged: Vec::new(),
        }
    }

    /// Takes note of what is `skipped`, and tells what is new: at once if somebody asked, else if it was there at the
    /// last look too, because a folder may be filled just now.
    pub(super) fn see(&mut self, skipped: &SkippedList, asked: bool) {
        self.logged
            .retain(|logged| skipped.named().contains(logged));
        for entry in skipped.named() {
            let settled = asked || self.skipped.named().contains(entry);
            if settled && !self.logged.contains(entry) {
                tracing::warn!(
                    path = entry.path,
                    reason = entry.reason,
                    "something in the repository is not served"
                );
                self.logged.push(entry.clone());
            }
        }
        if skipped.more() > 0 && self.skipped.more() == 0 {
            tracing::warn!(
                more = skipped.more(),
                "more in the repository is not served than is named"
            );
        }
        self.skipped = skipped.clone();
    }

    /// What was skipped at the last look.
    pub(super) fn skipped(&self) -> &SkippedList {
        &self.skipped
    }

    /// Whether requests that name no model follow one that gets another name.
    pub(super) fn follows_renames(&self) -> bool {
        self.default.follows_renames()
    }

    /// Takes note that the only model has another name now, which clients of `/predict` reach without asking for it.
    pub(super) fn rename(&mut self, old: &str, new: &str) {
        self.default.rename(old, new);
        if self.default.name() == Some(new) {
            tracing::warn!(
                model = new,
                before = old,
                "the only model has another name now, and /predict means it"
            );
        }
    }

    /// Says which model answers requests that name none, now that what was `found` and can be served is.
    pub(super) fn choose_default(&mut self, registry: &Registry, found: &Found) {
        let sources = &found.sources;
        let is_served = |name: &str| registry.get(name).is_some();
        let before = self.default.name().map(str::to_owned);
        let models = registry.models();
        let is_found = |name: &str| sources.iter().any(|source| source.name == name);
        let others = !found.broken.is_empty() || models.names().any(|name| !is_found(name));
        self.default.update(sources, others, is_served);
        let name = self.default.name();
        if registry.default_name().as_deref() != name {
            registry.set_default(name);
        }
        if let (Some(before), Some(name)) = (&before, name)
            && before != name
        {
            tracing::info!(model = name, before, "another model is the default one");
        }
        if let Some(notice) = self.default.notice(sources, is_served) {
            tracing::warn!(model = self.default.name(), "{}", notice.text());
        }
    }
}
