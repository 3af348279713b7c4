//! Where models are found: a single `.onnx` file, or a repository folder `<name>/<version>/model.onnx`.
//!
//! Invariant: names come from folder and file names, never from a request, so no request can reach another file.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::sidecar::{Sidecar, SidecarError};
use super::stamp::Stamp;

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
    /// The folder holds no model.
    #[error("{path} holds no model; expected <name>/<version>/model.onnx with a whole number as version", path = .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
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
    #[error("two models in {path} are called '{name}'; rename a folder, or the name in a sidecar", path = .path.display())]
    SameName {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
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
    #[error(
        "'{name}' cannot be a model's name; use 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.'"
    )]
    Name {
        /// The name that was asked for.
        name: String,
    },
}

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

/// Finds the models at `path`, in the order of their names.
///
/// `name` overrides the name of a single-file model. Of a repository's versions, the highest is served.
///
/// # Errors
/// When there is no model, or what lies beside it is not valid.
pub fn find(path: &Path, name: Option<&str>) -> Result<Vec<ModelSource>, RepositoryError> {
    let missing = |source| RepositoryError::Missing {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(missing)?;
    if !metadata.is_dir() {
        let stamp = stamp_of(path);
        let sidecar = Sidecar::read(&path.with_extension("toml"))?;
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("model");
        let name = name.or(sidecar.name.as_deref()).unwrap_or(stem).to_owned();
        let version = sidecar.version.clone().unwrap_or_else(|| "1".to_owned());
        check_name(&name)?;
        return Ok(vec![ModelSource {
            path: path.to_owned(),
            name,
            version,
            sidecar,
            stamp,
        }]);
    }

    if name.is_some() {
        return Err(RepositoryError::NameForFolder {
            path: path.to_owned(),
        });
    }
    let mut sources = Vec::new();
    for folder in subfolders(path).map_err(missing)? {
        let Some((version, model)) = latest_version(&folder).map_err(missing)? else {
            continue;
        };
        let stamp = stamp_of(&model);
        let sidecar = Sidecar::read(&model.with_extension("toml"))?;
        if let Some(stated) = sidecar
            .version
            .as_ref()
            .filter(|stated| **stated != version.to_string())
        {
            let sidecar = stated.clone();
            return Err(RepositoryError::Version {
                path: model,
                folder: version,
                sidecar,
            });
        }
        let folder_name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let name = sidecar
            .name
            .clone()
            .unwrap_or_else(|| folder_name.to_owned());
        check_name(&name)?;
        sources.push(ModelSource {
            path: model,
            name,
            version: version.to_string(),
            sidecar,
            stamp,
        });
    }
    if sources.is_empty() {
        return Err(RepositoryError::Empty {
            path: path.to_owned(),
        });
    }
    sources.sort_by(|left, right| left.name.cmp(&right.name));
    let mut neighbours = sources.windows(2);
    let same = neighbours.find_map(|pair| match pair {
        [left, right] if left.name == right.name => Some(left.name.clone()),
        _ => None,
    });
    if let Some(name) = same {
        return Err(RepositoryError::SameName {
            path: path.to_owned(),
            name,
        });
    }
    Ok(sources)
}

fn stamp_of(model: &Path) -> Stamp {
    Stamp::of([model.to_owned(), model.with_extension("toml")])
}

/// What lies at `path`; nothing only if nothing does. A file system that fails is no model that is gone.
fn look_at(path: &Path) -> std::io::Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => {
            let error = std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            Err(error)
        }
    }
}

/// A name must be fit for a URL path segment and a metric label.
fn check_name(name: &str) -> Result<(), RepositoryError> {
    if !super::is_name(name) {
        return Err(RepositoryError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn subfolders(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        // Kubernetes mounts volumes through hidden folders such as `..data`; they hold no models of their own.
        let hidden = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_none_or(|name| name.starts_with('.'));
        if !hidden && look_at(&path)?.is_some_and(|found| found.is_dir()) {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// The highest version of the model in `folder`, with its file.
fn latest_version(folder: &Path) -> std::io::Result<Option<(u64, PathBuf)>> {
    let mut latest = None;
    for path in subfolders(folder)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(version) = name.and_then(|name| name.parse::<u64>().ok()) else {
            continue;
        };
        let model = path.join("model.onnx");
        if look_at(&model)?.is_some_and(|found| found.is_file()) {
            latest = latest.max(Some((version, model)));
        }
    }
    Ok(latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_must_fit_a_url_and_a_label() {
        for name in ["digits", "resnet-50.v2", "A_b"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "..",
            ".hidden",
            "a/b",
            "a b",
            "a\nb",
            "ä",
            &"x".repeat(129),
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

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

    #[test]
    fn a_repository_serves_the_highest_version_of_each_model() {
        let root =
            std::env::temp_dir().join(format!("model-serving-repository-{}", std::process::id()));
        for file in [
            "b/1/model.onnx",
            "a/9/model.onnx",
            "a/10/model.onnx",
            "a/11/readme.txt",
            ".git/1/model.onnx",
            "c/x/model.onnx",
        ] {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, b"x").unwrap();
        }
        let found = find(&root, None).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|source| (source.name.as_str(), source.version.as_str()))
            .collect();
        assert_eq!(found, [("a", "10"), ("b", "1")]);
        fs::remove_dir_all(&root).unwrap();
        assert!(matches!(
            find(&root, None),
            Err(RepositoryError::Missing { .. })
        ));
    }
}
