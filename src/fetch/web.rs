//! Files of web servers, over HTTP: ranges, redirects, and what their answers mean.
//!
//! Invariant: what began encrypted stays so. A redirect from `https` to `http` is an error.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, IF_RANGE,
    LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode, Url};

use super::failure::{Failure, chain};
use super::part::{Resume, Version};
use super::remote::Opened;
use crate::version::VERSION;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of web servers.
#[derive(Clone)]
pub(super) struct Web {
    client: Client,
    /// Sent to the first server only, not to those that it redirects to.
    token: Option<String>,
}

impl Web {
    /// `idle` is how long nothing may come. `token` is sent as a bearer's.
    ///
    /// # Errors
    /// When the authorities to trust cannot be read, or the token is none.
    pub(super) fn new(idle: Duration, token: Option<String>) -> Result<Self, String> {
        let is_token = |token: &str| token.bytes().all(|byte| byte.is_ascii_graphic());
        if !token.as_deref().is_none_or(is_token) {
            return Err("HF_TOKEN holds a character that no token has".to_owned());
        }
        let client = builder(idle).redirect(Policy::custom(follow)).build();
        let client = client.map_err(|error| unreadable(&error))?;
        Ok(Self { client, token })
    }

    /// Sends a request, and takes only a successful answer for an answer.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await.map_err(Failure::of_client)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        Err(Failure::of_status(status, retry_after(response.headers())))
    }

    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.client.get(url)
    }

    pub(super) fn post(&self, url: Url) -> RequestBuilder {
        self.client.post(url)
    }

    /// Opens the file at `url`, from where the last attempt ended if the server can and the file is the same.
    pub(super) async fn open(&self, url: Url, resume: Option<&Resume>) -> Result<Opened, Failure> {
        // Encoded, its length would be another one, and its digest too.
        let mut request = self.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(resume) = resume {
            request = request
                .header(RANGE, format!("bytes={}-", resume.from))
                .header(IF_RANGE, &resume.validator);
        }
        let response = self.send(request).await?;
        let headers = response.headers();
        if let Some(coding) =
            text(headers, CONTENT_ENCODING).filter(|it| !it.eq_ignore_ascii_case("identity"))
        {
            return Err(Failure::Permanent(format!(
                "the server sends the file encoded with {coding}, without being asked to"
            )));
        }
        let (from, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(headers, CONTENT_RANGE).and_then(content_range);
                match (range, resume) {
                    (Some((from, total)), Some(resume)) if from == resume.from => (from, total),
                    _ => return Err(Failure::Changed),
                }
            }
            StatusCode::OK => (0, response.content_length()),
            status => {
                return Err(Failure::Permanent(format!(
                    "the server answered {status}, which is no file"
                )));
            }
        };
        let version = Version {
            validator: validator(headers),
            total,
        };
        let bytes = response.bytes_stream().map_err(Failure::of_client);
        Ok(Opened {
            from,
            version,
            bytes: Box::pin(bytes),
        })
    }
}

/// What all clients have: no name of where they come from, which may hold a signature.
fn builder(idle: Duration) -> ClientBuilder {
    Client::builder()
        .user_agent(format!("model-serving/{VERSION}"))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(idle)
        .referer(false)
}

/// A client that follows no redirect, and speaks plain HTTP only if that is `allowed`. `connect` is how long a connection
/// may take to come about, if that is another time than usually.
pub(super) fn follow_nobody(
    idle: Duration,
    connect: Option<Duration>,
    allowed: bool,
) -> reqwest::Result<Client> {
    builder(idle)
        .connect_timeout(connect.unwrap_or(CONNECT_TIMEOUT))
        .redirect(Policy::none())
        .https_only(!allowed)
        .build()
}

/// Why a client cannot be made: nearly always because of what `SSL_CERT_FILE` names.
fn unreadable(error: &reqwest::Error) -> String {
    let reason = chain(error);
    format!("{reason}; SSL_CERT_FILE names a file of authorities to trust")
}

fn follow(attempt: Attempt) -> reqwest::redirect::Action {
    let downgrades = attempt.previous().iter().any(|url| url.scheme() == "https")
        && attempt.url().scheme() != "https";
    if downgrades {
        return attempt.error("it redirects from https to http");
    }
    if attempt.previous().len() > 10 {
        return attempt.error("it redirects again and again");
    }
    attempt.follow()
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// How long `Retry-After` asks to wait: so many seconds, or until a date, which is compared with the server's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let asked = text(headers, RETRY_AFTER)?.trim();
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(asked).ok()?;
    let now = httpdate::parse_http_date(text(headers, DATE)?).ok()?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// What names this version of a file well enough to put parts of it together: a strong entity tag, else its date.
fn validator(headers: &HeaderMap) -> Option<String> {
    let tag = text(headers, ETAG).filter(|tag| !tag.starts_with("W/"));
    tag.or_else(|| text(headers, LAST_MODIFIED))
        .map(str::to_owned)
}

/// `bytes 3-5/6`: where it begins, and the length of the whole if that is known.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, _to) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((from.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_where_it_begins() {
        assert_eq!(content_range("bytes 3-5/6"), Some((3, Some(6))));
        assert_eq!(content_range("bytes 0-5/*"), Some((0, None)));
        for text in [
            "bytes */6",
            "bytes 3/6",
            "3-5/6",
            "bytes 3-5",
            "bytes 3-5/x",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_server_asks_for_a_pause_in_seconds_or_by_a_date() {
        let now = "Fri, 27 Nov 2026 22:00:00 GMT";
        for (asked, date, pause) in [
            (" 7 ", None, Some(7)),
            ("0", None, Some(0)),
            ("Fri, 27 Nov 2026 22:01:30 GMT", Some(now), Some(90)),
            ("Fri, 27 Nov 2026 21:00:00 GMT", Some(now), Some(0)),
            ("Fri, 27 Nov 2026 22:01:30 GMT", None, None),
            ("-1", Some(now), None),
            ("soon", Some(now), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, asked.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            let pause = pause.map(Duration::from_secs);
            assert_eq!(retry_after(&headers), pause, "{asked}");
        }
    }

    #[test]
    fn parts_are_put_together_by_a_strong_tag_or_a_date() {
        let headers = |pairs: &[(HeaderName, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.clone(), value.parse().unwrap()))
                .collect()
        };
        let date = "Fri, 27 Nov 2026 22:00:00 GMT";
        assert_eq!(
            validator(&headers(&[(ETAG, "\"a\""), (LAST_MODIFIED, date)])).as_deref(),
            Some("\"a\"")
        );
        assert_eq!(
            validator(&headers(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, date)])).as_deref(),
            Some(date)
        );
        assert_eq!(validator(&headers(&[(ETAG, "W/\"a\"")])), None);
    }
}
