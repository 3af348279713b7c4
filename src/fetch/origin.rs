//! Where files come from, whatever its protocol.
//!
//! Invariant: names of files are plain paths, checked where they were read.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use reqwest::Url;

use super::bucket::Bucket;
use super::digest::Digest;
use super::failure::Failure;
use super::hub::Hub;
use super::part::{Resume, Version};
use super::uri::{Source, WebSource};
use super::web::Web;

/// A source that can be asked.
pub(super) enum Origin {
    Store(Bucket),
    Web(Web, WebSource),
    Hub(Hub),
}

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

impl Origin {
    /// `idle` is how long nothing may come. Nothing is sent yet.
    ///
    /// # Errors
    /// When a setting that it needs is not well-formed.
    pub(super) fn new(source: &Source, idle: Duration) -> Result<Self, String> {
        Ok(match source {
            Source::Store(source) => Self::Store(Bucket::new(source, idle)?),
            Source::Web(source) => Self::Web(Web::new(idle, None)?, source.clone()),
            Source::Hub(source) => {
                Self::Hub(Hub::new(source, idle, |name| std::env::var(name).ok())?)
            }
        })
    }

    /// Which files there are.
    pub(super) async fn files(&self) -> Result<Vec<RemoteFile>, Failure> {
        match self {
            Self::Store(bucket) => bucket.files().await,
            Self::Web(_, source) => Ok(vec![RemoteFile {
                name: source.name.clone(),
                place: Place::Address(source.url.clone()),
                size: None,
                validator: None,
                digest: None,
            }]),
            Self::Hub(hub) => hub.files().await,
        }
    }

    /// Opens one of them, from where the last attempt ended if that is possible.
    pub(super) async fn open(
        &self,
        file: &RemoteFile,
        resume: Option<&Resume>,
    ) -> Result<Opened, Failure> {
        match (self, &file.place) {
            (Self::Store(bucket), Place::Object(path)) => {
                bucket.open(path, file.validator.as_ref(), resume).await
            }
            (Self::Web(web, _), Place::Address(url)) => web.open(url.clone(), resume).await,
            (Self::Hub(hub), Place::Address(url)) => hub.open(url, resume).await,
            _ => Err(Failure::Permanent(
                "the file is of another source".to_owned(),
            )),
        }
    }
}
