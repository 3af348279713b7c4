//! Why a model was not fetched, in the words of whoever asked for it.
//!
//! Invariant: every text says what could not be fetched; none holds a secret.

use std::io;
use std::time::Duration;

use super::digest::Digest;
use super::failure::{self, Failure};

/// Why a model was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was to be done, and to what.
        what: String,
        /// Why it was not.
        source: io::Error,
    },
    /// Before anything was asked: what it needs to ask is not well-formed.
    #[error("{what} cannot be fetched: {reason}")]
    Setting {
        /// The source.
        what: String,
        /// What is wrong with which setting.
        reason: String,
    },
    /// There is nothing of that name.
    #[error(
        "{what} is not there: {reason}; check the name, and that the credentials may list what is there"
    )]
    NotFound {
        /// The source or file.
        what: String,
        /// The server's words.
        reason: String,
    },
    /// Another attempt would fail as well.
    #[error("{what} cannot be fetched: {reason}")]
    Refused {
        /// The source or file.
        what: String,
        /// Why.
        reason: String,
    },
    /// Nothing new came for too long.
    #[error("{what} could not be fetched: {reason}; another attempt would be later than --timeout (FETCH_TIMEOUT) allows, {} s without anything new", timeout.as_secs_f32())]
    GaveUp {
        /// The source or file.
        what: String,
        /// Why the last attempt failed.
        reason: String,
        /// How long it was tried.
        timeout: Duration,
    },
    /// It is not what it must be.
    #[error(
        "{what} has the SHA-256 {got}, and {expected} is expected; nothing was changed. Somebody replaced it, or the expected digest is of something else"
    )]
    WrongDigest {
        /// The source or file.
        what: String,
        /// What was asked for, or what the source promised.
        expected: Digest,
        /// What came.
        got: Digest,
    },
}

impl FetchError {
    /// Whether a setting is wrong, and nothing was asked.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::Setting { .. })
    }

    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// Another attempt is not made after `failure`.
    pub(super) fn after(failure: Failure, what: &str, timeout: Duration) -> Self {
        let what = what.to_owned();
        match failure {
            Failure::Transient { reason, .. } => Self::GaveUp {
                what,
                reason,
                timeout,
            },
            Failure::Changed => Self::GaveUp {
                what,
                reason: failure::CHANGED.to_owned(),
                timeout,
            },
            Failure::NotFound(reason) => Self::NotFound { what, reason },
            Failure::Permanent(reason) => Self::Refused { what, reason },
        }
    }
}
