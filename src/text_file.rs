//! Text files that people write: keys, sidecars and the like.
//!
//! Invariant: what is read is bounded and never waited for. Only plain files are opened (a pipe would block whoever
//! reads it, a device has no end), and what comes out is UTF-8 without a byte order mark. Lines may end as on Unix or as
//! on Windows.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a text file is not taken. Each is one sentence with the file's path; what the file holds is never shown.
#[derive(Debug, Error)]
pub enum TextFileError {
    /// The operating system does not give it.
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is a folder, a pipe, a socket or a device.
    #[error("{path} is {found}; expected a plain file", path = .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
    },
    /// It has more bytes than any file of its kind needs.
    #[error("{path} is larger than {limit} bytes", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit: usize,
    },
    /// It is text, in another encoding.
    #[error("{path} is UTF-16; save it as UTF-8", path = .path.display())]
    Utf16 {
        /// The file.
        path: PathBuf,
    },
    /// It is no text.
    #[error("line {line} of {path} is not UTF-8 text (byte {byte} of the line)", path = .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Which byte of the line, counted from 1.
        byte: usize,
    },
}

impl TextFileError {
    /// Whether there is no such file, which is no fault where the file is optional.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == ErrorKind::NotFound)
    }
}

/// Reads the text at `path`, of at most `limit` bytes.
///
/// # Errors
/// See [`TextFileError`].
pub fn read(path: &Path, limit: usize) -> Result<String, TextFileError> {
    let failed = |source| TextFileError::Read {
        path: path.to_owned(),
        source,
    };
    let plain = |metadata: &Metadata| match other_kind(metadata) {
        None => Ok(()),
        Some(found) => Err(TextFileError::NotAFile {
            path: path.to_owned(),
            found,
        }),
    };
    let too_large = || TextFileError::TooLarge {
        path: path.to_owned(),
        limit,
    };
    // Looked at before it is opened, because to open a device may do something; and once more when it is open, because
    // somebody may have put another one there. Opening does not wait for the other end of a pipe.
    plain(&std::fs::metadata(path).map_err(failed)?)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    plain(&metadata)?;
    if metadata.len() > limit as u64 {
        return Err(too_large());
    }
    let bytes = bounded(&file, limit).map_err(failed)?;
    if bytes.len() > limit {
        return Err(too_large());
    }
    text(path, bytes)
}

/// At most one byte more than `limit`, whatever the file's size was when it was looked at.
fn bounded(file: &File, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take((limit as u64).saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(path: &Path, mut bytes: Vec<u8>) -> Result<String, TextFileError> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(TextFileError::Utf16 {
            path: path.to_owned(),
        });
    }
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(.."\u{feff}".len());
    }
    // Editors write no zero bytes; a file that has some is another kind of file.
    let zero = memchr::memchr(0, &bytes);
    let valid = match std::str::from_utf8(&bytes) {
        Ok(_) => None,
        Err(error) => Some(error.valid_up_to()),
    };
    let wrong = zero.into_iter().chain(valid).min();
    if let Some(place) = wrong {
        let before = bytes.get(..place).unwrap_or_default();
        let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
        return Err(TextFileError::NotText {
            path: path.to_owned(),
            line: memchr::memchr_iter(b'\n', before).count() + 1,
            byte: place - line_start + 1,
        });
    }
    // It was looked through just now, so nothing is lost here.
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// What it is, if it is no plain file.
pub(crate) fn other_kind(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a folder")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn written(bytes: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path(), 64).map_err(|error| {
            error
                .to_string()
                .replace(&file.path().display().to_string(), "FILE")
        })
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text_and_line_ends_stay() {
        assert_eq!(
            written(b"\xef\xbb\xbfname = 'a'\r\n"),
            Ok("name = 'a'\r\n".to_owned())
        );
        assert_eq!(written("größe\n".as_bytes()), Ok("größe\n".to_owned()));
        assert_eq!(written(b""), Ok(String::new()));
        assert_eq!(written(&[b'a'; 64]), Ok("a".repeat(64)));
    }

    #[test]
    fn what_is_no_text_is_told_with_its_place() {
        for (bytes, expected) in [
            (
                &b"one\r\nt\xffo\n"[..],
                "line 2 of FILE is not UTF-8 text (byte 2 of the line)",
            ),
            (
                b"\xef\xbb\xbfa\0b",
                "line 1 of FILE is not UTF-8 text (byte 2 of the line)",
            ),
            (
                b"a\nb\nc\0\xff",
                "line 3 of FILE is not UTF-8 text (byte 2 of the line)",
            ),
            (b"\xff\xfea\0", "FILE is UTF-16; save it as UTF-8"),
            (b"\xfe\xff\0a", "FILE is UTF-16; save it as UTF-8"),
            (&[b'a'; 65], "FILE is larger than 64 bytes"),
        ] {
            assert_eq!(written(bytes), Err(expected.to_owned()));
        }
    }

    #[test]
    fn only_plain_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let socket = folder.path().join("socket");
        let _listening = UnixListener::bind(&socket).unwrap();
        for (path, expected) in [
            (folder.path(), "is a folder; expected a plain file"),
            (&pipe, "is a pipe; expected a plain file"),
            (&link, "is a pipe; expected a plain file"),
            (&socket, "is a socket; expected a plain file"),
            (Path::new("/dev/zero"), "is a device; expected a plain file"),
        ] {
            let error = read(path, 64).unwrap_err();
            assert!(!error.is_missing());
            assert_eq!(error.to_string(), format!("{} {expected}", path.display()));
        }
        let error = read(&folder.path().join("none"), 64).unwrap_err();
        assert!(error.is_missing());
        assert!(
            error
                .to_string()
                .ends_with("none cannot be read: No such file or directory (os error 2)"),
            "{error}"
        );
    }
}
