//! Which files a source has, in the order in which they are fetched and placed.
//!
//! Invariant: models come last, so that whoever finds one finds all that belongs to it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::error::FetchError;
use super::failure::Failure;
use super::origin::Origin;
use super::patience::Patience;
use super::remote::RemoteFile;
use super::retry::pause;

fn is_model(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "onnx")
}

/// Which files there are; asks again until it is told.
pub(super) async fn list(
    origin: &Origin,
    shown: &str,
    timeout: Duration,
) -> Result<Vec<RemoteFile>, FetchError> {
    let mut patience = Patience::new(timeout, Instant::now());
    let mut files = loop {
        let asked = tokio::time::timeout(timeout, origin.files()).await;
        let found = asked
            .unwrap_or_else(|_| Err(Failure::transient("the list of what is there did not end")));
        match found {
            Ok(files) => break files,
            Err(failure) => pause(&mut patience, failure, shown, timeout).await?,
        }
    };
    if files.is_empty() {
        return Err(FetchError::NotFound {
            what: shown.to_owned(),
            reason: "no object lies below it".to_owned(),
        });
    }
    // Whoever looks for a model finds all that belongs to it.
    files.sort_by_cached_key(|file| (is_model(&file.name), file.name.clone()));
    Ok(files)
}
