//! `model-serving fetch`: brings a model from where it is stored into a folder, before a server is started on it.
//!
//! Invariant: a name in the folder is either what was there before or a whole file whose digest was checked; what has
//! only partly arrived lies under `.fetch`, which the server does not look at. The server itself fetches nothing.

mod bucket;
mod digest;
mod failure;
mod hub;
mod origin;
mod part;
mod patience;
mod progress;
mod uri;
mod web;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

pub use self::digest::Digest;
use self::failure::Failure;
use self::origin::{Origin, RemoteFile};
use self::part::{Arrived, Part};
use self::patience::Patience;
use self::progress::Progress;
pub use self::uri::{HubSource, Provider, Source, StoreSource, WebSource};
use crate::chance::chance;

/// What has partly arrived lies here, below the folder.
const STAGE: &str = ".fetch";

/// How often a folder is looked at that another fetch works in.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

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

    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// Fetches what `config` asks for.
///
/// # Errors
/// When it cannot be had, or is not what it must be. Then nothing in the folder has changed, apart from `.fetch`.
pub async fn fetch(config: &FetchConfig) -> Result<(), FetchError> {
    let begun = Instant::now();
    let shown = config.source.to_string();
    let folder = &config.folder;
    std::fs::create_dir_all(folder).map_err(FetchError::system(format!(
        "the folder {} cannot be made",
        folder.display()
    )))?;
    let _locked = lock(folder).await;
    if let Some(digest) = config.digest
        && apart({
            let config = config.clone();
            move || is_there(&config, digest)
        })
        .await?
    {
        let sha256 = digest.to_string();
        tracing::info!(source = shown, folder = %folder.display(), sha256, "the model is there already");
        return Ok(());
    }
    // Never twice in a process; and if so, it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let origin = Origin::new(&config.source, Patience::idle(config.timeout));
    let origin = origin.map_err(|reason| FetchError::Setting {
        what: shown.clone(),
        reason,
    })?;
    let files = list(&origin, &shown, config.timeout).await?;
    let stage = folder.join(STAGE);
    std::fs::create_dir_all(&stage).map_err(FetchError::system(format!(
        "the folder {} cannot be made",
        stage.display()
    )))?;
    let arrived = download(config, &origin, &files, &stage, &shown).await?;
    let digest = check(config, &files, &arrived, &shown).inspect_err(|_| {
        // What stays behind for another reason has no note, and is not gone on with.
        let _ = std::fs::remove_dir_all(&stage);
    })?;
    place(folder, &stage, &files, &arrived)?;
    // Also what is left of other sources.
    std::fs::remove_dir_all(&stage).map_err(FetchError::system(format!(
        "the folder {} cannot be removed",
        stage.display()
    )))?;
    tracing::info!(
        source = shown,
        folder = %folder.display(),
        files = files.len(),
        bytes = arrived.iter().map(|it| it.length).sum::<u64>(),
        sha256 = digest.to_string(),
        seconds = begun.elapsed().as_secs_f32(),
        "the model is there"
    );
    Ok(())
}

/// One fetch at a time works in a folder; replicas may share one. File systems that cannot lock are taken as they are.
async fn lock(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    told = true;
                    tracing::info!(folder = %folder.display(), "another fetch works in this folder, and is waited for");
                }
                tokio::time::sleep(LOCK_INTERVAL).await;
            }
            Err(TryLockError::Error(_)) => return None,
        }
    }
}

/// Has `work`, which reads files, done by another thread, so that signals are heeded meanwhile.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether what must be there is there. Nobody is asked.
fn is_there(config: &FetchConfig, digest: Digest) -> Result<bool, FetchError> {
    let folder = &config.folder;
    let unreadable = |error| {
        FetchError::system(format!("what lies in {} cannot be read", folder.display()))(error)
    };
    if let Some(name) = config.source.file_name()
        && digest::of_file(&folder.join(name)).map_err(unreadable)? == Some(digest)
    {
        return Ok(true);
    }
    if matches!(config.source, Source::Web(_)) {
        return Ok(false);
    }
    Ok(digest::of_folder(folder).map_err(unreadable)? == Some(digest))
}

