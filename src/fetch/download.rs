//! Brings every file of a list, attempt after attempt, under a name of its own.
//!
//! Invariant: an attempt adds to what is there only what the source says is of the same version.

use std::io;
use std::path::Path;
use std::time::Instant;

use futures_util::StreamExt as _;

use super::apart::apart;
use super::config::FetchConfig;
use super::digest;
use super::error::FetchError;
use super::failure::Failure;
use super::origin::Origin;
use super::part::{self, Arrived, Part};
use super::patience::Patience;
use super::progress::Progress;
use super::remote::RemoteFile;
use super::retry::pause;

pub(super) async fn download(
    config: &FetchConfig,
    origin: &Origin,
    files: &[RemoteFile],
    stage: &Path,
    shown: &str,
) -> Result<Vec<Arrived>, FetchError> {
    let total = files.iter().map(|file| file.size).sum::<Option<u64>>();
    let mut progress = Progress::new(total);
    let mut arrived = Vec::with_capacity(files.len());
    for file in files {
        let what = match files.len() {
            1 => shown.to_owned(),
            _ => format!("'{}' of {shown}", file.name),
        };
        let written = FetchError::system(format!(
            "'{}' cannot be written into {}",
            file.name,
            stage.display()
        ));
        let (folder, key) = (stage.to_owned(), key(shown, &file.name));
        let mut part = match apart(move || Part::open(&folder, &key)).await {
            Ok(part) => part,
            Err(error) => return Err(written(error)),
        };
        let mut patience = Patience::new(config.timeout, Instant::now());
        loop {
            match attempt(origin, file, &mut part, &mut patience, &mut progress).await {
                Ok(()) => break,
                Err(Stopped::Disk(error)) => return Err(written(error)),
                Err(Stopped::Source(failure)) => {
                    if failure == Failure::Changed
                        && let Err(error) = part.begin(part::Version::default())
                    {
                        return Err(written(error));
                    }
                    pause(&mut patience, failure, &what, config.timeout).await?;
                }
            }
        }
        let done = part.finish().map_err(written)?;
        progress.arrived(done.length);
        tracing::debug!(
            file = file.name,
            bytes = done.length,
            sha256 = done.digest.to_string(),
            "fetched"
        );
        arrived.push(done);
    }
    Ok(arrived)
}

/// Why an attempt ended early.
enum Stopped {
    Source(Failure),
    Disk(io::Error),
}

/// Gets what is missing of `file`, as far as it comes.
async fn attempt(
    origin: &Origin,
    file: &RemoteFile,
    part: &mut Part,
    patience: &mut Patience,
    progress: &mut Progress,
) -> Result<(), Stopped> {
    let resume = part.resume();
    let mut opened = origin
        .open(file, resume.as_ref())
        .await
        .map_err(Stopped::Source)?;
    match resume.filter(|resume| opened.from == resume.from) {
        // Not every server looks at the condition under which it was asked.
        Some(resume) if opened.version.validator.as_ref() != Some(&resume.validator) => {
            return Err(Stopped::Source(Failure::Changed));
        }
        Some(_) if part.total().is_some() && part.total() != opened.version.total => {
            return Err(Stopped::Source(Failure::Changed));
        }
        Some(_) => {}
        None if opened.from == 0 => part.begin(opened.version).map_err(Stopped::Disk)?,
        None => return Err(Stopped::Source(Failure::Changed)),
    }
    while let Some(bytes) = opened.bytes.next().await {
        let bytes = bytes.map_err(Stopped::Source)?;
        part.write(&bytes).map_err(Stopped::Disk)?;
        patience.has(part.length(), Instant::now());
        progress.at(&file.name, part.length(), part.total());
    }
    match part.total() {
        Some(total) if part.length() < total => {
            let reason = format!("it ended after {} of {total} bytes", part.length());
            Err(Stopped::Source(Failure::transient(reason)))
        }
        Some(total) if part.length() > total => Err(Stopped::Source(Failure::Changed)),
        _ => Ok(()),
    }
}

/// Under which name what has arrived of a file is kept.
fn key(source: &str, name: &str) -> String {
    let mut hasher = digest::Hasher::default();
    hasher.update(source.as_bytes());
    hasher.update(b"\n");
    hasher.update(name.as_bytes());
    hasher.finish().to_string()
}
