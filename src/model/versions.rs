//! Versions of one model: which one is meant, and which of a repository's are served.
//!
//! Invariant: versions that are whole numbers are ordered as such, so that 10 comes after 9.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor};

/// One version of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    /// The name that the model is served under.
    pub name: String,
    /// The version; of a repository's model, a whole number.
    pub version: String,
}

impl ModelId {
    /// The version `version` of the model called `name`.
    #[must_use]
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }
}

impl Ord for ModelId {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_name = self.name.cmp(&other.name);
        by_name.then_with(|| compare(&self.version, &other.version))
    }
}

impl PartialOrd for ModelId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.name, self.version)
    }
}

/// Which of two versions is the higher one. Whatever is no whole number comes before all that are.
#[must_use]
pub fn compare(left: &str, right: &str) -> Ordering {
    let number = |version: &str| version.parse::<u64>().ok();
    let by_number = number(left).cmp(&number(right));
    by_number.then_with(|| left.cmp(right))
}

/// Which of a repository's versions of a model are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionPolicy {
    /// So many of the highest ones.
    Latest(NonZeroUsize),
    /// Every one.
    All,
    /// These.
    Specific(BTreeSet<u64>),
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::Latest(NonZeroUsize::MIN)
    }
}

impl VersionPolicy {
    /// Those of `there` that are served, and those that are asked for and are not there.
    #[must_use]
    pub fn select(&self, there: &BTreeSet<u64>) -> (BTreeSet<u64>, BTreeSet<u64>) {
        match self {
            Self::Latest(most) => {
                let highest = there.iter().rev().take(most.get());
                (highest.copied().collect(), BTreeSet::new())
            }
            Self::All => (there.clone(), BTreeSet::new()),
            Self::Specific(wanted) => (wanted & there, wanted - there),
        }
    }
}

/// What a sidecar may say, for a message about something else.
const FORMS: &str =
    "\"all\", { latest = N } with N from 1, or { specific = [N, ...] } with at least one version";

impl<'de> Deserialize<'de> for VersionPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Policy;

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            latest: Option<u64>,
            specific: Option<BTreeSet<u64>>,
        }

        impl<'de> Visitor<'de> for Policy {
            type Value = VersionPolicy;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(FORMS)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<VersionPolicy, E> {
                match text {
                    "all" => Ok(VersionPolicy::All),
                    "latest" => Ok(VersionPolicy::default()),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<VersionPolicy, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                let policy = match (table.latest, table.specific) {
                    (Some(latest), None) => {
                        let latest = usize::try_from(latest).unwrap_or(usize::MAX);
                        NonZeroUsize::new(latest).map(VersionPolicy::Latest)
                    }
                    (None, Some(specific)) if !specific.is_empty() => {
                        Some(VersionPolicy::Specific(specific))
                    }
                    _ => None,
                };
                policy.ok_or_else(|| A::Error::custom(format!("expected {FORMS}")))
            }
        }

        deserializer.deserialize_any(Policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Holder {
        version_policy: VersionPolicy,
    }

    fn policy(text: &str) -> Result<VersionPolicy, toml::de::Error> {
        toml::from_str::<Holder>(&format!("version_policy = {text}"))
            .map(|holder| holder.version_policy)
    }

    #[test]
    fn versions_are_ordered_as_numbers_where_they_are_numbers() {
        let mut ids = ["b/1", "a/10", "a/9", "a/1.2", "a/010"].map(|id| {
            let (name, version) = id.split_once('/').unwrap();
            ModelId::new(name, version)
        });
        ids.sort();
        let ids = ids.map(|id| id.to_string());
        assert_eq!(ids, ["a/1.2", "a/9", "a/010", "a/10", "b/1"]);
    }

    #[test]
    fn a_policy_selects_versions_and_names_those_that_are_missing() {
        for (text, selected, missing) in [
            ("\"latest\"", &[10][..], &[][..]),
            ("{ latest = 2 }", &[9, 10], &[]),
            ("{ latest = 100 }", &[1, 9, 10], &[]),
            ("\"all\"", &[1, 9, 10], &[]),
            ("{ specific = [9, 1, 9] }", &[1, 9], &[]),
            ("{ specific = [2, 10] }", &[10], &[2]),
            ("{ specific = [2] }", &[], &[2]),
        ] {
            let set = |versions: &[u64]| versions.iter().copied().collect::<BTreeSet<u64>>();
            let found = policy(text).unwrap().select(&set(&[10, 1, 9]));
            assert_eq!(found, (set(selected), set(missing)), "{text}");
        }
    }

    #[test]
    fn what_is_no_policy_is_refused_with_those_that_there_are() {
        for text in [
            "\"newest\"",
            "{}",
            "{ latest = 0 }",
            "{ latest = 1, specific = [1] }",
            "{ specific = [] }",
            "3",
            "true",
        ] {
            let error = policy(text).unwrap_err();
            assert!(
                error.message().contains("{ latest = N }"),
                "{text}: {error}"
            );
        }
        for text in ["{ lates = 1 }", "{ specific = [-1] }", "{ specific = 1 }"] {
            assert!(policy(text).is_err(), "{text}");
        }
    }
}
