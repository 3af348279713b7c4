//! Whether the files of a model are still the ones that were loaded.
//!
//! Invariant: looking opens no file, so it costs next to nothing even where files lie behind a network.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Which files a model has, how large they are, and when each was last written and changed. Links are followed.
///
/// The time of the change tells a file that was moved into the place of one of the same size and, as archives and image
/// layers set it, the same time of writing. Numbers of inodes would too, but on FUSE mounts they change by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, Option<Times>)>);

/// Size, time of writing, and time of the change in seconds and nanoseconds.
type Times = (u64, SystemTime, (i64, i64));

impl Stamp {
    /// Looks at `files`. One that is not there has a stamp too, which changes when it appears.
    #[must_use]
    pub fn of(files: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        let look = |file: &Path| {
            let metadata = std::fs::metadata(file).ok()?;
            let changed = (metadata.ctime(), metadata.ctime_nsec());
            Some((metadata.len(), metadata.modified().ok()?, changed))
        };
        let files = files.into_iter().map(|file| {
            let file = file.as_ref();
            (file.to_owned(), look(file))
        });
        Self(files.collect())
    }

    /// Whether a look now would find the same.
    #[must_use]
    pub fn is_current(&self) -> bool {
        Self::of(self.0.iter().map(|(file, _)| file)) == *self
    }

    /// The same, with `files` looked at now.
    #[must_use]
    pub fn and(mut self, files: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.0.extend(Self::of(files).0);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_stamp_changes_with_size_time_and_presence_and_with_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [model, sidecar] = ["m.onnx", "m.toml"].map(|name| folder.path().join(name));
        fs::write(&model, "one").unwrap();
        let look = || Stamp::of([&model, &sidecar]);
        let first = look();
        assert_eq!(first, look());

        fs::write(&model, "three").unwrap();
        let second = look();
        assert_ne!(first, second);

        let file = fs::File::options().append(true).open(&model).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let third = look();
        assert_ne!(second, third);

        fs::write(&sidecar, "").unwrap();
        assert_ne!(third, look());
        fs::remove_file(&sidecar).unwrap();
        assert_eq!(third, look());

        // Another file of the same size and time of writing takes the place.
        let other = folder.path().join("other");
        fs::write(&other, "eerht").unwrap();
        let file = fs::File::options().append(true).open(&other).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        fs::rename(other, &model).unwrap();
        assert_ne!(third, look());
    }
}
