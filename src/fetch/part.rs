//! A file that has not all arrived yet, beside a note of which version of it this is the beginning of, and of its digest.
//!
//! Invariant: bytes of two versions are never put together, and what was not written as it arrived is not gone on with:
//! where the note is missing or says something else, the file begins anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{self, Digest, Hasher};

/// How many bytes arrive between two notes: as many are fetched again after a crash.
const NOTED_EVERY: u64 = 16 << 20;

/// What has arrived of a file.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    length: u64,
    /// How much of it the note tells of.
    noted: u64,
    version: Version,
}

/// What the note says. A file that has the right length can still have lost what was written last: with the power, say.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    version: Version,
    /// The bytes that were there.
    length: u64,
    /// Their SHA-256.
    sha256: String,
}

/// Which version of a file it is, and how long that is, as far as the server said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// What the server calls this version; without it, nothing can be put together.
    pub(super) validator: Option<String>,
    /// The length of the whole.
    pub(super) total: Option<u64>,
}

/// Where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resume {
    /// The bytes that are there.
    pub(super) from: u64,
    /// The version that they are of.
    pub(super) validator: String,
}

/// A file that has arrived, under a name of its own.
pub(super) struct Arrived {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    pub(super) length: u64,
}

impl Part {
    /// Opens what an earlier attempt left in `folder` under `key`, or begins anew.
    pub(super) fn open(folder: &Path, key: &str) -> io::Result<Self> {
        let path = folder.join(format!("{key}.part"));
        // Where others can write into the folder, a link here could lead anywhere.
        if std::fs::symlink_metadata(&path).is_ok_and(|it| !it.is_file()) {
            remove(&path)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)?;
        let mut part = Self {
            path,
            file,
            hasher: Hasher::default(),
            length: 0,
            noted: 0,
            version: Version::default(),
        };
        let note = std::fs::read(part.note()).ok();
        let note = note.and_then(|note| serde_json::from_slice::<Note>(&note).ok());
        match note {
            Some(note) if part.is_as_noted(&note)? => {
                part.file.set_len(note.length)?;
                part.length = note.length;
                part.noted = note.length;
                part.version = note.version;
            }
            _ => part.begin(Version::default())?,
        }
        Ok(part)
    }

    /// Whether what is there begins with what `note` tells of, and is to be gone on with. It is in the hasher then.
    fn is_as_noted(&mut self, note: &Note) -> io::Result<bool> {
        // What is complete was about to be put into its place; it may have been replaced since.
        let is_complete = note.version.total.is_some_and(|total| note.length >= total);
        if is_complete || note.version.validator.is_none() {
            return Ok(false);
        }
        let mut beginning = Read::by_ref(&mut self.file).take(note.length);
        let read = digest::read_into(&mut self.hasher, &mut beginning)?;
        let digest = self.hasher.clone().finish().to_string();
        Ok(read == note.length && digest == note.sha256)
    }

    /// Writes down what is there, if it can be gone on with.
    fn note_down(&mut self) -> io::Result<()> {
        if self.version.validator.is_none() {
            return Ok(());
        }
        let note = Note {
            version: self.version.clone(),
            length: self.length,
            sha256: self.hasher.clone().finish().to_string(),
        };
        std::fs::write(self.note(), serde_json::to_vec(&note)?)?;
        self.noted = self.length;
        Ok(())
    }

    fn note(&self) -> PathBuf {
        self.path.with_extension("json")
    }

    /// Where the next attempt can go on, if it can.
    pub(super) fn resume(&self) -> Option<Resume> {
        let validator = self.version.validator.clone();
        let validator = validator.filter(|_| self.length > 0)?;
        Some(Resume {
            from: self.length,
            validator,
        })
    }

    /// The bytes that are there.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The length of the whole, if the server told.
    pub(super) fn total(&self) -> Option<u64> {
        self.version.total
    }

