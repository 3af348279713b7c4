//! Which model answers requests that name none.
//!
//! Invariant: a name that requests without a name have reached stays the one that they reach, until a flag or a sidecar
//! says another, or the only model gets another name and keeps its signature. Neither a model that appears nor one that
//! goes away sends them elsewhere.

use std::collections::BTreeSet;

use thiserror::Error;

use super::repository::ModelSource;

/// The most names that a message lists.
const MOST_NAMED: usize = 8;

/// Why no model can be the default one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DefaultError {
    /// The flag names a model that is not there.
    #[error(
        "--default-model (DEFAULT_MODEL) is '{name}', which is none of the models: {known}; name one of them"
    )]
    Unknown {
        /// What the flag says.
        name: String,
        /// The models that there are.
        known: String,
    },
    /// Several sidecars say so.
    #[error(
        "the sidecars of {names} all say 'default = true'; leave it in one of them, or set --default-model (DEFAULT_MODEL)"
    )]
    Several {
        /// The models.
        names: String,
    },
}

/// What people should know about the default model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Several models are served and none is the default one.
    NoneNamed,
    /// It is the default one only because it was there first.
    Unsaid(String),
    /// It is not served.
    Gone(String),
    /// The settings contradict each other; what was before stays.
    Contradiction(DefaultError),
}

impl Notice {
    /// The notice in one line, with what to do.
    #[must_use]
    pub fn text(&self) -> String {
        const FIX: &str = "name one with --default-model (DEFAULT_MODEL), or with 'default = true' in its sidecar";
        match self {
            Self::NoneNamed => format!(
                "several models are served and none is the default one, so that /predict answers 404; call one as /v1/models/NAME:predict, or {FIX}"
            ),
            Self::Unsaid(name) => format!(
                "several models are served now; /predict stays with '{name}', which was the only one before, until the server is started anew: it will answer 404 then; {FIX}"
            ),
            Self::Gone(name) => format!(
                "the default model '{name}' is not served, so that /predict answers 404; bring it back, or {FIX}"
            ),
            Self::Contradiction(error) => format!("{error}; until then nothing changes"),
        }
    }
}

/// The default model's name, and who says so.
#[derive(Debug, Clone, Default)]
pub struct DefaultModel {
    /// What the flag says.
    flag: Option<String>,
    current: Option<String>,
    /// What was told last.
    told: Option<Notice>,
}

impl DefaultModel {
    /// What a server begins with: the model that `flag` names, if it does.
    #[must_use]
    pub fn at_start(flag: Option<&str>) -> Self {
        Self {
            flag: flag.map(str::to_owned),
            current: flag.map(str::to_owned),
            told: None,
        }
    }

    /// Refuses a flag that names none of `sources`.
    ///
    /// # Errors
    /// With the names that there are.
    pub fn check(flag: Option<&str>, sources: &[ModelSource]) -> Result<(), DefaultError> {
        match flag.filter(|name| !sources.iter().any(|source| source.name == *name)) {
            None => Ok(()),
            Some(name) => Err(DefaultError::Unknown {
                name: name.to_owned(),
                known: list(sources),
            }),
        }
    }

    /// The name, whether a model that is served has it or not.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// Whether the default model stays the default one under another name: what a flag names is that name.
    #[must_use]
    pub fn follows_renames(&self) -> bool {
        self.flag.is_none()
    }

    /// Takes note that the model called `old` is called `new` from now on.
    pub fn rename(&mut self, old: &str, new: &str) {
        if self.current.as_deref() == Some(old) && self.follows_renames() {
            self.current = Some(new.to_owned());
        }
    }

    /// Looks: `sources` are there, and those for which `is_served` holds are served. The only one is the default one unless
    /// there are `others` that are broken, or serve without being there: their sidecars may say that they are meant. A contradiction among sidecars
    /// changes nothing, and [`Self::notice`] tells it.
    pub fn update(
        &mut self,
        sources: &[ModelSource],
        others: bool,
        is_served: impl Fn(&str) -> bool,
    ) {
        let Ok(said) = self.said(sources) else {
            return;
        };
        if let Some(name) = said.filter(|name| is_served(name) || self.current.is_none()) {
            self.current = Some(name);
        } else if self.current.is_none() && !others {
            self.current = only(sources);
        }
    }

    /// What is to be told now, if it was not told before: `sources` are there, and those for which `is_served` holds are
    /// served.
    pub fn notice(
        &mut self,
        sources: &[ModelSource],
        is_served: impl Fn(&str) -> bool,
    ) -> Option<Notice> {
        let mut names = names(sources);
        names.retain(|name| is_served(name));
        let several = names.len() > 1;
        let notice = match (self.said(sources), &self.current) {
            (Err(error), _) => Some(Notice::Contradiction(error)),
            (Ok(_), Some(name)) if !is_served(name) => Some(Notice::Gone(name.clone())),
            (Ok(None), Some(name)) if several => Some(Notice::Unsaid(name.clone())),
            (Ok(None), None) if several => Some(Notice::NoneNamed),
            (Ok(_), _) => None,
        };
        let is_new = notice != self.told;
        self.told.clone_from(&notice);
        notice.filter(|_| is_new)
    }

    /// What the flag, or else a sidecar, says.
    fn said(&self, sources: &[ModelSource]) -> Result<Option<String>, DefaultError> {
        if self.flag.is_some() {
            return Ok(self.flag.clone());
        }
        let claims = sources.iter().filter(|source| source.sidecar.default);
        let claims: Vec<ModelSource> = claims.cloned().collect();
        match names(&claims).as_slice() {
            [] => Ok(None),
            [name] => Ok(Some((*name).to_owned())),
            _ => Err(DefaultError::Several {
                names: list(&claims),
            }),
        }
    }
}

