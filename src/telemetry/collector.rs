//! The connection to an OTLP collector.
//!
//! Invariant: it lives on the thread that exports spans, with a runtime of its own. A collector that is slow, broken or
//! gone costs that thread time, and the log one line.

use std::error::Error;
use std::fmt;
use std::iter::successors;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderValue;
use http::header::CONNECTION;
use http::uri::Scheme;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Runtime;
use tokio::time::error::Elapsed;

use super::supervision;

/// The longest that one export may take, if nothing else is said.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Where a collector takes spans by OTLP over HTTP. Read from text, it is the collector's base, `http://host:4318`, to
/// which `/v1/traces` is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// The URL that spans are posted to, as it is.
    ///
    /// # Errors
    /// One sentence, when it is not such a URL.
    pub fn of_traces(text: &str) -> Result<Self, String> {
        plain_http(text).map(|url| Self(url.to_owned()))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let base = plain_http(text)?;
        Ok(Self(format!("{}/v1/traces", base.trim_end_matches('/'))))
    }
}

/// A URL of HTTP without TLS and without a query.
fn plain_http(text: &str) -> Result<&str, String> {
    let text = text.trim();
    if text.contains('@') {
        return Err(
            "a URL with '@' may hold a password, and is neither used nor shown; write one without, such as http://localhost:4318 (what a collector asks for goes into OTEL_EXPORTER_OTLP_HEADERS)"
                .to_owned(),
        );
    }
    // What stands behind a question mark may be a token, and is neither used nor shown.
    if let Some((before, _)) = text.split_once('?') {
        return Err(format!(
            "'{before}?...' has a query, which is not used; write a URL without, such as http://localhost:4318 (what a collector asks for goes into OTEL_EXPORTER_OTLP_HEADERS)"
        ));
    }
    let wrong = || format!("'{text}' is not a URL such as http://localhost:4318");
    let uri: http::Uri = text.parse().map_err(|_| wrong())?;
    if uri.scheme() == Some(&Scheme::HTTPS) {
        return Err(format!(
            "'{text}' asks for TLS, which is not supported here; send to a collector beside this server, such as http://localhost:4318"
        ));
    }
    // A port that is none looks as if there were no port.
    let has_host = uri.host().is_some_and(|host| {
        let mut authority = uri.authority().into_iter();
        let ends_at_host = authority.any(|authority| authority.as_str().ends_with(host));
        !host.is_empty() && (ends_at_host || uri.port_u16().is_some())
    });
    if uri.scheme() != Some(&Scheme::HTTP) || !has_host {
        return Err(wrong());
    }
    Ok(text)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Posts to the collector, and notes when it stops and starts to take spans.
#[derive(Debug)]
pub(super) struct Collector {
    runtime: Runtime,
    client: HyperClient,
    timeout: Duration,
    failing: AtomicBool,
}

impl Collector {
    pub(super) fn new(timeout: Duration) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            client: HyperClient::with_default_connector(timeout, None),
            timeout,
            failing: AtomicBool::new(false),
        })
    }

    fn post(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // Nothing looks after a connection between two exports.
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let answer = self.runtime.block_on(self.client.send_bytes(request));
        let complaint = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) if error.is::<Elapsed>() => {
                Some(format!("no answer within {} ms", self.timeout.as_millis()))
            }
            Err(error) => Some(root_cause(error.as_ref())),
        };
        let was_failing = self.failing.swap(complaint.is_some(), Ordering::Relaxed);
        match complaint {
            Some(reason) if !was_failing => tracing::warn!(
                reason,
                "the OTLP collector takes no spans; they are dropped until it does"
            ),
            None if was_failing => tracing::info!("the OTLP collector takes spans again"),
            _ => {}
        }
        answer
    }
}

impl HttpClient for Collector {
    // The exporter's thread has nothing else to do, so this may block; it also works where no runtime is entered.
    fn send_bytes<'client, 'future>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'client: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            // The thread that exports is the library's, and would end.
            let answer = supervision::guard(|| {
                #[cfg(feature = "testkit")]
                crate::testkit::panic_at("exporter");
                self.post(request)
            });
            answer.unwrap_or_else(|| Err("the export panicked".into()))
        })
    }
}

/// What went wrong in the end; what is around it says only which layer saw it.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let causes = successors(Some(error), |error| (*error).source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_plain_url_of_a_collector() {
        for (text, url) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://collector/otlp", "http://collector/otlp/v1/traces"),
        ] {
            assert_eq!(
                text.parse::<Endpoint>().map(|it| it.to_string()),
                Ok(url.to_owned())
            );
        }
        for wrong in [
            "",
            "localhost:4318",
            "/v1",
            "https://c:4318",
            "grpc://c",
            "http://c/?a=b",
            "http://c:99999",
            "http://c:4318/a b",
        ] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_url_that_may_hold_a_secret_is_refused_and_not_shown() {
        for url in [
            "http://user:secret@c:4318",
            "http://secret@c",
            "https://user:secret@c",
            "user:secret@c:4318",
            "http://c:4318?token=secret",
            "c:4318?token=secret",
            "https://c:4318/v1?secret",
            "http://user:sec/secret@c",
        ] {
            for error in [
                url.parse::<Endpoint>().unwrap_err(),
                Endpoint::of_traces(url).unwrap_err(),
            ] {
                assert!(error.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{error}");
                assert!(!error.contains("sec"), "{error}");
            }
        }
    }
}
