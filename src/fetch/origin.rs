//! Where files come from, whatever its protocol.
//!
//! Invariant: names of files are plain paths, checked where they were read.

use std::time::Duration;

use super::bucket::Bucket;
use super::failure::Failure;
use super::hub::Hub;
use super::part::Resume;
use super::remote::{Opened, Place, RemoteFile};
use super::uri::{Source, WebSource};
use super::web::Web;

/// A source that can be asked.
pub(super) enum Origin {
    Store(Bucket),
    Web(Web, WebSource),
    Hub(Hub),
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
