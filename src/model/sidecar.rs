//! The optional settings file beside a model: what the graph cannot say.
//!
//! Invariant: unknown keys are an error, so that a misspelt setting is never silently without effect.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::units::DurationText;

/// Why a sidecar was refused.
#[derive(Debug, Error)]
pub enum SidecarError {
    /// The file exists but could not be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The sidecar's path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file does not say what a sidecar may say.
    #[error("{path} is not a valid sidecar: {reason}", path = .path.display())]
    Invalid {
        /// The sidecar's path.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The file could not be written.
    #[error("cannot write {path}: {source}; let the folder be writable, or take the settings above as flags", path = .path.display())]
    Write {
        /// The sidecar's path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// The settings of one model, all optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// The name to serve the model under.
    pub name: Option<String>,
    /// The version to serve the model as.
    pub version: Option<String>,
    /// What the model does.
    pub description: Option<String>,
    /// Settings by output name.
    #[serde(default)]
    pub outputs: BTreeMap<String, OutputSettings>,
    /// How requests for this model are merged.
    #[serde(default)]
    pub batching: BatchingSettings,
    /// What `model-serving tune` found out.
    pub tuning: Option<TuningSettings>,
}

/// What suits a model on one machine, as `model-serving tune` writes it down.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningSettings {
    /// SHA-256 of the model that was measured. For another one the settings are ignored.
    pub sha256: String,
    /// The CPUs that the measuring process could use. Where there are others the settings are ignored.
    pub cpus: NonZeroUsize,
    /// Sessions.
    pub instances: NonZeroUsize,
    /// Threads per session.
    pub intra_op_threads: NonZeroUsize,
    /// Rows of several requests that share an execution at most, if that was measured.
    pub merge_rows: Option<NonZeroUsize>,
}

/// What the graph cannot say about an output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSettings {
    /// What each position of the last dimension means.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// Batching settings of one model; flags and environment win over these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchingSettings {
    /// The most rows of an execution that requests share, and of a part of a larger request.
    pub max_batch_size: Option<NonZeroUsize>,
    /// How long the oldest request may wait for company.
    #[serde(default, deserialize_with = "duration")]
    pub max_queue_delay: Option<Duration>,
    /// Whether it is tried at load that rows do not depend on each other; it is, if not given.
    pub check: Option<bool>,
}

impl TuningSettings {
    /// Writes these settings into the sidecar at `path`, which keeps all else that it says, its comments included. The file
    /// is replaced in one step, because a server may be looking at it.
    ///
    /// # Errors
    /// When the file there is no sidecar, or cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), SidecarError> {
        // What it says must be valid before anything is added.
        Sidecar::read(path)?;
        let failed = |source| SidecarError::Write {
            path: path.to_owned(),
            source,
        };
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            other => other.map_err(failed)?,
        };
        let invalid = |error: toml_edit::TomlError| SidecarError::Invalid {
            path: path.to_owned(),
            reason: error.message().replace('\n', " "),
        };
        let mut document: toml_edit::DocumentMut = text.parse().map_err(invalid)?;
        let number = |number: NonZeroUsize| {
            toml_edit::value(i64::try_from(number.get()).unwrap_or(i64::MAX))
        };
        let mut table = toml_edit::Table::new();
        table.insert("sha256", toml_edit::value(self.sha256.as_str()));
        table.insert("cpus", number(self.cpus));
        table.insert("instances", number(self.instances));
        table.insert("intra_op_threads", number(self.intra_op_threads));
        if let Some(rows) = self.merge_rows {
            table.insert("merge_rows", number(rows));
        }
        let blank_line = if text.is_empty() { "" } else { "\n" };
        table.decor_mut().set_prefix(blank_line);
        document.insert("tuning", toml_edit::Item::Table(table));
        // A link is kept, and so is who may read the file.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let beside = place.with_extension("toml.new");
        fs::write(&beside, document.to_string())
            .and_then(|()| match fs::metadata(&place) {
                Ok(metadata) => fs::set_permissions(&beside, metadata.permissions()),
                Err(_) => Ok(()),
            })
            .and_then(|()| fs::rename(&beside, &place))
            .map_err(failed)
    }
}

fn duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse::<DurationText>()
        .map(|duration| Some(duration.into()))
        .map_err(serde::de::Error::custom)
}

impl Sidecar {
    /// Reads the sidecar at `path`; a missing file is an empty sidecar.
    ///
    /// # Errors
    /// When the file cannot be read or says something that a sidecar may not say.
    pub fn read(path: &Path) -> Result<Self, SidecarError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(SidecarError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let parsed: Result<Self, _> = toml::from_str(&text);
        parsed.map_err(|error| {
            // The parser's own display spans several lines; a failed start prints one.
            let line = error.span().map_or(1, |span| {
                text.get(..span.start).unwrap_or("").matches('\n').count() + 1
            });
            let reason = format!("line {line}: {}", error.message().replace('\n', " "));
            SidecarError::Invalid {
                path: path.to_owned(),
                reason,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(merge_rows: usize) -> TuningSettings {
        let number = |number| NonZeroUsize::new(number).unwrap();
        TuningSettings {
            sha256: "5c".to_owned(),
            cpus: number(4),
            instances: number(2),
            intra_op_threads: number(2),
            merge_rows: Some(number(merge_rows)),
        }
    }

    #[test]
    fn tuning_is_written_beside_all_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.toml");
        fs::write(
            &path,
            "name = \"a\" # a comment\n\n[batching]\ncheck = false\n",
        )
        .unwrap();
        for merge_rows in [1, 16] {
            settings(merge_rows).write(&path).unwrap();
            let sidecar = Sidecar::read(&path).unwrap();
            assert_eq!(sidecar.tuning, Some(settings(merge_rows)));
            assert_eq!(sidecar.name.as_deref(), Some("a"));
            assert_eq!(sidecar.batching.check, Some(false));
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("name = \"a\" # a comment\n"), "{text}");
            assert_eq!(text.matches("[tuning]").count(), 1, "{text}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sidecar_is_made_where_there_is_none_and_a_wrong_one_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.toml");
        settings(1).write(&path).unwrap();
        assert_eq!(Sidecar::read(&path).unwrap().tuning, Some(settings(1)));
        fs::write(&path, "nmae = \"a\"").unwrap();
        assert!(settings(1).write(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "nmae = \"a\"");
    }
}
