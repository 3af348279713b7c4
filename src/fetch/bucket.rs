//! Buckets of Google, Amazon and Azure, and of stores that speak their protocols. Credentials come from the environment,
//! as the platform gives them.
//!
//! Invariant: one request is one attempt. When to try again is decided in one place, which is not here.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{
    ClientConfigKey, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    RetryConfig,
};

use super::failure::Failure;
use super::origin::{Opened, Place, RemoteFile};
use super::part::{Resume, Version};
use super::uri::{self, Provider, StoreSource};

/// A bucket, and the place in it.
#[derive(Clone)]
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    source: StoreSource,
}

impl Bucket {
    /// `idle` is how long nothing may come.
    pub(super) fn new(source: &StoreSource, idle: Duration) -> Result<Self, Failure> {
        // The library would limit a whole transfer to half a minute. A transfer may take its time while something comes.
        let options = [
            (ClientConfigKey::Timeout, "7days".to_owned()),
            (ClientConfigKey::ConnectTimeout, "10s".to_owned()),
            (
                ClientConfigKey::ReadTimeout,
                format!("{}ms", idle.as_millis()),
            ),
        ];
        let once = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let url = source.bucket.as_str();
        let store: Result<Arc<dyn ObjectStore>, _> = match source.provider {
            Provider::Google => {
                let mut builder = GoogleCloudStorageBuilder::new().with_url(url);
                for (key, value) in variables("GOOGLE_") {
                    builder = builder.with_config(key, value);
                }
                for (key, value) in options {
                    builder = builder.with_config(GoogleConfigKey::Client(key), value);
                }
                let store = builder.with_retry(once).build();
                store.map(|store| Arc::new(store) as _)
            }
            Provider::Amazon => {
                let mut builder = AmazonS3Builder::new().with_url(url);
                for (key, value) in variables("AWS_") {
                    builder = builder.with_config(key, value);
                }
                for (key, value) in options {
                    builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
                }
                let store = builder.with_retry(once).build();
                store.map(|store| Arc::new(store) as _)
            }
            Provider::Azure => {
                let mut builder = MicrosoftAzureBuilder::new().with_url(url);
                for (key, value) in variables("AZURE_") {
                    builder = builder.with_config(key, value);
                }
                // Where Azure's own platforms hand out a workload's tokens.
                if let Some(endpoint) = variable("IDENTITY_ENDPOINT") {
                    builder = builder.with_msi_endpoint(endpoint);
                }
                for (key, value) in options {
                    builder = builder.with_config(AzureConfigKey::Client(key), value);
                }
                let store = builder.with_retry(once).build();
                store.map(|store| Arc::new(store) as _)
            }
        };
        // Nothing was sent yet: what is wrong are settings.
        let store = store.map_err(|error| Failure::Permanent(error.to_string()))?;
        Ok(Self {
            store,
            source: source.clone(),
        })
    }

    /// The object of that name, or the objects below it.
    pub(super) async fn files(&self) -> Result<Vec<RemoteFile>, Failure> {
        let key = &self.source.key;
        let path = Path::parse(key).map_err(|error| Failure::Permanent(error.to_string()))?;
        if self.source.is_folder {
            return self.below(&path).await;
        }
        match self.store.head(&path).await {
            Ok(found) => {
                let name = key.rsplit('/').next().unwrap_or(key);
                Ok(vec![remote(name, found)])
            }
            Err(error) => match Failure::of_store(&error) {
                // Whoever leaves the slash out may mean a folder all the same.
                Failure::NotFound(reason) => match self.below(&path).await {
                    Ok(files) if files.is_empty() => Err(Failure::NotFound(reason)),
                    // Whoever may read a bucket's objects need not be allowed to list it.
                    Err(Failure::Permanent(_)) => Err(Failure::NotFound(reason)),
                    other => other,
                },
                failure => Err(failure),
            },
        }
    }

    async fn below(&self, prefix: &Path) -> Result<Vec<RemoteFile>, Failure> {
        let inside = (!prefix.as_ref().is_empty()).then_some(prefix);
        let found: Vec<ObjectMeta> = self
            .store
            .list(inside)
            .try_collect()
            .await
            .map_err(|error| Failure::of_store(&error))?;
        let mut files = Vec::with_capacity(found.len());
        for object in found {
            let location = object.location.as_ref();
            let name = location.strip_prefix(prefix.as_ref()).unwrap_or(location);
            let name = name.trim_start_matches('/').to_owned();
            if name.is_empty() || uri::is_hidden(&name) {
                continue;
            }
            uri::check_path(&name).map_err(Failure::Permanent)?;
            files.push(remote(&name, object));
        }
        Ok(without_markers(files))
    }

    pub(super) async fn open(
        &self,
        path: &Path,
        resume: Option<&Resume>,
    ) -> Result<Opened, Failure> {
        let mut options = GetOptions::default();
        if let Some(resume) = resume {
            options.range = Some(GetRange::Offset(resume.from));
            options.if_match = Some(resume.validator.clone());
        }
        let got = self.store.get_opts(path, options).await;
        let got = got.map_err(|error| match &error {
            // Beyond the end of the object: it is shorter than it was.
            object_store::Error::Generic { .. }
                if error.to_string().contains("status code: 416") =>
            {
                Failure::Changed
            }
            error => Failure::of_store(error),
        })?;
        let version = Version {
            validator: got.meta.e_tag.clone(),
            total: Some(got.meta.size),
        };
        let from = got.range.start;
        let bytes = got.into_stream().map_err(|error| Failure::of_store(&error));
        Ok(Opened {
            from,
            version,
            bytes: Box::pin(bytes),
        })
    }
}

/// A variable of the environment; one that is empty is as if it were not there.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    value.filter(|value| !value.is_empty())
}

/// The variables whose names begin with `prefix`, as far as the library knows what they mean. It would also take empty
/// ones, as values that it cannot read.
fn variables<K: FromStr>(prefix: &'static str) -> impl Iterator<Item = (K, String)> {
    let all = std::env::vars_os();
    let text =
        all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    text.filter(move |(name, value)| name.starts_with(prefix) && !value.is_empty())
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)))
}

fn remote(name: &str, object: ObjectMeta) -> RemoteFile {
    RemoteFile {
        name: name.to_owned(),
        place: Place::Object(object.location),
        size: Some(object.size),
        digest: None,
    }
}

/// Without the empty objects by which some tools mark folders.
fn without_markers(files: Vec<RemoteFile>) -> Vec<RemoteFile> {
    let is_marker = |file: &RemoteFile| {
        let below = format!("{}/", file.name);
        file.size == Some(0) && files.iter().any(|other| other.name.starts_with(&below))
    };
    let markers: Vec<bool> = files.iter().map(is_marker).collect();
    let marked = files.into_iter().zip(markers);
    marked
        .filter(|(_, is_marker)| !is_marker)
        .map(|(file, _)| file)
        .collect()
}
