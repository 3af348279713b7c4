//! SHA-256 of a file, and of a folder's list of files.
//!
//! Invariant: what is printed here, `sha256sum` prints too.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::uri::is_hidden;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a SHA-256; write 64 hexadecimal digits, as sha256sum prints them"
            )
        };
        // Other tools write the name of the algorithm in front.
        let digits = text.trim().strip_prefix("sha256:").unwrap_or(text.trim());
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A digest in the making.
#[derive(Clone, Default)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Reads `file` to its end into `hasher`, and says how many bytes that were.
pub(super) fn read_into(hasher: &mut Hasher, file: &mut impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(read),
            count => {
                hasher.update(buffer.get(..count).unwrap_or_default());
                read += count as u64;
            }
        }
    }
}

/// The digest of the file at `path`; nothing if there is none.
pub(super) fn of_file(path: &Path) -> io::Result<Option<Digest>> {
    // A pipe would be waited for when it is opened.
    let mut file = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => File::open(path)?,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut hasher = Hasher::default();
    read_into(&mut hasher, &mut file)?;
    Ok(Some(hasher.finish()))
}

/// The digest of a list of files: of the lines that `sha256sum` prints for them, in the order of their names' bytes.
pub(super) fn of_list<'a>(files: impl IntoIterator<Item = (&'a str, Digest)>) -> Digest {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_unstable_by_key(|(name, _)| *name);
    let mut hasher = Hasher::default();
    for (name, digest) in files {
        hasher.update(format!("{digest}  {name}\n").as_bytes());
    }
    hasher.finish()
}

/// The digest of the list of all files below `folder` that are not hidden; nothing if there are none.
pub(super) fn of_folder(folder: &Path) -> io::Result<Option<Digest>> {
    let mut found = Vec::new();
    collect(folder, "", &mut found)?;
    let files = found.iter().map(|(name, digest)| (name.as_str(), *digest));
    Ok((!found.is_empty()).then(|| of_list(files)))
}

fn collect(folder: &Path, prefix: &str, found: &mut Vec<(String, Digest)>) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // What has no text for a name was not fetched.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if is_hidden(&name) {
            continue;
        }
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), &format!("{path}/"), found)?;
        } else if kind.is_file()
            && let Some(digest) = of_file(&entry.path())?
        {
            found.push((path, digest));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_read_as_sha256sum_and_registries_write_it() {
        let digest = Hasher::default().finish();
        assert_eq!(digest.to_string(), EMPTY);
        let upper = EMPTY.to_uppercase();
        for text in [
            EMPTY,
            &upper,
            &format!("sha256:{EMPTY}"),
            &format!(" {EMPTY}\n"),
        ] {
            assert_eq!(text.parse(), Ok(digest));
        }
        for text in [
            "",
            "e3b0",
            &EMPTY[1..],
            &format!("{EMPTY}0"),
            &EMPTY.replace('e', "g"),
            &"é".repeat(32),
        ] {
            assert!(
                text.parse::<Digest>()
                    .unwrap_err()
                    .contains("64 hexadecimal digits")
            );
        }
    }

    #[test]
    fn a_folders_digest_is_that_of_its_list_whatever_order_files_come_in() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(of_folder(folder.path()).unwrap(), None);
        assert_eq!(of_folder(&folder.path().join("none")).unwrap(), None);
        for (name, text) in [
            ("b.txt", "b\n"),
            ("B.txt", "B\n"),
            ("a/1/c", "c\n"),
            (".hidden", "no"),
            ("a/.x", "no"),
        ] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let listed = std::process::Command::new("bash")
            .args(["-c", "find * -type f -not -path '*/.*' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let expected = String::from_utf8(listed.stdout).unwrap();
        let digest = of_folder(folder.path()).unwrap().unwrap();
        assert_eq!(
            expected.split_whitespace().next(),
            Some(digest.to_string().as_str())
        );
    }
}
