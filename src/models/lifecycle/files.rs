//! The files of a model, as they were at some moment.
//!
//! Invariant: a stamp is taken before its files are read, so that what is written meanwhile is noticed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::model::fingerprint::Fingerprint;
use crate::model::onnx;
use crate::model::repository::ModelSource;

/// The files of a model, as they were at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    model: PathBuf,
    external: Vec<PathBuf>,
    fingerprint: Fingerprint,
}

impl Files {
    /// The files of `source` as they are now. To be taken before it is loaded, so that what is written meanwhile is
    /// noticed; also what is still missing, which may be why the load fails.
    #[must_use]
    pub fn of(source: &ModelSource) -> Self {
        let external = onnx::external_data(&source.path);
        let fingerprint = source.fingerprint.clone().and(&external);
        Self {
            model: source.path.clone(),
            external,
            fingerprint,
        }
    }

    /// The stamp of the same files of `source`, as it was found.
    pub(super) fn fingerprint_as_found(&self, source: &ModelSource) -> Fingerprint {
        source.fingerprint.clone().and(&self.external)
    }

    /// Whether they are still the same.
    pub(super) fn are_unchanged(&self) -> bool {
        self.fingerprint.is_current()
    }

    /// The stamp, as it was.
    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The `.onnx` file.
    pub(super) fn model(&self) -> &Path {
        &self.model
    }

    /// Whether `model` is the same model's file, perhaps of another version: both lie in one model's folder.
    pub(super) fn are_beside(&self, model: &Path) -> bool {
        let folder = |path: &Path| path.ancestors().nth(2).map(Path::to_owned);
        folder(&self.model) == folder(model)
    }

    /// Whether anything lies where the model was: also what is no model any more, or cannot be looked at.
    pub(super) fn lie_there(&self) -> bool {
        match fs::symlink_metadata(&self.model) {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        }
    }
}
