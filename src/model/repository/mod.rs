//! Where models are found: a single `.onnx` file, or a repository folder `<name>/<version>/model.onnx`.
//!
//! Invariant: names come from folder and file names, never from a request, so no request can reach another file; and
//! nothing that looks like a model is passed over without a word.

mod error;
mod skipped;
#[cfg(test)]
mod tests;
mod walk;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::faults;
use super::fingerprint::Fingerprint;
use super::name::{NAME_RULE, is_name};
use super::sidecar::Sidecar;
pub use error::RepositoryError;
pub use skipped::{Skipped, SkippedList};
use walk::Candidate;

/// One model to be served: its file, and how it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// The `.onnx` file.
    pub path: PathBuf,
    /// The name to serve it under.
    pub name: String,
    /// The version to serve it as.
    pub version: String,
    /// The settings beside it.
    pub sidecar: Sidecar,
    /// The stamp of the two files, from before the sidecar was read.
    pub fingerprint: Fingerprint,
}

/// A model that lies there, and cannot be served because of what is said of it.
#[derive(Debug)]
pub struct Broken {
    /// Its `.onnx` file.
    pub model: PathBuf,
    /// How it is called by its folder, or by its file where there is no repository.
    pub name: String,
    /// What is wrong.
    pub fault: RepositoryError,
}

/// The models that there are, and what lies beside them without being one.
#[derive(Debug, Default)]
pub struct Found {
    /// The models, in the order of their names.
    pub sources: Vec<ModelSource>,
    /// Models whose sidecars or names are not valid.
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
/// `name` overrides the name of a single-file model. Of a repository's versions, the highest is served.
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
                name: path.file_name().map(skipped::shown).unwrap_or_default(),
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
    for candidate in walk::newest_versions(path, &mut found.skipped).map_err(unreadable)? {
        let (model, name) = (candidate.model.clone(), candidate.folder.clone());
        match source_of(candidate, &mut found.skipped) {
            Ok(source) => found.sources.extend(source),
            Err(fault) => found.broken.push(Broken { model, name, fault }),
        }
    }
    found
        .sources
        .sort_by(|left, right| left.name.cmp(&right.name));
    refuse_twins(path, &mut found);
    Ok(found)
}

/// Takes out the models of `repository` that want the same name: which of them clients mean cannot be known.
fn refuse_twins(repository: &Path, found: &mut Found) {
    let mut twins = Vec::new();
    for pair in found.sources.windows(2) {
        if let [left, right] = pair
            && left.name == right.name
        {
            let relative = |model: &Path| {
                let relative = model.strip_prefix(repository);
                relative.unwrap_or(model).to_owned()
            };
            twins.push(left.name.clone());
            found.broken.push(Broken {
                model: right.path.clone(),
                name: right.name.clone(),
                fault: RepositoryError::SameName {
                    path: repository.to_owned(),
                    name: left.name.clone(),
                    first: relative(&left.path),
                    second: relative(&right.path),
                },
            });
        }
    }
    found.sources.retain(|source| !twins.contains(&source.name));
}

/// The model in the file at `path`.
fn single(path: &Path, name: Option<&str>) -> Result<ModelSource, RepositoryError> {
    let fingerprint = fingerprint_of(path);
    let beside = path.with_extension("toml");
    let sidecar = if beside == path {
        // It is told when it is loaded that this is no model.
        Sidecar::default()
    } else {
        Sidecar::read(&beside)?
    };
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
        name,
        version: sidecar.version.clone().unwrap_or_else(|| "1".to_owned()),
        sidecar,
        fingerprint,
    })
}

/// The model that was found in a repository, unless its folder's name cannot be a model's.
fn source_of(
    candidate: Candidate,
    skipped: &mut SkippedList,
) -> Result<Option<ModelSource>, RepositoryError> {
    let Candidate {
        folder,
        version,
        model,
    } = candidate;
    let fingerprint = fingerprint_of(&model);
    let sidecar = Sidecar::read(&model.with_extension("toml"))?;
    let differs = |stated: &&String| **stated != version.to_string();
    if let Some(stated) = sidecar.version.as_ref().filter(differs) {
        let sidecar = stated.clone();
        return Err(RepositoryError::Version {
            path: model,
            folder: version,
            sidecar,
        });
    }
    let name = sidecar.name.clone().unwrap_or_else(|| folder.clone());
    if !is_name(&name) {
        let reason = format!(
            "its name cannot be a model's: {NAME_RULE}; rename the folder, or write a name into the sidecar"
        );
        skipped.push(folder, reason);
        return Ok(None);
    }
    Ok(Some(ModelSource {
        path: model,
        name,
        version: version.to_string(),
        sidecar,
        fingerprint,
    }))
}

fn fingerprint_of(model: &Path) -> Fingerprint {
    Fingerprint::of([model.to_owned(), model.with_extension("toml")])
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
