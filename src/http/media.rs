//! Content types: what a body is, and what the client wants back.
//!
//! Invariant: a type that is not known is refused with a call that works, never guessed.

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

use super::error::ApiError;
use super::wire::BodyFormat;
use super::wire::json::quote;

/// The type of the body. None is JSON, because the field's own clients send none.
pub(super) fn body_format(headers: &HeaderMap) -> Result<BodyFormat, ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Ok(BodyFormat::Json);
    };
    // What nearly every client sends, before anything is taken apart.
    match value.as_bytes() {
        b"application/json" => return Ok(BodyFormat::Json),
        b"application/octet-stream" => return Ok(BodyFormat::Raw),
        _ => {}
    }
    let text = value.to_str().unwrap_or("(not text)");
    let mut parts = text.split(';');
    let essence = parts.next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/octet-stream") {
        return Ok(BodyFormat::Raw);
    }
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(unsupported(&format!("Content-Type '{}'", quote(essence))));
    }
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"');
        let utf8 = value.eq_ignore_ascii_case("utf-8")
            || value.eq_ignore_ascii_case("utf8")
            || value.eq_ignore_ascii_case("us-ascii");
        if name.trim().eq_ignore_ascii_case("charset") && !utf8 {
            return Err(unsupported(&format!("charset '{}'", quote(value))));
        }
    }
    Ok(BodyFormat::Json)
}

fn unsupported(what: &str) -> ApiError {
    ApiError::UnsupportedMediaType(format!(
        "{what} is not supported; send for example: curl -H 'Content-Type: application/json' -d '{{\"inputs\": ...}}', or one raw tensor as application/octet-stream"
    ))
}

/// Whether the client prefers a raw tensor to JSON.
pub(super) fn wants_raw(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(ACCEPT).iter();
    match (values.next().map(HeaderValue::as_bytes), values.next()) {
        (None | Some(b"*/*" | b"application/json"), None) => return false,
        (Some(b"application/octet-stream"), None) => return true,
        _ => {}
    }
    let quality = |wanted: &str| -> Option<f32> {
        let ranges = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| HeaderValue::to_str(value).ok())
            .flat_map(|text| text.split(','));
        let qualities = ranges.filter_map(|range| {
            let mut parts = range.split(';');
            let essence = parts.next()?.trim();
            let quality =
                parts.find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok());
            essence
                .eq_ignore_ascii_case(wanted)
                .then(|| quality.unwrap_or(1.0))
        });
        qualities.reduce(f32::max)
    };
    // Only an explicit wish counts: `*/*` is what every client sends that never heard of raw tensors.
    let raw = quality("application/octet-stream").unwrap_or(0.0);
    raw > 0.0 && raw >= quality("application/json").unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::try_from(value).unwrap())])
    }

    #[test]
    fn bodies_are_json_or_raw_or_refused() {
        let format = |value: &str| body_format(&headers(CONTENT_TYPE, value)).ok();
        assert_eq!(body_format(&HeaderMap::new()), Ok(BodyFormat::Json));
        assert_eq!(format("application/json"), Some(BodyFormat::Json));
        assert_eq!(
            format("Application/JSON; charset=\"UTF-8\""),
            Some(BodyFormat::Json)
        );
        assert_eq!(format("application/octet-stream"), Some(BodyFormat::Raw));
        for refused in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=utf-16",
        ] {
            assert_eq!(format(refused), None, "{refused}");
        }
    }

    #[test]
    fn raw_answers_are_sent_to_those_who_ask_for_them() {
        let wants = |value: &str| wants_raw(&headers(ACCEPT, value));
        assert!(!wants_raw(&HeaderMap::new()));
        assert!(!wants("*/*"));
        assert!(wants("application/octet-stream"));
        assert!(wants("application/json;q=0.5, application/octet-stream"));
        assert!(!wants("application/json, application/octet-stream;q=0.9"));
        assert!(!wants("application/octet-stream;q=0"));
    }
}
