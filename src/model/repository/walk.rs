//! Going through a repository folder: which of its entries are versions of models, and what is wrong with the others.
//!
//! Invariant: every entry is a model's version, or known to be harmless, or named with a reason. Harmless is what is
//! hidden (`.git`, Kubernetes' `..data`), `lost+found`, and texts about the models, such as a README.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::skipped::{SkippedList, shown};
use crate::model::is_name;

/// The file that a version's folder holds.
const MODEL_FILE: &str = "model.onnx";

/// The file with settings, in a version's folder or, for all versions, in the model's.
const SIDECAR_FILE: &str = "model.toml";

/// What Linux says of a link that leads to itself.
pub(super) const TOO_MANY_LINKS: i32 = 40;

/// Why something is not served that the operating system keeps from this process.
const NOT_PERMITTED: &str = "must not be read by the user that this server runs as; grant it with chmod -R a+rX, or change its owner";

/// Endings of texts that people and tools lay beside models.
const TEXTS: [&str; 10] = [
    "md", "txt", "rst", "json", "yaml", "yml", "pbtxt", "csv", "sha256", "sig",
];

/// How the names of texts begin that may have no ending.
const TEXT_NAMES: [&str; 6] = [
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    "checksums",
];

/// A folder with versions of one model.
pub(super) struct ModelFolder {
    /// Its name, as it can be shown.
    pub(super) name: String,
    /// Where it lies.
    pub(super) path: PathBuf,
    /// Its versions; at least one.
    pub(super) versions: BTreeMap<u64, Version>,
}

impl ModelFolder {
    /// Where the sidecar of all versions lies, if there is one.
    pub(super) fn sidecar(&self) -> PathBuf {
        self.path.join(SIDECAR_FILE)
    }
}

/// A version of a model that lies there.
pub(super) struct Version {
    /// Its `.onnx` file.
    pub(super) model: PathBuf,
    /// What of it cannot be used, and why, if so: it is a pipe, a link that leads nowhere, or kept from this process.
    pub(super) unusable: Option<(PathBuf, String)>,
}

/// What has the place of a model's folder, and cannot be looked into.
pub(super) struct Closed {
    /// Where it lies.
    pub(super) path: PathBuf,
    /// Its name, as it can be shown.
    pub(super) name: String,
    /// Why not.
    pub(super) reason: String,
}

/// What lies in a repository.
#[derive(Default)]
pub(super) struct Walk {
    /// Folders with versions of models.
    pub(super) models: Vec<ModelFolder>,
    /// What may be such folders, and cannot be looked into.
    pub(super) closed: Vec<Closed>,
}

/// What an entry is.
enum Kind {
    Folder,
    File,
    /// A pipe, socket or device, with the reason why it cannot be served.
    Special(String),
    /// Nobody can tell, with the reason: a link that leads nowhere, or what is kept from this process.
    Closed(String),
    /// It went away while we looked.
    Gone,
}

/// What is in a folder below the repository's own.
enum Contents {
    Entries(Vec<PathBuf>),
    /// With the reason why they are not known.
    Closed(String),
    /// The folder went away while we looked.
    Gone,
}

/// What lies in `repository`. What is no model is added to `skipped`.
pub(super) fn walk(repository: &Path, skipped: &mut SkippedList) -> std::io::Result<Walk> {
    let mut walk = Walk::default();
    for path in entries(repository)? {
        let name = name_of(&path);
        match kind(&path)? {
            Kind::Gone => {}
            Kind::Folder => match contents(&path)? {
                Contents::Gone => {}
                Contents::Entries(entries) => {
                    let versions = versions(&name, entries, skipped)?;
                    if !versions.is_empty() {
                        walk.models.push(ModelFolder {
                            name,
                            path,
                            versions,
                        });
                    }
                }
                Contents::Closed(reason) => walk.closed.push(Closed { path, name, reason }),
            },
            Kind::Closed(reason) if may_be_a_model(&name, &path) => {
                walk.closed.push(Closed { path, name, reason });
            }
            Kind::Special(reason) | Kind::Closed(reason) => skipped.push(name, reason),
            Kind::File => {
                if let Some(reason) = stray_file(&name, &path, None) {
                    skipped.push(name, reason);
                }
            }
        }
    }
    Ok(walk)
}

/// Whether what cannot be looked at may be a model's folder, by its `name`.
fn may_be_a_model(name: &str, path: &Path) -> bool {
    is_name(name) && !is_text(name, path) && !has_ending(path, &["onnx", "toml"])
}

