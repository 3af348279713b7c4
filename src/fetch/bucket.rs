//! Buckets of Google, Amazon and Azure, and of stores that speak their protocols. Credentials come from the environment,
//! as the platform gives them.
//!
//! Invariant: one request is one attempt. When to try again is decided in one place, which is not here.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, RetryConfig,
};

use reqwest::Url;

use super::failure::{self, Failure};
use super::part::{Resume, Version};
use super::remote::{Opened, Place, RemoteFile};
use super::uri::{self, Provider, StoreSource};
use super::web::follow_nobody;

/// The most objects of a folder. A model has a handful; a store that lists more may never end.
const MOST_OBJECTS: usize = 10_000;

/// Where the platforms' own servers give out credentials: of Amazon, Google and Azure.
const PLATFORM_PATHS: [&str; 4] = [
    "/latest/api/token",
    "/latest/meta-data/",
    "/computeMetadata/",
    "/metadata/identity/",
];

/// A bucket, and the place in it.
#[derive(Clone)]
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    source: StoreSource,
}

impl Bucket {
    /// `idle` is how long nothing may come.
    ///
    /// # Errors
    /// When a variable is not well-formed, or one is missing.
    pub(super) fn new(source: &StoreSource, idle: Duration) -> Result<Self, String> {
        check_variables()?;
        let once = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let connector = Connector { idle };
        let url = source.bucket.as_str();
        let store: Result<Arc<dyn ObjectStore>, _> = match source.provider {
            Provider::Google => {
                let mut builder = GoogleCloudStorageBuilder::new().with_url(url);
                for (key, value) in variables("GOOGLE_") {
                    builder = builder.with_config(key, value);
                }
                let store = builder
                    .with_retry(once)
                    .with_http_connector(connector)
                    .build();
                store.map(|store| Arc::new(store) as _)
            }
            Provider::Amazon => {
                let mut builder = AmazonS3Builder::new().with_url(url);
                for (key, value) in variables("AWS_") {
                    builder = builder.with_config(key, value);
                }
                let store = builder
                    .with_retry(once)
                    .with_http_connector(connector)
                    .build();
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
                let store = builder
                    .with_retry(once)
                    .with_http_connector(connector)
                    .build();
                store.map(|store| Arc::new(store) as _)
            }
        };
        // Nothing was sent yet: what is wrong are settings.
        let store = store.map_err(|error| failure::chain(&error))?;
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
            Err(error) => match self.failure(&error) {
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

    /// What an error means. Where no credentials were set, the platform's own server was asked for some.
    fn failure(&self, error: &object_store::Error) -> Failure {
        let fix = match self.source.provider {
            Provider::Google => {
                "GOOGLE_APPLICATION_CREDENTIALS names a file of them, and GOOGLE_SKIP_SIGNATURE=true"
            }
            Provider::Amazon => {
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are some (profiles in ~/.aws are not read), and AWS_SKIP_SIGNATURE=true"
            }
            Provider::Azure => {
                "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY is one, and AZURE_SKIP_SIGNATURE=true"
            }
        };
        let explain = |reason: String| {
            if PLATFORM_PATHS.iter().any(|path| reason.contains(path)) {
                format!(
                    "no credentials are set, and the platform gives none; {fix} is for what is public ({reason})"
                )
            } else {
                reason
            }
        };
        match Failure::of_store(error) {
            Failure::Transient { reason, pause } => Failure::Transient {
                reason: explain(reason),
                pause,
            },
            Failure::Permanent(reason) => Failure::Permanent(explain(reason)),
            other => other,
        }
    }

    async fn below(&self, prefix: &Path) -> Result<Vec<RemoteFile>, Failure> {
        let inside = (!prefix.as_ref().is_empty()).then_some(prefix);
        let found: Vec<ObjectMeta> = self
            .store
            .list(inside)
            .take(MOST_OBJECTS + 1)
            .try_collect()
            .await
            .map_err(|error| self.failure(&error))?;
        if found.len() > MOST_OBJECTS {
            return Err(Failure::Permanent(format!(
                "more than {MOST_OBJECTS} objects lie below it; name the folder of one model"
            )));
        }
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

    /// `listed` is what named the version of the object when it was listed.
    pub(super) async fn open(
        &self,
        path: &Path,
        listed: Option<&String>,
        resume: Option<&Resume>,
    ) -> Result<Opened, Failure> {
        let mut options = GetOptions {
            if_match: listed.cloned(),
            ..GetOptions::default()
        };
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
            // The others would be of another moment than this one.
            object_store::Error::Precondition { .. } if resume.is_none() => {
                Failure::Permanent("it was replaced after it was listed; fetch again".to_owned())
            }
            error => self.failure(error),
        })?;
        let version = Version {
            validator: got.meta.e_tag.clone(),
            total: Some(got.meta.size),
        };
        let from = got.range.start;
        let bytes = got.into_stream();
        let bytes = bytes.map_err(|error| Failure::of_store(&error));
        Ok(Opened {
            from,
            version,
            bytes: Box::pin(bytes),
        })
    }
}

/// Makes the library's HTTP clients. Its own would follow redirects to other hosts, with credentials in their headers and in
/// the name of the page that they come from, and would limit a whole transfer to half a minute.
#[derive(Debug)]
struct Connector {
    idle: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let wrong = |source| object_store::Error::Generic {
            store: "HTTP",
            source,
        };
        let allowed = options.get_config_value(&ClientConfigKey::AllowHttp);
        let allowed = match allowed.as_deref().unwrap_or("false") {
            "true" | "1" => true,
            "false" | "0" => false,
            other => return Err(wrong(format!("'{other}' is neither true nor false").into())),
        };
        // The library waits shorter for the platform's own server of credentials, which is near or not there at all.
        let connect = options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let connect = connect.and_then(|time| humantime::parse_duration(&time).ok());
        let client = follow_nobody(self.idle, connect, allowed);
        Ok(HttpClient::new(
            client.map_err(|error| wrong(Box::new(error)))?,
        ))
    }
}

/// A variable of the environment; one that is empty is as if it were not there.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    value.filter(|value| !value.is_empty())
}

/// Where stores are, if not where they usually are. The library panics at an address that is none.
const ADDRESSES: [&str; 6] = [
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
    "GOOGLE_BASE_URL",
];

/// Refuses what the library would panic at: addresses that are none, and values that no header can hold.
fn check_variables() -> Result<(), String> {
    for name in ADDRESSES {
        let Some(value) = variable(name) else {
            continue;
        };
        let url = Url::parse(&value).ok();
        let is_address =
            |url: Url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some();
        if !url.is_some_and(is_address) {
            return Err(format!(
                "{name} is no address of http or https; write for example https://storage.example.com"
            ));
        }
    }
    for (name, value) in std::env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        // Only Google's key is a file, of several lines.
        let is_ours = name.starts_with("AWS_") || name.starts_with("AZURE_");
        if is_ours && value.chars().any(char::is_control) {
            return Err(format!(
                "{name} holds a control character, perhaps the end of a line; take that out"
            ));
        }
    }
    Ok(())
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
        // A weak one is no condition for a store.
        validator: object.e_tag.filter(|tag| !tag.starts_with("W/")),
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
