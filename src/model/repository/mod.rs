//! Where models are found: a single `.onnx` file, or a repository folder `<name>/<version>/model.onnx`.
//!
//! Invariant: names come from folder and file names, never from a request, so no request can reach another file; and
//! nothing that looks like a model is passed over without a word.

mod error;
mod skipped;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::faults;
use super::fingerprint::Fingerprint;
use super::name::{NAME_RULE, is_name};
use super::sidecar::Sidecar;
use super::versions::ModelId;
pub use error::RepositoryError;
pub use skipped::{Skipped, SkippedList};
use walk::{Closed, ModelFolder};

/// One model to be served: its file, and how it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// The `.onnx` file.
    pub path: PathBuf,
    /// Where the model lies with all its versions: its folder in a repository, else the file.
    pub place: PathBuf,
    /// The name to serve it under.
    pub name: String,
    /// The version to serve it as.
    pub version: String,
    /// The settings beside it.
    pub sidecar: Sidecar,
    /// The fingerprint of the model and its sidecars, from before these were read.
    pub fingerprint: Fingerprint,
}

impl ModelSource {
    /// The model and its version.
    #[must_use]
    pub fn id(&self) -> ModelId {
        ModelId::new(&self.name, &self.version)
    }

    /// Whether a server that finds it at its start is ready only once it serves.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.sidecar.required.unwrap_or(true)
    }
}

/// A model that lies there, and cannot be served because of what is said of it, or because nobody can read it.
#[derive(Debug)]
pub struct Broken {
    /// Its `.onnx` file, as far as that can be known.
    pub model: PathBuf,
    /// Where the model lies with all its versions, as of [`ModelSource::place`].
    pub place: PathBuf,
    /// How it is called by its folder, or by its file where there is no repository.
    pub name: String,
    /// Its version, where it lies in a repository and can be looked at.
    pub version: Option<String>,
    /// Whether a server that finds it at its start is ready only once it serves; it is where that cannot be read.
    pub required: bool,
    /// What is wrong.
    pub fault: RepositoryError,
}

/// The models that there are, and what lies beside them without being one.
#[derive(Debug, Default)]
pub struct Found {
    /// The models, in the order of their names and versions.
    pub sources: Vec<ModelSource>,
    /// Models whose sidecars or names are not valid, and those that cannot be read.
    pub broken: Vec<Broken>,
    /// What is not served.
    pub skipped: SkippedList,
}

impl Found {
    /// The error that no model lies at `path`, if none was found there.
    #[must_use]
    pub fn emptiness(&self, path: &Path) -> Option<RepositoryError> {
        let is_empty = self.sources.is_empty() && self.broken.is_empty();
        is_empty.then(|| {
            let other = other_than_a_repository(path);
            RepositoryError::Empty {
                path: path.to_owned(),
                fix: other.unwrap_or(
                    "expected <name>/<version>/model.onnx with a whole number as version",
                ),
                // Of another kind of folder, nothing lies in the wrong place.
                skipped: if other.is_some() {
                    SkippedList::default()
                } else {
                    self.skipped.clone()
                },
            }
        })
    }

    /// The same, if nothing is broken.
    ///
    /// # Errors
    /// All that is wrong.
    fn whole(mut self) -> Result<Self, RepositoryError> {
        let faults = self.broken.drain(..).map(|broken| broken.fault).collect();
        faults::refuse(faults, RepositoryError::Several)?;
        Ok(self)
    }
}

/// Finds the models at `path`, in the order of their names.
///
/// # Errors
/// See [`scan`].
pub fn find(path: &Path, name: Option<&str>) -> Result<Vec<ModelSource>, RepositoryError> {
    scan(path, name).map(|found| found.sources)
}

/// Finds the models at `path`, and what is no model.
///
/// `name` overrides the name of a single-file model. Of a repository's versions those are found that the sidecar's policy
/// selects, else the highest.
///
/// # Errors
/// When there is no model, or what lies beside one is not valid. All that is wrong is named.
pub fn scan(path: &Path, name: Option<&str>) -> Result<Found, RepositoryError> {
    let found = look(path, name)?;
    match found.emptiness(path) {
        Some(error) => Err(error),
        None => found.whole(),
    }
}

/// The same; a model that is broken keeps no other from being found, and there may be none.
///
/// # Errors
/// When nothing can be looked at.
pub fn look(path: &Path, name: Option<&str>) -> Result<Found, RepositoryError> {
    let metadata = fs::metadata(path).map_err(|source| missing(path, source))?;
    let mut found = Found::default();
    if !metadata.is_dir() {
        match single(path, name) {
            Ok(source) => found.sources.push(source),
            Err(fault) => found.broken.push(Broken {
                model: path.to_owned(),
                place: path.to_owned(),
                name: path.file_name().map(skipped::shown).unwrap_or_default(),
                version: None,
                required: true,
                fault,
            }),
        }
        return Ok(found);
    }
    if name.is_some() {
        return Err(RepositoryError::NameForFolder {
            path: path.to_owned(),
        });
    }
    let walk = walk::walk(path, &mut found.skipped).map_err(unreadable)?;
    for folder in walk.models {
        add_versions(&folder, &mut found);
    }
    found.broken.extend(walk.closed.into_iter().map(|closed| {
        let Closed { path, name, reason } = closed;
        Broken {
            model: path.clone(),
            place: path.clone(),
            name,
            version: None,
            required: true,
            fault: RepositoryError::Unusable { path, reason },
        }
    }));
    found.sources.sort_by_key(ModelSource::id);
    refuse_twins(path, &mut found);
    Ok(found)
}