/// The versions of the model called `name` among the `entries` of its folder, each with its file.
fn versions(
    name: &str,
    entries: Vec<PathBuf>,
    skipped: &mut SkippedList,
) -> std::io::Result<BTreeMap<u64, Version>> {
    // With the name of each one's folder.
    let mut versions: BTreeMap<u64, (String, Version)> = BTreeMap::new();
    let mut inside = SkippedList::default();
    for path in entries {
        let entry = name_of(&path);
        let shown = format!("{name}/{entry}");
        match (kind(&path)?, version(&entry)) {
            (Kind::Gone, _) => {}
            // What is wrong with that is told when it is read.
            (Kind::Folder | Kind::Special(_) | Kind::Closed(_), _) if entry == SIDECAR_FILE => {}
            // One that can be used goes before one that cannot, whatever their order.
            (Kind::Folder | Kind::Closed(_), Ok(number))
                if versions
                    .get(&number)
                    .is_some_and(|(_, twin)| twin.unusable.is_none()) =>
            {
                let twin = versions.get(&number).map(|(twin, _)| twin.as_str());
                let twin = twin.unwrap_or_default();
                inside.push(shown, format!("is the same version as {name}/{twin}"));
            }
            (Kind::Folder, Ok(number)) => match version_in(&path)? {
                Ok(version) => drop(versions.insert(number, (entry, version))),
                Err(Some(reason)) => inside.push(shown, reason),
                Err(None) => {}
            },
            (Kind::Closed(reason), Ok(number)) => {
                let version = Version {
                    model: path.join(MODEL_FILE),
                    unusable: Some((path, reason)),
                };
                versions.insert(number, (entry, version));
            }
            (Kind::Folder, Err(reason)) | (Kind::Special(reason) | Kind::Closed(reason), _) => {
                inside.push(shown, reason);
            }
            (Kind::File, _) => {
                if let Some(reason) = stray_file(&entry, &path, Some(name)) {
                    inside.push(shown, reason);
                }
            }
        }
    }
    if versions.is_empty() {
        // That is one thing to say, however much lies there.
        skipped.push(
            name.to_owned(),
            format!(
                "holds no version that can be served; expected <version>/model.onnx with a whole number as version{inside}"
            ),
        );
    } else {
        skipped.append(inside);
    }
    let versions = versions.into_iter();
    Ok(versions
        .map(|(number, (_, version))| (number, version))
        .collect())
}

/// The version that a folder called `name` holds, or why it is none. Leading zeros are allowed, as exporters write them.
fn version(name: &str) -> Result<u64, String> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name
            .parse()
            .map_err(|_| format!("is no version: the highest is {}", u64::MAX));
    }
    let number = name.trim_start_matches(['v', 'V', '+']);
    let number = number.strip_suffix(".0").unwrap_or(number);
    let example = match number.parse::<u64>() {
        Ok(number) => format!("rename it to {number}"),
        Err(_) => "rename it, for example to 1".to_owned(),
    };
    Err(format!(
        "is no version: a version's folder is called by a whole number, by digits alone; {example}"
    ))
}

/// The version in `folder`, or why there is none: without a reason if the folder itself is gone.
fn version_in(folder: &Path) -> std::io::Result<Result<Version, Option<String>>> {
    let model = folder.join(MODEL_FILE);
    let unusable = |what: &Path, reason| {
        let unusable = Some((what.to_owned(), reason));
        let model = folder.join(MODEL_FILE);
        Ok(Ok(Version { model, unusable }))
    };
    match kind(&model)? {
        Kind::File => {
            let unusable = None;
            return Ok(Ok(Version { model, unusable }));
        }
        Kind::Folder => return unusable(&model, "is a folder, not a file".to_owned()),
        Kind::Special(reason) | Kind::Closed(reason) => return unusable(&model, reason),
        Kind::Gone => {}
    }
    let entries = match contents(folder)? {
        Contents::Entries(entries) => entries,
        Contents::Closed(reason) => return unusable(folder, reason),
        Contents::Gone => return Ok(Err(None)),
    };
    let models: Vec<String> = entries
        .iter()
        .filter(|path| has_ending(path, &["onnx"]))
        .map(|path| name_of(path))
        .collect();
    Ok(Err(Some(match models.as_slice() {
        [] => format!("holds no {MODEL_FILE}"),
        [one] => format!("holds no {MODEL_FILE}; rename {one} to {MODEL_FILE}"),
        [first, second, ..] => format!(
            "holds {} .onnx files ({first}, {second}{}) and none is called {MODEL_FILE}; give each model a folder of its own",
            models.len(),
            if models.len() > 2 { ", ..." } else { "" }
        ),
    })))
}

