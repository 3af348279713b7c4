//! What to fetch, and where to.

use std::path::PathBuf;
use std::time::Duration;

use super::digest::Digest;
use super::uri::Source;

/// What to fetch, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchConfig {
    /// Where the model lies.
    pub source: Source,
    /// Where it is to lie.
    pub folder: PathBuf,
    /// What it must be: the digest of the file, or of the list of the folder's files.
    pub digest: Option<Digest>,
    /// How long nothing new may come, attempts together, before it is given up.
    pub timeout: Duration,
}
