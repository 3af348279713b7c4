//! Hugging Face's hub: which files a repository has at a commit, and where they lie.
//!
//! Invariant: all files are of one commit, whatever is pushed meanwhile.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::LINK;
use reqwest::{Response, Url};
use serde::Deserialize;

use super::failure::Failure;
use super::part::Resume;
use super::remote::{Opened, Place, RemoteFile};
use super::uri::{self, HubSource};
use super::web::Web;

/// The hub, unless `HF_ENDPOINT` names a mirror.
const ENDPOINT: &str = "https://huggingface.co";

/// A page has up to a thousand files.
const MOST_PAGES: usize = 1000;

/// What stands in a segment of a path as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A repository, and the place in it.
#[derive(Clone)]
pub(super) struct Hub {
    web: Web,
    endpoint: Url,
    source: HubSource,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: Option<u64>,
    lfs: Option<LargeFile>,
}

/// Large files are kept by their SHA-256.
#[derive(Deserialize)]
struct LargeFile {
    oid: String,
}

impl Hub {
    /// `environment` gives `HF_TOKEN` and `HF_ENDPOINT`.
    ///
    /// # Errors
    /// When one of them is not well-formed.
    pub(super) fn new(
        source: &HubSource,
        idle: Duration,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let read = |name| {
            environment(name)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let endpoint = read("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = Url::parse(endpoint.trim_end_matches('/')).ok();
        let endpoint = endpoint.filter(|url| url.scheme() == "https");
        let endpoint = endpoint.ok_or(
            "HF_ENDPOINT is no address of https; write for example https://hub.example.com",
        )?;
        Ok(Self {
            web: Web::new(idle, read("HF_TOKEN"))?,
            endpoint,
            source: source.clone(),
        })
    }

    /// The file of that name, or the files below it.
    pub(super) async fn files(&self) -> Result<Vec<RemoteFile>, Failure> {
        let revision = utf8_percent_encode(&self.source.revision, SEGMENT);
        let url = self.address(&format!(
            "api/models/{}/revision/{revision}",
            self.source.repository
        ))?;
        let commit: Revision = json(self.web.send(self.web.get(url)).await?).await?;
        if commit.sha.len() != 40 || !commit.sha.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(Failure::Permanent("the hub names no commit".to_owned()));
        }
        let path = &self.source.path;
        if self.source.is_folder {
            return self.below(&commit.sha, path).await;
        }
        let url = self.address(&format!(
            "api/models/{}/paths-info/{}",
            self.source.repository, commit.sha
        ))?;
        let asked = format!("paths={}&expand=false", utf8_percent_encode(path, SEGMENT));
        let request = self.web.post(url).body(asked);
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let found: Vec<Entry> = json(self.web.send(request).await?).await?;
        match found.into_iter().find(|entry| entry.path == *path) {
            Some(entry) if entry.kind == "directory" => self.below(&commit.sha, path).await,
            Some(entry) => {
                let name = path.rsplit('/').next().unwrap_or(path).to_owned();
                Ok(vec![self.remote(&commit.sha, name, &entry)?])
            }
            None => Err(Failure::NotFound(format!(
                "the repository has no '{path}' at {}",
                self.source.revision
            ))),
        }
    }

    async fn below(&self, commit: &str, folder: &str) -> Result<Vec<RemoteFile>, Failure> {
        let path = encoded(folder);
        let url = format!(
            "api/models/{}/tree/{commit}/{path}?recursive=true",
            self.source.repository
        );
        let mut next = Some(self.address(url.trim_end_matches('/'))?);
        let mut files = Vec::new();
        let mut pages = 0;
        while let Some(url) = next {
            pages += 1;
            if pages > MOST_PAGES {
                return Err(Failure::Permanent(
                    "the hub's list of files does not end".to_owned(),
                ));
            }
            let response = self.web.send(self.web.get(url)).await?;
            next = self.next_page(&response)?;
            let entries: Vec<Entry> = json(response).await?;
            for entry in entries.iter().filter(|entry| entry.kind == "file") {
                let name = entry.path.strip_prefix(folder).unwrap_or(&entry.path);
                let name = name.trim_start_matches('/');
                if uri::is_hidden(name) {
                    continue;
                }
                uri::check_path(name).map_err(Failure::Permanent)?;
                files.push(self.remote(commit, name.to_owned(), entry)?);
            }
        }
        Ok(files)
    }

    /// Where a long list goes on.
    fn next_page(&self, response: &Response) -> Result<Option<Url>, Failure> {
        let links = response
            .headers()
            .get(LINK)
            .and_then(|links| links.to_str().ok());
        let next = links.and_then(|links| {
            links
                .split(',')
                .find(|link| link.contains("rel=\"next\""))
                .and_then(|link| link.trim().strip_prefix('<')?.split_once('>'))
        });
        let next = next.map(|(address, _)| self.endpoint.join(address));
        let next = next
            .transpose()
            .map_err(|error| Failure::Permanent(error.to_string()))?;
        match next {
            // The token is sent along.
            Some(url) if url.origin() != self.endpoint.origin() => Err(Failure::Permanent(
                "the hub's list of files goes on at another server".to_owned(),
            )),
            next => Ok(next),
        }
    }

    fn remote(&self, commit: &str, name: String, entry: &Entry) -> Result<RemoteFile, Failure> {
        let url = format!(
            "{}/resolve/{commit}/{}",
            self.source.repository,
            encoded(&entry.path)
        );
        Ok(RemoteFile {
            name,
            place: Place::Address(self.address(&url)?),
            size: entry.size,
            validator: None,
            digest: entry.lfs.as_ref().and_then(|file| file.oid.parse().ok()),
        })
    }

    fn address(&self, path: &str) -> Result<Url, Failure> {
        let endpoint = self.endpoint.as_str().trim_end_matches('/');
        Url::parse(&format!("{endpoint}/{path}"))
            .map_err(|error| Failure::Permanent(error.to_string()))
    }

    pub(super) async fn open(&self, url: &Url, resume: Option<&Resume>) -> Result<Opened, Failure> {
        self.web.open(url.clone(), resume).await
    }
}

fn encoded(path: &str) -> String {
    let segments: Vec<String> = path
        .split('/')
        .map(|segment| utf8_percent_encode(segment, SEGMENT).to_string())
        .collect();
    segments.join("/")
}

async fn json<T: for<'a> Deserialize<'a>>(response: Response) -> Result<T, Failure> {
    let body = response.bytes().await.map_err(Failure::of_client)?;
    serde_json::from_slice(&body).map_err(|error| {
        Failure::Permanent(format!("the hub's answer is not what is expected: {error}"))
    })
}
