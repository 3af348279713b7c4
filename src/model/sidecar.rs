//! The optional settings file beside a model: what the graph cannot say.
//!
//! Invariant: unknown keys are an error, so that a misspelt setting is never silently without effect.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
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
    /// Rows per execution.
    pub max_batch_size: Option<std::num::NonZeroUsize>,
    /// How long the oldest request may wait for company.
    #[serde(default, deserialize_with = "duration")]
    pub max_queue_delay: Option<Duration>,
    /// Whether it is tried at load that rows do not depend on each other; it is, if not given.
    pub check: Option<bool>,
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
