//! What `fetch` is asked for: a URI, taken apart.
//!
//! Invariant: a source that parsed names one place, and none of its names leads out of the folder that it is fetched into.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use reqwest::Url;

/// Where a model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An object, or all objects below a prefix, in a bucket.
    Store(StoreSource),
    /// One file on a web server.
    Web(WebSource),
    /// A file or folder of a repository of Hugging Face's hub.
    Hub(HubSource),
}

/// Whose buckets these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Google Cloud Storage.
    Google,
    /// Amazon S3, and stores that speak its protocol.
    Amazon,
    /// Azure Blob Storage.
    Azure,
}

/// A place in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSource {
    /// Whose bucket it is.
    pub provider: Provider,
    /// The scheme, the bucket and, for Azure, its account, as they were written.
    pub bucket: String,
    /// The key of an object, or a prefix. No slash at either end; empty for the whole bucket.
    pub key: String,
    /// Whether a slash at the end says that this is a prefix.
    pub is_folder: bool,
}

/// A file on a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSource {
    /// Its address. The query may hold a signature, and is never shown.
    pub url: Url,
    /// The name that the file gets.
    pub name: String,
}

/// A place in a repository of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSource {
    /// `OWNER/REPO`.
    pub repository: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// A path in the repository. No slash at either end; empty for the whole repository.
    pub path: String,
    /// Whether a slash at the end says that this is a folder.
    pub is_folder: bool,
}

/// What a URI may look like, for messages.
const FORMS: &str = "write gs://BUCKET/PATH, s3://BUCKET/PATH, az://CONTAINER/PATH, https://HOST/PATH or hf://OWNER/REPO/PATH";

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("{} is not a URI; {FORMS}", quoted(text)))?;
        match scheme.to_ascii_lowercase().as_str() {
            "gs" => store(Provider::Google, scheme, rest),
            "s3" | "s3a" => store(Provider::Amazon, scheme, rest),
            "az" | "azure" | "abfs" | "abfss" => store(Provider::Azure, scheme, rest),
            "http" | "https" => web(text),
            "hf" => hub(rest),
            _ => Err(format!("'{scheme}' is no scheme that is known; {FORMS}")),
        }
    }
}

impl Source {
    /// The name that the source has if it is one file.
    pub(super) fn file_name(&self) -> Option<&str> {
        let path = match self {
            Self::Web(web) => return Some(&web.name),
            Self::Store(store) => (!store.is_folder).then_some(&store.key),
            Self::Hub(hub) => (!hub.is_folder).then_some(&hub.path),
        };
        let name = path?.rsplit('/').next();
        name.filter(|name| !name.is_empty())
    }

    /// Whether what it sends can be read and changed on the way.
    #[must_use]
    pub fn is_without_tls(&self) -> bool {
        matches!(self, Self::Web(web) if web.url.scheme() == "http")
    }
}

/// As a person may see it: without a query, a user or a password.
impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = |is_folder: bool| if is_folder { "/" } else { "" };
        match self {
            Self::Store(it) => {
                let (bucket, key) = (&it.bucket, &it.key);
                if key.is_empty() {
                    write!(formatter, "{bucket}/")
                } else {
                    write!(formatter, "{bucket}/{key}{}", slash(it.is_folder))
                }
            }
            Self::Web(it) => formatter.write_str(&shown(&it.url)),
            Self::Hub(it) => {
                let HubSource {
                    repository,
                    revision,
                    path,
                    is_folder,
                } = it;
                write!(formatter, "hf://{repository}@{revision}/{path}")?;
                formatter.write_str(slash(*is_folder && !path.is_empty()))
            }
        }
    }
}

/// What somebody wrote, unless it may hold a password or a signature.
fn quoted(text: &str) -> String {
    if text.contains(['@', ':', '?']) {
        "what was written".to_owned()
    } else {
        format!("'{text}'")
    }
}

/// An address without what is secret in it.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

fn store(provider: Provider, scheme: &str, rest: &str) -> Result<Source, String> {
    let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.' | '@' | '$')
    };
    if bucket.is_empty() || !bucket.chars().all(plain) {
        return Err(format!(
            "{} is not the name of a bucket; {FORMS}",
            quoted(bucket)
        ));
    }
    let is_folder = path.is_empty() || path.ends_with('/');
    let key = path.trim_end_matches('/');
    if !key.is_empty() {
        check_path(key)?;
    }
    Ok(Source::Store(StoreSource {
        provider,
        bucket: format!("{}://{bucket}", scheme.to_ascii_lowercase()),
        key: key.to_owned(),
        is_folder,
    }))
}

