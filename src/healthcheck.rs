//! `model-serving healthcheck`: one request, one exit code. Images need no curl.
//!
//! Invariant: it ends within a few seconds, whatever the server does.

use std::error::Error;
use std::fmt;
use std::iter::successors;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::uri::Scheme;
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::address::Host;

/// The longest that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What is asked: a URL of HTTP without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    url: String,
}

impl Target {
    /// `/health` of a server that listens on `host` and `port`.
    #[must_use]
    pub fn health(host: &Host, port: u16) -> Self {
        let authority = host.for_clients().with_port(port);
        Self {
            url: format!("http://{authority}/health"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("'{text}' is not a URL such as http://127.0.0.1:8000/health");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        if uri.scheme() == Some(&Scheme::HTTPS) {
            return Err(format!(
                "'{text}' asks for TLS, which the server does not have; ask it itself, such as http://127.0.0.1:8000/health"
            ));
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let (Some(host), true) = (host, uri.scheme() == Some(&Scheme::HTTP)) else {
            return Err(wrong());
        };
        // A port that is none looks as if there were no port.
        let ends_at_host = uri
            .authority()
            .is_some_and(|authority| authority.as_str().ends_with(host));
        if uri.port_u16().is_none() && !ends_at_host {
            return Err(wrong());
        }
        Ok(Self {
            url: text.to_owned(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.url)
    }
}

/// Asks `target` and checks that the answer is 200.
///
/// # Errors
/// One line that says what is wrong.
pub async fn check(target: &Target) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, status(target)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(format!("{target} answered {status}")),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!(
            "{target} did not answer within {} seconds",
            TIMEOUT.as_secs()
        )),
    }
}

async fn status(target: &Target) -> Result<StatusCode, String> {
    let failed = |error: &dyn fmt::Display| {
        format!("{target} cannot be reached: {error}; does the server run?")
    };
    let request = Request::get(target.url.as_str())
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request).await.map_err(|error| {
        let is_parse = |cause: &&(dyn Error + 'static)| {
            let cause = cause.downcast_ref::<hyper::Error>();
            cause.is_some_and(hyper::Error::is_parse)
        };
        let causes = || successors(Some(&error as &(dyn Error + 'static)), |it| (*it).source());
        match causes().find(is_parse) {
            Some(_) => format!("{target} gives no answer of HTTP; is this the server's port?"),
            // What is around it says only which layer saw it.
            None => failed(&causes().last().map(ToString::to_string).unwrap_or_default()),
        }
    })?;
    Ok(answer.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_asked_at_this_machines_own() {
        for (host, url) in [
            ("0.0.0.0", "http://127.0.0.1:8000/health"),
            ("::", "http://[::1]:8000/health"),
            ("[::1]", "http://[::1]:8000/health"),
            ("10.0.0.7", "http://10.0.0.7:8000/health"),
            ("localhost", "http://localhost:8000/health"),
        ] {
            let target = Target::health(&host.parse().unwrap(), 8000);
            assert_eq!(target.to_string(), url);
            assert_eq!(url.parse(), Ok(target));
        }
    }

    #[test]
    fn only_http_without_tls_is_asked() {
        for (text, part) in [
            ("https://127.0.0.1/", "asks for TLS"),
            ("nonsense", "is not a URL"),
            ("127.0.0.1:8000", "is not a URL"),
            ("ftp://host/", "is not a URL"),
            ("http://", "is not a URL"),
            ("http://host:99999/", "is not a URL"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
