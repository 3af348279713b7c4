//! Whether the files of a model are still the ones that were loaded.
//!
//! Invariant: looking opens no file, so it costs next to nothing even where files lie behind a network.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Which files a model has, where each really lies, how large it is, and when it was last written and changed.
///
/// Where a file lies, after all links on the way, tells a link (to the file, or to a folder above it) that was set to
/// another file which may have all else alike: Kubernetes changes mounted files so. The time of the change tells a file that was moved into the place of one of the same size and, as archives and image
/// layers set it, the same time of writing. Numbers of inodes would too, but on FUSE mounts they change by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, Option<Look>)>);

/// What is seen of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// Without links.
    place: PathBuf,
    bytes: u64,
    written: SystemTime,
    /// In seconds and nanoseconds.
    changed: (i64, i64),
}

impl Fingerprint {
    /// Looks at `files`. One that is not there has a fingerprint too, which changes when it appears.
    #[must_use]
    pub fn of(files: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        let look = |file: &Path| {
            let place = std::fs::canonicalize(file).ok()?;
            let metadata = std::fs::metadata(&place).ok()?;
            Some(Look {
                place,
                bytes: metadata.len(),
                written: metadata.modified().ok()?,
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
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
    fn a_fingerprint_changes_with_size_time_and_presence_and_with_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [model, sidecar] = ["m.onnx", "m.toml"].map(|name| folder.path().join(name));
        fs::write(&model, "one").unwrap();
        let look = || Fingerprint::of([&model, &sidecar]);
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

    #[test]
    fn a_link_that_is_set_to_another_file_is_seen_wherever_on_the_way_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        // One file under two names: whatever else is looked at is the same.
        for version in ["one", "two"] {
            fs::create_dir_all(root.join(version).join("1")).unwrap();
        }
        let model = |version: &str| root.join(version).join("1/model.onnx");
        fs::write(model("one"), "x").unwrap();
        fs::hard_link(model("one"), model("two")).unwrap();
        let set = |link: &str, target: &str| {
            let new = root.join("new");
            std::os::unix::fs::symlink(target, &new).unwrap();
            fs::rename(new, root.join(link)).unwrap();
        };
        for (link, targets, file) in [
            ("m.onnx", ["one/1/model.onnx", "two/1/model.onnx"], "m.onnx"),
            ("..data", ["one", "two"], "..data/1/model.onnx"),
        ] {
            set(link, targets[0]);
            let first = Fingerprint::of([root.join(file)]);
            assert!(first.is_current());
            set(link, targets[1]);
            assert!(!first.is_current(), "{link}");
            set(link, targets[0]);
            assert!(first.is_current(), "{link}");
        }
    }
}
