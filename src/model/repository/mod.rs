//! Where models are found: a single `.onnx` file, or a repository folder `<name>/<version>/model.onnx`.
//!
//! Invariant: names come from folder and file names, never from a request, so no request can reach another file; and
//! nothing that looks like a model is passed over without a word.

mod skipped;
mod walk;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::faults::{self, Faults};
use super::is_name;
use super::sidecar::{Sidecar, SidecarError};
use super::stamp::Stamp;
pub use skipped::{Skipped, SkippedList};
use walk::Candidate;

/// Why no model could be found.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// Nothing lies at the path.
    #[error("no model at {path}: {source}; set --model (MODEL_PATH) to an .onnx file or a folder <name>/<version>/model.onnx", path = .path.display())]
    Missing {
        /// The path that was asked for.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Something lies at the path, and the operating system does not give it out.
    #[error("cannot read {source}; {fix}, or set --model (MODEL_PATH) to another file or folder")]
    Unreadable {
        /// What the operating system said, and of what.
        source: std::io::Error,
        /// What to do.
        fix: &'static str,
    },
    /// A link lies at the path, and nothing where it leads.
    #[error("{path} is a link that leads nowhere (to {target}); {fix}, and set --model (MODEL_PATH) to the file itself", path = .path.display(), target = .target.display())]
    BrokenLink {
        /// The path that was asked for.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// How to get the file.
        fix: &'static str,
    },
    /// The path is an address on a network.
    #[error(
        "'{path}' is an address, and this server fetches nothing; {fix}, and set --model (MODEL_PATH) to the file"
    )]
    Address {
        /// The address, without what may be a secret in it.
        path: String,
        /// How to get the file.
        fix: &'static str,
    },
    /// The folder holds no model.
    #[error("{path} holds no model; {fix}{skipped}", path = .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
        /// What is expected, and what to do.
        fix: &'static str,
        /// What it holds instead.
        skipped: SkippedList,
    },
    /// The sidecar was refused.
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    /// A name was given for a folder, whose models have their own.
    #[error(
        "--model-name (MODEL_NAME) is for a single .onnx file, but {path} is a folder; its models are named by their folders or sidecars", path = .path.display()
    )]
    NameForFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Two models want the same name.
    #[error("{first} and {second} in {path} are both called '{name}'; rename a folder, or the name in a sidecar", path = .path.display(), first = .first.display(), second = .second.display())]
    SameName {
        /// The repository.
        path: PathBuf,
        /// The name.
        name: String,
        /// One model, relative to the repository.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A sidecar states another version than the folder it lies in.
    #[error("{path} lies in a folder of version {folder}, but its sidecar says '{sidecar}'; leave the version out of the sidecar", path = .path.display())]
    Version {
        /// The model.
        path: PathBuf,
        /// The version by the folder.
        folder: u64,
        /// The version by the sidecar.
        sidecar: String,
    },
    /// A name that cannot stand in a URL path or a metric label.
    #[error("'{name}'{from} cannot be a model's name: {NAME_RULE}; {fix}")]
    Name {
        /// The name that was asked for.
        name: String,
        /// Where it comes from, if it was not asked for.
        from: String,
        /// What to do.
        fix: &'static str,
    },
    /// Several models cannot be served.
    #[error("{} models cannot be served: {}", .0.len(), Faults(.0))]
    Several(Vec<RepositoryError>),
}

impl RepositoryError {
    /// Whether a setting is wrong for what lies there, and not what lies there.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::NameForFolder { .. } | Self::Address { .. })
    }
}

/// What a model's name may be.
pub(super) const NAME_RULE: &str =
    "1 to 128 letters, digits, '.', '_' or '-', not beginning with '.'";

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
    pub stamp: Stamp,
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
    let stamp = stamp_of(path);
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
        stamp,
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
    let stamp = stamp_of(&model);
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
        stamp,
    }))
}

fn stamp_of(model: &Path) -> Stamp {
    Stamp::of([model.to_owned(), model.with_extension("toml")])
}