/// Adds the versions in `folder` that its sidecar's policy selects.
fn add_versions(folder: &ModelFolder, found: &mut Found) {
    let Some((highest, newest)) = folder.versions.last_key_value() else {
        return;
    };
    let broken = |version: u64, model: &Path, required, fault| Broken {
        model: model.to_owned(),
        place: folder.path.clone(),
        name: folder.name.clone(),
        version: Some(version.to_string()),
        required,
        fault,
    };
    let general = match Sidecar::read(&folder.sidecar()) {
        Ok(general) => general,
        Err(fault) => {
            let fault = fault.into();
            let broken = broken(*highest, &newest.model, true, fault);
            return found.broken.push(broken);
        }
    };
    let required = general.required.unwrap_or(true);
    // Whoever has no sidecar for all versions says it where the highest one lies. What is wrong with that one is told
    // if it is served.
    let policy = general.version_policy.clone().or_else(|| {
        let newest = Sidecar::read(&beside(&newest.model)).ok()?;
        newest.version_policy
    });
    let policy = policy.unwrap_or_default();
    let is_usable = |version: &u64| {
        let version = folder.versions.get(version);
        version.is_some_and(|version| version.unusable.is_none())
    };
    let there: BTreeSet<u64> = folder.versions.keys().copied().collect();
    let usable = there.iter().copied().filter(is_usable).collect();
    // One that cannot be read is missed, and keeps the one below it from nothing.
    let (wanted, missing) = policy.select(&there);
    let (mut selected, _) = policy.select(&usable);
    selected.extend(wanted.iter().filter(|version| !is_usable(version)));
    for version in &missing {
        let reason = "is not there, although version_policy names it; bring it, or name versions that are there";
        let path = format!("{}/{version}", folder.name);
        found.skipped.push(path, reason.to_owned());
    }
    for (number, version) in &folder.versions {
        match &version.unusable {
            Some((path, reason)) if wanted.contains(number) => {
                let fault = RepositoryError::Unusable {
                    path: path.clone(),
                    reason: reason.clone(),
                };
                let broken = broken(*number, &version.model, required, fault);
                found.broken.push(broken);
            }
            Some((path, reason)) => {
                let inside = path.strip_prefix(&folder.path).unwrap_or(path);
                let path = format!("{}/{}", folder.name, skipped::shown(inside.as_os_str()));
                found.skipped.push(path, reason.clone());
            }
            None if selected.contains(number) => {
                let model = &version.model;
                match source_of(folder, *number, model, &general, &mut found.skipped) {
                    Ok(source) => found.sources.extend(source),
                    Err(fault) => found.broken.push(broken(*number, model, required, fault)),
                }
            }
            None => {}
        }
    }
}

/// Takes out the models of `repository` that want the same name: which of them clients mean cannot be known. Versions that
/// lie in one folder are one model.
fn refuse_twins(repository: &Path, found: &mut Found) {
    let mut by_name: BTreeMap<&str, Vec<&ModelSource>> = BTreeMap::new();
    for source in &found.sources {
        let same = by_name.entry(&source.name).or_default();
        // The highest version of each folder.
        same.retain(|other| other.place != source.place);
        same.push(source);
    }
    by_name.retain(|_, same| same.len() > 1);
    let mut twins = Vec::new();
    for (name, mut same) in by_name {
        same.sort_by(|left, right| left.path.cmp(&right.path));
        let relative = same.iter().map(|source| {
            let relative = source.path.strip_prefix(repository);
            relative.unwrap_or(&source.path).to_owned()
        });
        let Some(last) = same.last() else { continue };
        twins.push(Broken {
            model: last.path.clone(),
            place: last.place.clone(),
            name: name.to_owned(),
            version: Some(last.version.clone()),
            required: same.iter().any(|source| source.is_required()),
            fault: RepositoryError::SameName {
                path: repository.to_owned(),
                name: name.to_owned(),
                models: relative.collect(),
            },
        });
    }
    let is_twin = |name: &str| twins.iter().any(|twin| twin.name == name);
    found.sources.retain(|source| !is_twin(&source.name));
    found.broken.extend(twins);
}

