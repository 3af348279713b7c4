//! Why an attempt to get something failed, and whether another one may succeed.
//!
//! Invariant: no text in here holds a query, a user or a password of an address.

use std::error::Error;
use std::time::Duration;

use reqwest::StatusCode;

/// Why an attempt failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may succeed later; the server may ask for a pause.
    Transient {
        reason: String,
        pause: Option<Duration>,
    },
    /// The file is another one than at the last attempt.
    Changed,
    /// There is nothing of that name.
    NotFound(String),
    /// It will not succeed.
    Permanent(String),
}

/// Why an attempt failed that met another version than the one before.
pub(super) const CHANGED: &str = "it changed while it was fetched";

/// The most of a server's own words that is repeated.
const LONGEST: usize = 300;

impl Failure {
    pub(super) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient {
            reason: reason.into(),
            pause: None,
        }
    }

    /// What an answer's `status` means. `pause` is what its `Retry-After` asks for.
    pub(super) fn of_status(status: StatusCode, pause: Option<Duration>) -> Self {
        let reason = format!("the server answered {status}");
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Self::NotFound(reason),
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => Self::Changed,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                Self::Transient { reason, pause }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Permanent(format!(
                "{reason}: check the credentials and what they may read"
            )),
            _ if status.is_server_error() => Self::Transient { reason, pause },
            _ => Self::Permanent(reason),
        }
    }

    /// What an error of the HTTP client means.
    pub(super) fn of_client(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let reason = chain(&error);
        // The library's own words are an essay's address.
        if reason.contains("close_notify") {
            return Self::transient("the connection broke off");
        }
        // The client hides the type of this cause. Trying again would not change who the other side is.
        let is_of_trust = reason.contains("certificate");
        if error.is_redirect() || error.is_builder() || is_of_trust {
            let advice = if is_of_trust {
                "; SSL_CERT_FILE names a file with other authorities to trust"
            } else {
                ""
            };
            return Self::Permanent(format!("{reason}{advice}"));
        }
        Self::transient(reason)
    }

    /// What an error of a bucket means.
    pub(super) fn of_store(error: &object_store::Error) -> Self {
        use object_store::Error as Store;
        let reason = chain(error);
        match error {
            Store::NotFound { .. } => {
                Self::NotFound("the store has no object of that name".to_owned())
            }
            Store::Precondition { .. } => Self::Changed,
            Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => Self::Permanent(
                format!("check the credentials and what they may read: {reason}"),
            ),
            // The library keeps the status to itself. Where its words change, we only try again for nothing.
            Store::Generic { .. } => {
                if reason.contains("scheme is not allowed") {
                    return Self::Permanent(format!(
                        "{reason}; the store's address begins with http, which AWS_ALLOW_HTTP, GOOGLE_ALLOW_HTTP or AZURE_ALLOW_HTTP=true allows"
                    ));
                }
                // A redirect leads to another host, to which no credentials are sent.
                let is_refusal = reason.contains("status code: 3")
                    || reason.contains("without LOCATION")
                    || reason.contains("status code: 4")
                        && !reason.contains("status code: 408")
                        && !reason.contains("status code: 429");
                if is_refusal || reason.contains("invalid peer certificate") {
                    Self::Permanent(reason)
                } else {
                    Self::transient(reason)
                }
            }
            _ => Self::Permanent(reason),
        }
    }
}

/// An error and its causes, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    shortened(&text)
}

/// One line of at most [`LONGEST`] characters, in which no address has a query.
fn shortened(text: &str) -> String {
    let public = |word| match str::split_once(word, '?') {
        Some((address, _secret)) if address.contains("://") => address,
        _ => word,
    };
    let words: Vec<&str> = text.split_whitespace().map(public).collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_told() {
        let pause = Some(Duration::from_secs(3));
        for code in [408, 425, 429, 500, 502, 503, 504] {
            let failure = Failure::of_status(StatusCode::from_u16(code).unwrap(), pause);
            assert!(
                matches!(failure, Failure::Transient { pause: it, .. } if it == pause),
                "{code}"
            );
        }
        for code in [400, 401, 403, 405, 451] {
            let failure = Failure::of_status(StatusCode::from_u16(code).unwrap(), pause);
            assert!(matches!(failure, Failure::Permanent(_)), "{code}");
        }
        for code in [412, 416] {
            let failure = Failure::of_status(StatusCode::from_u16(code).unwrap(), pause);
            assert_eq!(failure, Failure::Changed);
        }
    }

    #[test]
    fn a_servers_own_words_become_one_short_line() {
        assert_eq!(shortened("a\n  b\tc"), "a b c");
        assert_eq!(
            shortened("why? (https://h/a?sig=secret) b"),
            "why? (https://h/a b"
        );
        assert_eq!(shortened(&"é".repeat(400)).chars().count(), LONGEST + 1);
    }
}