/// Why there is nothing at `path`, of which the operating system said `source`.
fn missing(path: &Path, source: std::io::Error) -> RepositoryError {
    if let Some((scheme, rest)) = path.to_str().and_then(|text| text.split_once("://")) {
        let fix = match scheme.to_ascii_lowercase().as_str() {
            "file" => "leave out file://",
            "http" | "https" => "download it first (curl -LO URL)",
            "s3" => "copy it first (aws s3 cp URL .)",
            "gs" => "copy it first (gcloud storage cp URL .)",
            "hf" => "download it first (hf download REPOSITORY FILE --local-dir .)",
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

/// A version is a metric label, too.
pub(super) fn check_version(version: &str) -> bool {
    is_name(&version.replace('+', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_contradict_a_repository_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        for model in ["a/1", "b/2"] {
            fs::create_dir_all(path.join(model)).unwrap();
            fs::write(path.join(model).join("model.onnx"), b"x").unwrap();
        }
        assert!(find(path, None).is_ok());
        assert!(matches!(
            find(path, Some("x")),
            Err(RepositoryError::NameForFolder { .. })
        ));
        let sidecar = path.join("b/2/model.toml");
        fs::write(&sidecar, "name = \"a\"").unwrap();
        assert!(matches!(
            find(path, None),
            Err(RepositoryError::SameName { .. })
        ));
        fs::write(&sidecar, "version = \"3\"").unwrap();
        assert!(matches!(
            find(path, None),
            Err(RepositoryError::Version { .. })
        ));
        fs::write(&sidecar, "version = \"2\"").unwrap();
        assert!(find(path, None).is_ok());
    }

    /// A repository with these files; a name that ends with `/` is a folder.
    fn repository(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, b"x").unwrap();
            }
        }
        root
    }

    fn versions(found: &Found) -> Vec<(&str, &str)> {
        let sources = found.sources.iter();
        sources
            .map(|source| (source.name.as_str(), source.version.as_str()))
            .collect()
    }

    #[test]
    fn a_repository_serves_the_highest_version_of_each_model() {
        let root = repository(&[
            "b/1/model.onnx",
            "a/9/model.onnx",
            "a/10/model.onnx",
            "a/010/model.onnx",
            "a/11/readme.txt",
            ".git/1/model.onnx",
            "c/x/model.onnx",
            "d/007/model.onnx",
        ]);
        let found = scan(root.path(), None).unwrap();
        assert_eq!(versions(&found), [("a", "10"), ("b", "1"), ("d", "7")]);
        let empty = root.path().join("nowhere");
        assert!(matches!(
            find(&empty, None),
            Err(RepositoryError::Missing { .. })
        ));
    }

    #[test]
    fn whatever_is_not_served_is_named_with_a_reason() {
        let root = repository(&[
            "good/1/model.onnx",
            "good/1/weights.bin",
            "good/1/other.onnx",
            "README.md",
            "good/LICENSE",
            "good/config.pbtxt",
            "lost+found/",
            "..data/1/model.onnx",
        ]);
        let found = scan(root.path(), None).unwrap();
        assert_eq!(found.skipped, SkippedList::default());

        for (file, named, part) in [
            ("a/v4/model.onnx", "a/v4", "rename it to 4"),
            ("a/1.0/model.onnx", "a/1.0", "rename it to 1"),
            ("a/+1/model.onnx", "a/+1", "rename it to 1"),
            ("a/-1/model.onnx", "a/-1", "whole number"),
            ("a/0x2/model.onnx", "a/0x2", "whole number"),
            ("a/latest/model.onnx", "a/latest", "whole number"),
            (
                "a/18446744073709551616/model.onnx",
                "a/18446744073709551616",
                "the highest is 18446744073709551615",
            ),
            ("a/", "a", "holds no version"),
            ("a/1/", "a/1", "holds no model.onnx"),
            ("a/1/model.ONNX", "a/1", "rename model.ONNX to model.onnx"),
            ("a/1/my model.onnx", "a/1", "rename my model.onnx"),
            ("good/2/best.onnx", "good/2", "rename best.onnx"),
            (
                "good/01/model.onnx",
                "good/1",
                "the same version as good/01",
            ),
            ("good/model.onnx", "good/model.onnx", "good/1/model.onnx"),
            ("good/model.toml", "good/model.toml", "beside its model"),
            ("x.onnx", "x.onnx", "move it to x/1/model.onnx"),
            ("my model.onnx", "my model.onnx", "move it to <name>/1/"),
            ("X.ONNX", "X.ONNX", "move it to X/1/model.onnx"),
            ("x.toml", "x.toml", "beside its model"),
            ("model.pt", "model.pt", "not part of a repository"),
            ("my model/1/model.onnx", "my model", "rename the folder"),
            ("a/1/model.onnx/", "a/1", "is a folder, not a file"),
        ] {
            let root = repository(&["good/1/model.onnx", file]);
            let found = scan(root.path(), None).unwrap();
            assert_eq!(versions(&found), [("good", "1")], "{file}");
            let [entry] = found.skipped.named() else {
                panic!("{file}: {:?}", found.skipped);
            };
            let text = entry.to_string();
            assert!(text.contains(named), "{file}: {text}");
            assert!(text.contains(part), "{file}: {text}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_read_is_not_said_to_hold_no_model() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("models");
        for (kind, part) in [
            (ErrorKind::PermissionDenied, "chmod -R a+rX"),
            (ErrorKind::StaleNetworkFileHandle, "disk or volume"),
        ] {
            let text = missing(&path, kind.into()).to_string();
            assert!(
                text.starts_with(&format!("cannot read {}: ", path.display())),
                "{text}"
            );
            assert!(text.contains(part) && text.contains("--model"), "{text}");
        }
    }

    #[test]
    fn links_that_lead_nowhere_and_pipes_are_named() {
        use std::os::unix::fs::symlink;
        let root = repository(&["a/1/", "a/3/model.onnx", "b/1/model.onnx"]);
        let path = root.path();
        symlink("nowhere", path.join("gone")).unwrap();
        symlink("round", path.join("round")).unwrap();
        symlink("nowhere", path.join("a/2")).unwrap();
        symlink("../../blob", path.join("a/1/model.onnx")).unwrap();
        nix::unistd::mkfifo(&path.join("b/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = scan(path, None).unwrap();
        assert_eq!(versions(&found), [("a", "3"), ("b", "1")]);
        let text: Vec<String> = found
            .skipped
            .named()
            .iter()
            .map(ToString::to_string)
            .collect();
        for line in [
            "gone: is a link that leads nowhere (to nowhere)",
            "round: is a link that leads back to itself",
            "a/2: is a link that leads nowhere (to nowhere)",
            "a/1: its model.onnx is a link that leads nowhere (to ../../blob)",
            "b/pipe: is neither a file nor a folder (a pipe, socket or device)",
        ] {
            assert!(text.iter().any(|known| known == line), "{line}: {text:?}");
        }
    }

    #[test]
    fn an_empty_repository_says_what_it_holds_instead() {
        let root = repository(&["a/v1/model.onnx", "b.onnx"]);
        let error = scan(root.path(), None).unwrap_err().to_string();
        for part in [
            "expected <name>/<version>/model.onnx",
            "a/v1 (is no version",
            "b.onnx (",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let root = repository(&["saved_model.pb", "variables/variables.index"]);
        let error = scan(root.path(), None).unwrap_err().to_string();
        assert!(error.contains("tf2onnx"), "{error}");
        assert!(!error.contains("rename it"), "{error}");
        let root = repository(&["blobs/1", "refs/main", "snapshots/5c/"]);
        let error = scan(root.path(), None).unwrap_err().to_string();
        assert!(error.contains("--local-dir"), "{error}");
    }

    #[test]
    fn every_broken_sidecar_is_named() {
        let root = repository(&["a/1/model.onnx", "b/1/model.onnx", "c/1/model.onnx"]);
        fs::write(root.path().join("a/1/model.toml"), "nmae = 1").unwrap();
        fs::write(root.path().join("c/1/model.toml"), "version = \"2\"").unwrap();
        let error = scan(root.path(), None).unwrap_err().to_string();
        for part in [
            "2 models cannot",
            "a/1/model.toml",
            "c/1/model.onnx",
            "leave the version out",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let found = look(root.path(), None).unwrap();
        assert_eq!(versions(&found), [("b", "1")]);
        let broken: Vec<&str> = found.broken.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(broken, ["a", "c"]);
    }

    #[test]
    fn a_path_that_is_no_model_says_what_to_do() {
        let root = repository(&["my model.onnx"]);
        let model = root.path().join("my model.onnx");
        let error = find(&model, None).unwrap_err().to_string();
        assert!(error.contains("set --model-name (MODEL_NAME)"), "{error}");
        assert!(find(&model, Some("mine")).is_ok());

        for (path, parts) in [
            (
                "https://user:secret@host/m.onnx?key=secret",
                ["https://host/m.onnx", "curl"],
            ),
            ("s3://bucket/m.onnx", ["s3://bucket/m.onnx", "aws s3 cp"]),
            (
                "gs://bucket/m.onnx",
                ["gs://bucket/m.onnx", "gcloud storage cp"],
            ),
            ("hf://org/name", ["hf://org/name", "hf download"]),
            ("file:///m.onnx", ["file:///m.onnx", "leave out file://"]),
        ] {
            let error = find(Path::new(path), None).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
            assert!(!error.contains("secret"), "{error}");
        }
        let link = root.path().join("models--org--name");
        fs::create_dir(&link).unwrap();
        let link = link.join("model.onnx");
        std::os::unix::fs::symlink("../../blobs/5c", &link).unwrap();
        let error = find(&link, None).unwrap_err().to_string();
        for part in ["leads nowhere", "../../blobs/5c", "--local-dir"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
