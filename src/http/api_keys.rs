//! Who may predict: bearer keys, read from a file when the server starts.
//!
//! Invariant: the keys themselves are not kept, only their digests. So no dump, log or message can show one, and the
//! time that a comparison takes says nothing about them.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::text_file::{self, TextFileError};

/// The largest file of keys; thousands of them.
const MAX_FILE: usize = 1 << 20;

/// The keys that are admitted.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeys(HashSet<[u8; 32]>);

/// Why a file of keys is not taken.
#[derive(Debug, Error)]
pub enum ApiKeyFileError {
    /// It is no text that can be read.
    #[error("the file of API keys: {0}; expected one API key a line")]
    Text(#[from] TextFileError),
    /// A line is not a key. The line itself is not shown.
    #[error(
        "line {line} of {path} is not an API key; expected letters, digits and any of -._~+/, then perhaps some =",
        path = .path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Nobody could predict.
    #[error("{path} holds no API key; write one a line", path = .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl ApiKeys {
    /// Reads a file with one key a line. Blank lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// See [`ApiKeyFileError`].
    pub fn read(path: &Path) -> Result<Self, ApiKeyFileError> {
        let path_buf = || path.to_owned();
        let text = text_file::read(path, MAX_FILE)?;
        let mut digests = HashSet::new();
        for (index, line) in text.lines().enumerate() {
            let key = line.trim_ascii().as_bytes();
            if key.is_empty() || key.starts_with(b"#") {
                continue;
            }
            if !is_token(key) {
                return Err(ApiKeyFileError::NotAKey {
                    path: path_buf(),
                    line: index + 1,
                });
            }
            digests.insert(digest(key));
        }
        if digests.is_empty() {
            return Err(ApiKeyFileError::Empty { path: path_buf() });
        }
        Ok(Self(digests))
    }

    /// Whether a request with these headers brings one of the keys, as `Authorization: Bearer KEY`.
    #[must_use]
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        // Of two credentials, a proxy may have checked the other one.
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let Some((scheme, key)) = value.as_bytes().split_at_checked(7) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"bearer ") && self.0.contains(&digest(key.trim_ascii()))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ApiKeys({})", self.0.len())
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Whether a header can carry it, by RFC 6750: other characters would be a key that nobody can ever send.
fn is_token(key: &[u8]) -> bool {
    let end = key
        .iter()
        .rposition(|byte| *byte != b'=')
        .map_or(0, |last| last + 1);
    let (text, _padding) = key.split_at(end);
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    !text.is_empty() && text.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn keys(text: impl AsRef<[u8]>) -> Result<ApiKeys, ApiKeyFileError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ApiKeys::read(file.path())
    }

    fn admits(keys: &ApiKeys, values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        keys.admit(&headers)
    }

    #[test]
    fn each_line_is_a_key_but_for_blanks_and_comments() {
        // As a Windows editor saves it, too.
        let keys =
            keys("\u{feff}# for the web shop\r\nfirst-key==\n\n  second.key~+/\r\n").unwrap();
        for good in [
            "Bearer first-key==",
            "bearer second.key~+/",
            "BEARER  first-key==",
        ] {
            assert!(admits(&keys, &[good]), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer first-key",
            "Bearer first-key== second.key~+/",
            "Basic first-key==",
            "first-key==",
            "Bearer # for the web shop",
        ] {
            assert!(!admits(&keys, &[bad]), "{bad}");
        }
        assert!(!admits(&keys, &[]));
        assert!(!admits(
            &keys,
            &["Bearer first-key==", "Bearer first-key=="]
        ));
    }

    #[test]
    fn a_file_without_usable_keys_is_refused_without_showing_it() {
        for (text, part) in [
            ("", "holds no API key"),
            ("# none\n\n", "holds no API key"),
            ("good\ntop secret\n", "line 2 of"),
            ("===\n", "line 1 of"),
            ("schlüssel\n", "line 1 of"),
            ("\u{feff}", "holds no API key"),
        ] {
            let error = keys(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let error = keys(b"secret\n\xffsecret").unwrap_err().to_string();
        assert!(
            error.contains("line 2 of") && !error.contains("secret"),
            "{error}"
        );
        assert!(keys("k".repeat(MAX_FILE + 1)).is_err());
        assert!(ApiKeys::read(Path::new("/nowhere/keys")).is_err());
    }

    #[test]
    fn keys_are_not_shown() {
        assert_eq!(format!("{:?}", keys("a\nb\n").unwrap()), "ApiKeys(2)");
    }
}
