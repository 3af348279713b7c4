//! The files of a model, as they were at some moment.
//!
//! Invariant: a fingerprint is taken before its files are read, so that what is written meanwhile is noticed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::model::fingerprint::Fingerprint;
use crate::model::onnx::RawModel;
use crate::model::repository::ModelSource;

/// The files of a model, as they were at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    model: PathBuf,
    external: Vec<PathBuf>,
    fingerprint: Fingerprint,
}

impl Files {
    /// The files of `source`, which was read as `raw`. To be taken before its weights are read, so that what is written
    /// meanwhile is noticed; also what is still missing, which may be why the load fails.
    pub(super) fn of(source: &ModelSource, raw: &RawModel) -> Self {
        let external = raw.external_data();
        let fingerprint = source.fingerprint.clone().and(&external);
        Self {
            model: source.path.clone(),
            external,
            fingerprint,
        }
    }

    /// The fingerprint of the same files of `source`, as it was found.
    pub(super) fn fingerprint_as_found(&self, source: &ModelSource) -> Fingerprint {
        source.fingerprint.clone().and(&self.external)
    }

    /// Whether they are still the same.
    pub(super) fn are_unchanged(&self) -> bool {
        self.fingerprint.is_current()
    }

    /// The fingerprint, as it was.
    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The `.onnx` file.
    pub(super) fn model(&self) -> &Path {
        &self.model
    }

    /// Whether `model` is the same model's file, perhaps of another version: both lie in one model's folder.
    fn are_beside(&self, model: &Path) -> bool {
        let folder = |path: &Path| path.ancestors().nth(2).map(Path::to_owned);
        folder(&self.model) == folder(model)
    }

    /// Whether something lies where the model was that is to be mended, and is no model of `sources`: what is no file any
    /// more, or cannot be looked at, or a file in a folder in which nothing is found.
    pub(super) fn are_occupied(&self, sources: &[ModelSource]) -> bool {
        let is_file = match fs::metadata(&self.model) {
            Ok(metadata) => metadata.is_file(),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                // A link that leads nowhere is to be mended.
                return fs::symlink_metadata(&self.model).is_ok();
            }
            Err(_) => false,
        };
        // What lies in its folder may be called otherwise now, or be of a version that is not wanted any more.
        !is_file || !sources.iter().any(|source| self.are_beside(&source.path))
    }
}
