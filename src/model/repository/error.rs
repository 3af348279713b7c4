//! Why no model is found, or not all of them.
//!
//! Invariant: each is one line with a cause and a fix, and shows no secret that an address may hold.

use std::path::PathBuf;

use thiserror::Error;

use super::skipped::SkippedList;
use crate::model::faults::Faults;
use crate::model::name::NAME_RULE;
use crate::model::sidecar::SidecarError;

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
    /// Which versions are served is said beside a single file, which has one.
    #[error(
        "{path} says version_policy, which is for a repository folder <name>/<version>/model.onnx; leave it out", path = .path.display()
    )]
    PolicyForFile {
        /// The sidecar.
        path: PathBuf,
    },
    /// A model lies there, and its file or folder cannot be used.
    #[error("{path} {reason}", path = .path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// Several models want the same name.
    #[error("{models} in {path} are all called '{name}'; rename a folder, or the name in a sidecar", path = .path.display(), models = listed(.models))]
    SameName {
        /// The repository.
        path: PathBuf,
        /// The name.
        name: String,
        /// The models, relative to the repository.
        models: Vec<PathBuf>,
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

/// The most models of one name that a message lists.
const MOST_LISTED: usize = 8;

/// `models` as a list in words.
fn listed(models: &[PathBuf]) -> String {
    let shown = models.iter().take(MOST_LISTED);
    let shown: Vec<String> = shown.map(|model| model.display().to_string()).collect();
    let more = match models.len().saturating_sub(MOST_LISTED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    match shown.split_last() {
        Some((last, others)) if more.is_empty() && !others.is_empty() => {
            format!("{} and {last}", others.join(", "))
        }
        _ => shown.join(", ") + &more,
    }
}

impl RepositoryError {
    /// Whether a setting is wrong for what lies there, and not what lies there.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::NameForFolder { .. } | Self::Address { .. })
    }
}
