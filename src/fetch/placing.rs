//! Puts what has arrived into its place.
//!
//! Invariant: all files are placed, or those that were there before are there again.

use std::path::{Path, PathBuf};

use super::error::FetchError;
use super::part::Arrived;
use super::remote::RemoteFile;

/// Puts every file into its place, models last. What was there is kept until all are there, and put back if one cannot be.
pub(super) fn place(
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
