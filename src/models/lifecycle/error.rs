//! Why a model does not take its place.

use thiserror::Error;

use crate::models::loading::LoadingError;

/// Why a model does not take its place.
#[derive(Debug, Error)]
pub(super) enum ReloadError {
    #[error(transparent)]
    Loading(#[from] LoadingError),
    /// Clients were written for the signature that they were told.
    #[error("{0}; start the server anew, or serve it under another name")]
    Signature(String),
    /// Clients of `/predict` would reach a model that they were not written for.
    #[error(
        "it would take the place of '{old}', and {change}; start the server anew, or serve it beside '{old}'"
    )]
    Successor {
        /// The name of the model that serves.
        old: String,
        /// How the signatures differ.
        change: String,
    },
    #[error("the server is draining")]
    Draining,
    /// What was loaded may be half of the old files and half of the new ones.
    #[error("its files changed while they were loaded; ask again when they are complete")]
    Changed,
}

impl ReloadError {
    /// The reason without paths and without what a library said, for `/ready`.
    pub(super) fn public(&self) -> &'static str {
        match self {
            Self::Signature(_) | Self::Successor { .. } => {
                "its signature is not that of the model that serves; the log says how they differ"
            }
            Self::Changed => "its files changed while they were loaded",
            Self::Loading(_) | Self::Draining => "it could not be loaded; the log says why",
        }
    }
}
