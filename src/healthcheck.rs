//! `model-serving healthcheck`: one request, one exit code. Images need no curl.
//!
//! Invariant: it ends within a few seconds, whatever the server does.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::uri::Scheme;
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The longest that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Asks `url` (`http://host:port/path`) and checks that the answer is 200.
///
/// # Errors
/// One line that says what is wrong.
pub async fn check(url: &str) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, status(url)).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(format!("{url} answered {status}")),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!(
            "{url} did not answer within {} seconds",
            TIMEOUT.as_secs()
        )),
    }
}

async fn status(url: &str) -> Result<StatusCode, String> {
    let wrong = || format!("'{url}' is not a URL such as http://127.0.0.1:8000/health");
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (Some(host), true) = (uri.host(), uri.scheme() == Some(&Scheme::HTTP)) else {
        return Err(wrong());
    };
    let port = uri.port_u16().unwrap_or(80);
    let failed = |error: &dyn std::fmt::Display| format!("{url} cannot be reached: {error}");
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((address, port))
        .await
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, format!("{host}:{port}"))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| failed(&error))?;
    let answer = async {
        sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))
    };
    tokio::pin!(answer);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer.map(|answer| answer.status()),
        _ = &mut connection => answer.await.map(|answer| answer.status()),
    }
}
