//! `model-serving fetch`: brings a model from where it is stored into a folder, before a server is started on it.
//!
//! Invariant: a name in the folder is either what was there before or a whole file whose digest was checked; what has
//! only partly arrived lies under `.fetch`, which the server does not look at. The server itself fetches nothing.

mod apart;
mod bucket;
mod config;
mod digest;
mod download;
mod error;
mod failure;
mod hub;
mod listing;
mod origin;
mod part;
mod patience;
mod placing;
mod progress;
mod remote;
mod retry;
mod uri;
mod web;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use self::apart::apart;
pub use self::config::FetchConfig;
pub use self::digest::Digest;
use self::download::download;
pub use self::error::FetchError;
use self::listing::list;
use self::origin::Origin;
use self::part::Arrived;
use self::patience::Patience;
use self::placing::place;
use self::remote::RemoteFile;
pub use self::uri::{HubSource, Provider, Source, StoreSource, WebSource};

/// What has partly arrived lies here, below the folder.
const STAGE: &str = ".fetch";

/// How often a folder is looked at that another fetch works in.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

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