/// The names of `sources`, each once.
fn names(sources: &[ModelSource]) -> Vec<&str> {
    let names: BTreeSet<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    names.into_iter().collect()
}

/// The only one, if there is one.
fn only(sources: &[ModelSource]) -> Option<String> {
    match names(sources).as_slice() {
        [name] => Some((*name).to_owned()),
        _ => None,
    }
}

fn list(sources: &[ModelSource]) -> String {
    let mut names = names(sources);
    if names.len() > MOST_NAMED {
        names.truncate(MOST_NAMED);
        names.push("...");
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fingerprint::Fingerprint;
    use crate::model::sidecar::Sidecar;

    /// Models by their names; those with `*` say that they are the default one.
    fn models(names: &[&str]) -> Vec<ModelSource> {
        let source = |name: &&str| ModelSource {
            path: name.into(),
            place: name.into(),
            name: name.trim_end_matches('*').to_owned(),
            version: "1".to_owned(),
            sidecar: Sidecar {
                default: name.ends_with('*'),
                ..Sidecar::default()
            },
            fingerprint: Fingerprint::default(),
        };
        names.iter().map(source).collect()
    }

    fn start(flag: Option<&str>, names: &[&str]) -> DefaultModel {
        let mut default = DefaultModel::at_start(flag);
        default.update(&models(names), false, |_| true);
        default
    }

    /// What is the default one, and told, once these are there and served.
    fn after(default: &mut DefaultModel, names: &[&str]) -> (Option<String>, Option<Notice>) {
        let sources = models(names);
        let is_served = |name: &str| sources.iter().any(|source| source.name == name);
        default.update(&sources, false, is_served);
        let notice = default.notice(&sources, is_served);
        (default.name().map(str::to_owned), notice)
    }

    #[test]
    fn the_flag_then_a_sidecar_then_the_only_model_says_which_it_is() {
        assert_eq!(start(Some("b"), &["a*", "b"]).name(), Some("b"));
        assert_eq!(start(None, &["a", "b*"]).name(), Some("b"));
        assert_eq!(start(None, &["a"]).name(), Some("a"));
        assert_eq!(start(None, &["a", "b"]).name(), None);
        let unknown = DefaultModel::check(Some("c"), &models(&["a", "b"]));
        let error = unknown.unwrap_err().to_string();
        assert!(error.contains("'c'") && error.contains("a, b;"), "{error}");
        assert_eq!(DefaultModel::check(Some("a"), &models(&["a", "b"])), Ok(()));
        let mut several = start(None, &["a*", "b*", "c"]);
        let (name, notice) = after(&mut several, &["a*", "b*", "c"]);
        assert_eq!(name, None);
        let text = notice.unwrap().text();
        assert!(text.contains("sidecars of a, b all"), "{text}");
    }

    #[test]
    fn versions_of_one_model_are_one_model() {
        let versions = &["a*", "a*", "b"];
        assert_eq!(start(None, versions).name(), Some("a"));
        assert_eq!(start(None, &["a", "a"]).name(), Some("a"));
        assert_eq!(after(&mut start(None, &["a", "a"]), &["a", "a"]).1, None);
    }

    #[test]
    fn the_only_model_is_not_the_default_one_beside_another_that_is_broken() {
        let mut default = DefaultModel::at_start(None);
        default.update(&models(&["a"]), true, |_| true);
        assert_eq!(default.name(), None);
        default.update(&models(&["a*"]), true, |_| true);
        assert_eq!(default.name(), Some("a"));
    }

    #[test]
    fn a_model_that_appears_or_goes_sends_nobody_elsewhere_and_each_is_told_once() {
        let mut default = start(None, &["a"]);
        let a = || Some("a".to_owned());
        assert_eq!(after(&mut default, &["a"]), (a(), None));
        let unsaid = Some(Notice::Unsaid("a".to_owned()));
        assert_eq!(after(&mut default, &["a", "b"]), (a(), unsaid));
        assert_eq!(after(&mut default, &["a", "b"]), (a(), None));
        let gone = Some(Notice::Gone("a".to_owned()));
        assert_eq!(after(&mut default, &["b"]), (a(), gone));
        assert_eq!(after(&mut default, &["b"]), (a(), None));
        assert_eq!(after(&mut default, &["a"]), (a(), None));
        let b = Some("b".to_owned());
        assert_eq!(after(&mut default, &["a", "b*"]), (b.clone(), None));
        let (name, notice) = after(&mut default, &["a*", "b*"]);
        assert_eq!(name, b);
        assert!(matches!(notice, Some(Notice::Contradiction(_))));
        default.rename("b", "c");
        assert_eq!(after(&mut default, &["c"]), (Some("c".to_owned()), None));
    }

    #[test]
    fn several_models_of_which_none_was_named_have_none_until_one_is_left() {
        let mut default = start(None, &["a", "b"]);
        let none = Some(Notice::NoneNamed);
        assert_eq!(after(&mut default, &["a", "b"]), (None, none));
        assert_eq!(after(&mut default, &["a", "b"]), (None, None));
        assert_eq!(after(&mut default, &["b"]), (Some("b".to_owned()), None));
    }

    #[test]
    fn what_the_flag_says_stays_whatever_sidecars_say() {
        let mut default = start(Some("a"), &["a", "b*"]);
        let a = || Some("a".to_owned());
        assert_eq!(after(&mut default, &["a", "b*"]), (a(), None));
        default.rename("a", "c");
        let gone = Some(Notice::Gone("a".to_owned()));
        assert_eq!(after(&mut default, &["c", "b*"]), (a(), gone));
    }
}