    /// Throws away what is there; what follows is of `version`.
    pub(super) fn begin(&mut self, version: Version) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hasher = Hasher::default();
        self.length = 0;
        self.noted = 0;
        self.version = version;
        remove(&self.note())
    }

    /// Adds what comes next.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        if self.length - self.noted >= NOTED_EVERY {
            self.note_down()?;
        }
        Ok(())
    }

    /// All has arrived, and is on the disk.
    pub(super) fn finish(mut self) -> io::Result<Arrived> {
        self.file.sync_all()?;
        remove(&self.note())?;
        self.noted = self.length;
        Ok(Arrived {
            path: self.path.clone(),
            digest: self.hasher.clone().finish(),
            length: self.length,
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.length > self.noted {
            // Without a note the next fetch begins anew, and nothing else is lost.
            let _ = self.note_down();
        }
    }
}

impl Arrived {
    /// Moves it to `target`, in the place of a file that may be there, which is `before` as well from then on. Says whether
    /// there was one. The target never lacks a file in between.
    pub(super) fn place(&self, target: &Path, before: &Path) -> io::Result<bool> {
        let folder = target.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        remove(before)?;
        let had_one = match std::fs::hard_link(target, before) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // Not every file system has such links.
            Err(_) if target.is_file() => {
                std::fs::copy(target, before)?;
                true
            }
            Err(error) => return Err(error),
        };
        std::fs::rename(&self.path, target)?;
        // The new name is on the disk only when its folder is.
        File::open(folder)?.sync_all()?;
        Ok(had_one)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(validator: Option<&str>, total: u64) -> Version {
        Version {
            validator: validator.map(str::to_owned),
            total: Some(total),
        }
    }

    #[test]
    fn what_arrived_of_a_known_version_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let mut part = Part::open(folder.path(), "k").unwrap();
        assert_eq!(part.resume(), None);
        part.begin(version(Some("\"v1\""), 6)).unwrap();
        part.write(b"abc").unwrap();
        drop(part);
        let mut part = Part::open(folder.path(), "k").unwrap();
        let resume = part.resume().unwrap();
        assert_eq!((resume.from, resume.validator.as_str()), (3, "\"v1\""));
        part.write(b"def").unwrap();
        let arrived = part.finish().unwrap();
        let target = folder.path().join("a/b.onnx");
        let before = folder.path().join("before");
        assert!(!arrived.place(&target, &before).unwrap());
        assert_eq!(std::fs::read(&target).unwrap(), b"abcdef");
        assert_eq!(digest::of_file(&target).unwrap(), Some(arrived.digest));
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "the note stays behind"
        );
    }

    #[test]
    fn only_what_is_still_there_as_it_arrived_is_gone_on_with() {
        // What lies there, and how much of it is gone on with: it was "abc".
        for (there, length) in [("abc", 3), ("abcXYZ", 3), ("abX", 0), ("ab", 0), ("", 0)] {
            let folder = tempfile::tempdir().unwrap();
            let mut part = Part::open(folder.path(), "k").unwrap();
            part.begin(version(Some("\"v1\""), 6)).unwrap();
            part.write(b"abc").unwrap();
            drop(part);
            let path = folder.path().join("k.part");
            std::fs::write(&path, there).unwrap();
            let mut part = Part::open(folder.path(), "k").unwrap();
            assert_eq!(part.length(), length, "{there}");
            assert_eq!(part.resume().is_some(), length > 0, "{there}");
            if length > 0 {
                part.write(b"def").unwrap();
                let arrived = part.finish().unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), b"abcdef");
                assert_eq!(digest::of_file(&path).unwrap(), Some(arrived.digest));
            }
        }
    }

    #[test]
    fn a_crash_costs_no_more_than_what_came_since_the_last_note() {
        let folder = tempfile::tempdir().unwrap();
        let mut part = Part::open(folder.path(), "k").unwrap();
        part.begin(version(Some("\"v1\""), 1 << 30)).unwrap();
        let piece = vec![7; 1 << 20];
        for _ in 0..20 {
            part.write(&piece).unwrap();
        }
        std::mem::forget(part);
        let part = Part::open(folder.path(), "k").unwrap();
        assert_eq!(part.length(), NOTED_EVERY);
    }

    #[test]
    fn a_link_in_the_place_of_a_part_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        std::fs::write(&outside, "mine").unwrap();
        std::os::unix::fs::symlink(&outside, folder.path().join("k.part")).unwrap();
        let mut part = Part::open(folder.path(), "k").unwrap();
        part.write(b"theirs").unwrap();
        assert_eq!(std::fs::read(&outside).unwrap(), b"mine");
        assert!(
            std::fs::symlink_metadata(folder.path().join("k.part"))
                .unwrap()
                .is_file()
        );
    }

    #[test]
    fn what_cannot_be_gone_on_with_begins_anew() {
        for (validator, total, note) in [
            (None, 6, None),
            (Some("\"v1\""), 3, None),
            (Some("\"v1\""), 6, Some("{")),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut part = Part::open(folder.path(), "k").unwrap();
            part.begin(version(validator, total)).unwrap();
            part.write(b"abc").unwrap();
            drop(part);
            if let Some(note) = note {
                std::fs::write(folder.path().join("k.json"), note).unwrap();
            }
            let part = Part::open(folder.path(), "k").unwrap();
            assert_eq!((part.resume(), part.length()), (None, 0));
        }
    }
}