/// Why the file called `name`, at the top of a repository or in the folder of `model`, is not served; nothing if it is
/// known to be harmless.
fn stray_file(name: &str, path: &Path, model: Option<&str>) -> Option<String> {
    if is_text(name, path) {
        return None;
    }
    if model.is_some() && name == SIDECAR_FILE {
        return None;
    }
    if has_ending(path, &["toml"]) {
        let reason = "a sidecar has an effect only as <name>/<version>/model.toml, or for all versions as <name>/model.toml";
        return Some(reason.to_owned());
    }
    if !has_ending(path, &["onnx"]) {
        let reason =
            "is not part of a repository; expected folders <name>/<version>/ with a model.onnx";
        return Some(reason.to_owned());
    }
    let stem = path.file_stem().map(shown);
    let place = match (model, stem) {
        (Some(model), _) => format!("{model}/1"),
        (None, Some(stem)) if is_name(&stem) => format!("{stem}/1"),
        _ => "<name>/1".to_owned(),
    };
    Some(format!(
        "does not lie in a version's folder; move it to {place}/{MODEL_FILE}, or set --model (MODEL_PATH) to it alone"
    ))
}

/// Whether the file called `name` is a text about models.
fn is_text(name: &str, path: &Path) -> bool {
    let lower = name.to_ascii_lowercase();
    has_ending(path, &TEXTS) || TEXT_NAMES.iter().any(|text| lower.starts_with(text))
}

/// What lies at `path`. A file system that fails is an error, and no model that is gone.
fn kind(path: &Path) -> std::io::Result<Kind> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(Kind::Folder),
        Ok(metadata) if metadata.is_file() => Ok(Kind::File),
        Ok(_) => Ok(Kind::Special(
            "is neither a file nor a folder (a pipe, socket or device)".to_owned(),
        )),
        Err(error) if error.raw_os_error() == Some(TOO_MANY_LINKS) => Ok(Kind::Closed(
            "is a link that leads back to itself".to_owned(),
        )),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let target = fs::read_link(path);
            Ok(target.map_or(Kind::Gone, |target| {
                Kind::Closed(format!(
                    "is a link that leads nowhere (to {})",
                    shown(target.as_os_str())
                ))
            }))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Ok(Kind::Closed(NOT_PERMITTED.to_owned()))
        }
        Err(error) => Err(at(path, &error)),
    }
}

/// The entries of `folder`, which lies below the repository's own. One model that may not be read keeps no other from
/// being served.
fn contents(folder: &Path) -> std::io::Result<Contents> {
    match entries(folder) {
        Ok(entries) => Ok(Contents::Entries(entries)),
        Err(error) => without_entries(error),
    }
}

/// What is to be said of a folder below the repository's own that could not be listed because of `error`.
fn without_entries(error: std::io::Error) -> std::io::Result<Contents> {
    match error.kind() {
        ErrorKind::PermissionDenied => Ok(Contents::Closed(NOT_PERMITTED.to_owned())),
        ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(Contents::Gone),
        _ => Err(error),
    }
}

/// `error` with where it happened.
pub(super) fn at(path: &Path, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The entries of `folder` that are not known to be harmless by their names, in order.
fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    let failed = |error: std::io::Error| at(folder, &error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        // Kubernetes mounts volumes through hidden folders such as `..data`; they hold no models of their own.
        if !name.to_string_lossy().starts_with('.') && name != "lost+found" {
            entries.push(path);
        }
    }
    entries.sort();
    Ok(entries)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(shown).unwrap_or_default()
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    ending.is_some_and(|ending| {
        endings
            .iter()
            .any(|known| known.eq_ignore_ascii_case(ending))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_below_that_must_not_be_read_is_skipped_and_one_that_fails_is_an_error() {
        let denied = without_entries(ErrorKind::PermissionDenied.into());
        assert!(matches!(denied, Ok(Contents::Closed(reason)) if reason.contains("chmod")));
        for kind in [ErrorKind::NotFound, ErrorKind::NotADirectory] {
            assert!(matches!(without_entries(kind.into()), Ok(Contents::Gone)));
        }
        assert!(without_entries(ErrorKind::StaleNetworkFileHandle.into()).is_err());
    }

    #[test]
    fn a_folder_that_is_removed_meanwhile_is_as_if_it_was_not_there() {
        let root = tempfile::tempdir().unwrap();
        let gone = root.path().join("gone");
        assert!(matches!(contents(&gone), Ok(Contents::Gone)));
        assert!(matches!(version_in(&gone.join("1")), Ok(Err(None))));
    }
}