fn is_model(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "onnx")
}

/// Which files there are; asks again until it is told.
async fn list(
    origin: &Origin,
    shown: &str,
    timeout: Duration,
) -> Result<Vec<RemoteFile>, FetchError> {
    let mut patience = Patience::new(timeout, Instant::now());
    let mut files = loop {
        match origin.files().await {
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

async fn download(
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

/// Waits before the next attempt, or gives up.
async fn pause(
    patience: &mut Patience,
    failure: Failure,
    what: &str,
    timeout: Duration,
) -> Result<(), FetchError> {
    let (reason, asked) = match failure {
        Failure::Transient { reason, pause } => (reason, pause),
        Failure::Changed => ("it changed while it was fetched".to_owned(), None),
        failure => return Err(given_up(what, failure, timeout)),
    };
    match patience.failed(Instant::now(), asked, chance()) {
        Some(pause) => {
            tracing::warn!(what, reason, seconds = pause.as_secs_f32(), "trying again");
            tokio::time::sleep(pause).await;
            Ok(())
        }
        None => Err(given_up(what, Failure::transient(reason), timeout)),
    }
}

fn given_up(what: &str, failure: Failure, timeout: Duration) -> FetchError {
    let what = what.to_owned();
    match failure {
        Failure::Transient { reason, .. } => FetchError::GaveUp {
            what,
            reason,
            timeout,
        },
        Failure::Changed => FetchError::GaveUp {
            what,
            reason: "it changed while it was fetched".to_owned(),
            timeout,
        },
        Failure::NotFound(reason) => FetchError::NotFound { what, reason },
        Failure::Permanent(reason) => FetchError::Refused { what, reason },
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

/// Compares what has arrived with what it must be, and says what it is.
fn check(
    config: &FetchConfig,
    files: &[RemoteFile],
    arrived: &[Arrived],
    shown: &str,
) -> Result<Digest, FetchError> {
    for (file, arrived) in files.iter().zip(arrived) {
        if let Some(expected) = file.digest.filter(|digest| *digest != arrived.digest) {
            return Err(FetchError::WrongDigest {
                what: format!("'{}' of {shown}", file.name),
                expected,
                got: arrived.digest,
            });
        }
    }
    let is_one_file = config
        .source
        .file_name()
        .is_some_and(|name| matches!(files, [file] if file.name == name));
    let got = match arrived {
        [file] if is_one_file => file.digest,
        _ => {
            let named = files.iter().map(|file| file.name.as_str());
            digest::of_list(named.zip(arrived.iter().map(|it| it.digest)))
        }
    };
    match config.digest {
        Some(expected) if expected != got => Err(FetchError::WrongDigest {
            what: shown.to_owned(),
            expected,
            got,
        }),
        _ => Ok(got),
    }
}

/// Puts every file into its place, models last. What was there is kept until all are there, and put back if one cannot be.
fn place(
    folder: &Path,
    stage: &Path,
    files: &[RemoteFile],
    arrived: &[Arrived],
) -> Result<(), FetchError> {
    let mut placed: Vec<(PathBuf, Option<PathBuf>)> = Vec::with_capacity(files.len());
    for (index, (file, arrived)) in files.iter().zip(arrived).enumerate() {
        let target = folder.join(&file.name);
        let before = stage.join(format!("before-{index}"));
        match arrived.place(&target, &before) {
            Ok(had_one) => placed.push((target, had_one.then_some(before))),
            Err(error) => {
                // The failing one may have changed places already. Where it has not, both names are of one file.
                if before.exists() {
                    placed.push((target.clone(), Some(before)));
                }
                for (target, before) in placed.iter().rev() {
                    // There is nobody left to tell if this fails, too; the first failure is told.
                    let _ = match before {
                        Some(before) => std::fs::rename(before, target),
                        None => std::fs::remove_file(target),
                    };
                }
                return Err(FetchError::system(format!(
                    "{} cannot be written",
                    target.display()
                ))(error));
            }
        }
    }
    Ok(())
}
