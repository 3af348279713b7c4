//! `model-serving healthcheck`: one request, one exit code. Images need no curl.
//!
//! Invariant: it ends within a few seconds, whatever the server does.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::uri::Scheme;
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::address::Host;

/// The longest that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What is asked: a URL of HTTP without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    url: String,
    /// As in the URL, with an IPv6 address in brackets.
    host: String,
    port: u16,
    path: String,
}

impl Target {
    /// `/health` of a server that listens on `host` and `port`.
    #[must_use]
    pub fn health(host: &Host, port: u16) -> Self {
        let authority = host.for_clients().with_port(port);
        let host = authority
            .rsplit_once(':')
            .map_or(authority.as_str(), |(host, _)| host);
        Self {
            url: format!("http://{authority}/health"),
            host: host.to_owned(),
            port,
            path: "/health".to_owned(),
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
        let port = match uri.port_u16() {
            Some(port) => port,
            None if ends_at_host => 80,
            None => return Err(wrong()),
        };
        Ok(Self {
            url: text.to_owned(),
            host: host.to_owned(),
            port,
            path: uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
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
    let failed = |error: &dyn std::fmt::Display| {
        format!("{target} cannot be reached: {error}; does the server run?")
    };
    let (host, port) = (target.host.as_str(), target.port);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((address, port))
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let request = Request::get(target.path.as_str())
        .header(HOST, format!("{host}:{port}"))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| failed(&error))?;
    let answer = async {
        sender.send_request(request).await.map_err(|error| {
            if error.is_parse() {
                format!("{target} gives no answer of HTTP; is this the server's port?")
            } else {
                failed(&error)
            }
        })
    };
    tokio::pin!(answer);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer.map(|answer| answer.status()),
        _ = &mut connection => answer.await.map(|answer| answer.status()),
    }
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