fn web(text: &str) -> Result<Source, String> {
    // The text is not shown: it may hold a signature or a password.
    let url =
        Url::parse(text).map_err(|error| format!("the address is not well-formed ({error})"))?;
    let last = url.path().rsplit('/').next().unwrap_or_default();
    let name = percent_decode_str(last).decode_utf8();
    let name =
        name.map_err(|_| format!("the name of the file in '{}' is not UTF-8", shown(&url)))?;
    if name.is_empty() {
        return Err(format!(
            "'{}' names no file, and a web server cannot list a folder; write the address of one file",
            shown(&url)
        ));
    }
    check_path(&name)?;
    if name.contains('/') {
        return Err(format!("'{name}' is no name of a file"));
    }
    let name = name.into_owned();
    Ok(Source::Web(WebSource { url, name }))
}

fn hub(rest: &str) -> Result<Source, String> {
    let wrong = || {
        let text = quoted(rest);
        format!("{text} names no repository; write hf://OWNER/REPO[@REVISION]/PATH")
    };
    let (owner, rest) = rest.split_once('/').ok_or_else(wrong)?;
    // A revision may hold slashes only if they are encoded, as the hub's own addresses have them.
    let (repository, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    let plain = |text: &str| {
        let fits = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
        !text.is_empty() && text.chars().all(fits) && !matches!(text, "." | "..")
    };
    if !plain(owner) || !plain(name) || revision.is_empty() {
        return Err(wrong());
    }
    let is_folder = path.is_empty() || path.ends_with('/');
    let path = path.trim_end_matches('/');
    if !path.is_empty() {
        check_path(path)?;
    }
    let revision = percent_decode_str(revision)
        .decode_utf8()
        .map_err(|_| wrong())?;
    Ok(Source::Hub(HubSource {
        repository: format!("{owner}/{name}"),
        revision: revision.into_owned(),
        path: path.to_owned(),
        is_folder,
    }))
}

/// Refuses a path that leads elsewhere, or that tools which list files would write otherwise.
///
/// # Errors
/// With a sentence that names the path.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let mut parts = path.split('/');
    let strange = |it: char| it.is_control() || it == '\\';
    if parts.any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!(
            "'{path}' is no plain path: a part of it is empty, '.' or '..'"
        ));
    }
    if path.chars().any(strange) {
        return Err(format!("'{path}' holds a control character or a backslash"));
    }
    Ok(())
}

/// Whether a file below a folder is hidden: the server does not look at such files, and they are not fetched.
pub(super) fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_shown_as_it_was_understood() {
        for (text, shown, name) in [
            (
                "gs://b/models/best.onnx",
                "gs://b/models/best.onnx",
                Some("best.onnx"),
            ),
            ("gs://b/models/", "gs://b/models/", None),
            ("gs://b", "gs://b/", None),
            ("gs://b/", "gs://b/", None),
            (
                "S3://b.c/a b%20c.onnx",
                "s3://b.c/a b%20c.onnx",
                Some("a b%20c.onnx"),
            ),
            (
                "abfss://c@account.dfs.core.windows.net/m",
                "abfss://c@account.dfs.core.windows.net/m",
                Some("m"),
            ),
            (
                "https://h:81/a/b%20c.onnx?sig=secret",
                "https://h:81/a/b%20c.onnx",
                Some("b c.onnx"),
            ),
            (
                "https://user:secret@h/m.onnx#x",
                "https://h/m.onnx",
                Some("m.onnx"),
            ),
            (
                "hf://o/r/onnx/model.onnx",
                "hf://o/r@main/onnx/model.onnx",
                Some("model.onnx"),
            ),
            (
                "hf://o/r@refs%2Fpr%2F1/onnx/",
                "hf://o/r@refs/pr/1/onnx/",
                None,
            ),
            ("hf://o/r", "hf://o/r@main/", None),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(
                (source.to_string().as_str(), source.file_name()),
                (shown, name),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_place_is_refused_without_telling_secrets() {
        for (text, part) in [
            ("models/best.onnx", "is not a URI"),
            ("ftp://h/m.onnx", "'ftp' is no scheme"),
            ("gs:///m.onnx", "not the name of a bucket"),
            ("gs://b/a/../m.onnx", "no plain path"),
            ("gs://b/a//m.onnx", "no plain path"),
            ("s3://b/a\nb", "control character"),
            ("https://h/", "names no file"),
            ("https://h/%2e%2e", "names no file"),
            ("https://h/a%2Fb", "no name of a file"),
            ("https://[::1/m.onnx?key=secret", "not well-formed"),
            ("hf://repo", "names no repository"),
            ("hf://bob:secret@b/x", "names no repository"),
            ("s3://bob:secret@b/x", "not the name of a bucket"),
            ("h/m.onnx?sig=secret", "is not a URI"),
            ("hf://o/r@/m", "names no repository"),
            ("hf://../r/m", "names no repository"),
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(
                error.contains(part) && !error.contains("secret"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn hidden_files_are_told_by_any_part_of_their_path() {
        assert!(is_hidden(".gitattributes") && is_hidden("a/.cache/b"));
        assert!(!is_hidden("a.b/c.onnx"));
    }
}
