//! A file of a source, and a file that is being sent.

use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use reqwest::Url;

use super::digest::Digest;
use super::failure::Failure;
use super::part::Version;

/// A file that is there.
pub(super) struct RemoteFile {
    /// Its path below the folder that it is fetched into.
    pub(super) name: String,
    pub(super) place: Place,
    /// Its length, if that is known before it is opened.
    pub(super) size: Option<u64>,
    /// What names this version of it, if the source told when it was asked which files there are.
    pub(super) validator: Option<String>,
    /// Its digest, if the source tells.
    pub(super) digest: Option<Digest>,
}

/// Where a file lies.
pub(super) enum Place {
    /// An object of the bucket.
    Object(Path),
    /// An address.
    Address(Url),
}

/// A file that is being sent.
pub(super) struct Opened {
    /// The first byte that comes.
    pub(super) from: u64,
    /// Which version it is.
    pub(super) version: Version,
    pub(super) bytes: BoxStream<'static, Result<Bytes, Failure>>,
}