/// The model in the file at `path`.
fn single(path: &Path, name: Option<&str>) -> Result<ModelSource, RepositoryError> {
    let beside = beside(path);
    let fingerprint = Fingerprint::of([path, &beside]);
    let sidecar = if beside == path {
        // It is told when it is loaded that this is no model.
        Sidecar::default()
    } else {
        Sidecar::read(&beside)?
    };
    if sidecar.version_policy.is_some() {
        return Err(RepositoryError::PolicyForFile { path: beside });
    }
    let stem = path.file_stem().map(skipped::shown).unwrap_or_default();
    let (name, from) = match name.or(sidecar.name.as_deref()) {
        Some(name) => (name.to_owned(), String::new()),
        None => (stem, format!(" (of the file {})", path.display())),
    };
    if !is_name(&name) {
        return Err(RepositoryError::Name {
            fix: if from.is_empty() {
                "change --model-name (MODEL_NAME)"
            } else {
                "set --model-name (MODEL_NAME), or rename the file"
            },
            name,
            from,
        });
    }
    Ok(ModelSource {
        path: path.to_owned(),
        place: path.to_owned(),
        name,
        version: sidecar.version.clone().unwrap_or_else(|| "1".to_owned()),
        sidecar,
        fingerprint,
    })
}

/// The version `version` in `folder`, whose file is `model`, unless its folder's name cannot be a model's. Where its own
/// sidecar says nothing, the `general` one holds.
fn source_of(
    folder: &ModelFolder,
    version: u64,
    model: &Path,
    general: &Sidecar,
    skipped: &mut SkippedList,
) -> Result<Option<ModelSource>, RepositoryError> {
    let beside = beside(model);
    let fingerprint = Fingerprint::of([model, &beside, &folder.sidecar()]);
    let sidecar = Sidecar::read(&beside)?.or(general.clone());
    let differs = |stated: &&String| **stated != version.to_string();
    if let Some(stated) = sidecar.version.as_ref().filter(differs) {
        return Err(RepositoryError::Version {
            path: model.to_owned(),
            folder: version,
            sidecar: stated.clone(),
        });
    }
    let name = sidecar.name.clone().unwrap_or_else(|| folder.name.clone());
    if !is_name(&name) {
        let reason = format!(
            "its name cannot be a model's: {NAME_RULE}; rename the folder, or write a name into the sidecar"
        );
        skipped.push(folder.name.clone(), reason);
        return Ok(None);
    }
    Ok(Some(ModelSource {
        path: model.to_owned(),
        place: folder.path.clone(),
        name,
        version: version.to_string(),
        sidecar,
        fingerprint,
    }))
}

/// Where the sidecar of `model` lies, if there is one.
fn beside(model: &Path) -> PathBuf {
    model.with_extension("toml")
}

/// Why there is nothing at `path`, of which the operating system said `source`.
fn missing(path: &Path, source: std::io::Error) -> RepositoryError {
    if let Some((scheme, rest)) = path.to_str().and_then(|text| text.split_once("://")) {
        let fix = match scheme.to_ascii_lowercase().as_str() {
            "file" => "leave out file://",
            "http" | "https" | "s3" | "gs" | "az" | "abfss" | "hf" => {
                "bring it first (model-serving fetch URL --to DIR)"
            }
            _ => "download it first",
        };
        // A signed address has its key behind the question mark, and a password stands before the host.
        let plain = rest.split(['?', '#']).next().unwrap_or_default();
        let plain = plain.rsplit_once('@').map_or(plain, |(_, host)| host);
        return RepositoryError::Address {
            path: format!("{scheme}://{plain}"),
            fix,
        };
    }
    let is_nowhere = matches!(
        source.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory
    ) || source.raw_os_error() == Some(walk::TOO_MANY_LINKS);
    if !is_nowhere {
        return unreadable(walk::at(path, &source));
    }
    match fs::read_link(path) {
        Ok(target) => RepositoryError::BrokenLink {
            fix: if is_cached(path) {
                "download the file as such (hf download REPOSITORY FILE --local-dir .)"
            } else {
                "mend the link"
            },
            path: path.to_owned(),
            target,
        },
        Err(_) => RepositoryError::Missing {
            path: path.to_owned(),
            source,
        },
    }
}

/// What to say when the operating system fails with `source`, which says of what.
fn unreadable(source: std::io::Error) -> RepositoryError {
    let fix = match source.kind() {
        ErrorKind::PermissionDenied => {
            "let the user that this server runs as read it (chmod -R a+rX, or change its owner)"
        }
        _ => "check the disk or volume that it lies on",
    };
    RepositoryError::Unreadable { source, fix }
}

/// Whether `path` lies in a cache of Hugging Face's client, whose files are links.
fn is_cached(path: &Path) -> bool {
    let mut parts = path.components();
    parts.any(|part| part.as_os_str().to_string_lossy().starts_with("models--"))
}

/// What a folder without a model is instead of a repository, with what to do, if that is known.
fn other_than_a_repository(path: &Path) -> Option<&'static str> {
    if path.join("saved_model.pb").exists() {
        return Some(
            "it is a TensorFlow SavedModel; convert it (python -m tf2onnx.convert --saved-model DIR --output model.onnx), and set --model (MODEL_PATH) to the .onnx file",
        );
    }
    let is_cache = ["blobs", "refs", "snapshots"]
        .iter()
        .all(|name| path.join(name).is_dir());
    (is_cache || is_cached(path)).then_some(
        "it is a cache of Hugging Face's client; download the file as such (hf download REPOSITORY FILE --local-dir .), and set --model (MODEL_PATH) to it",
    )
}
