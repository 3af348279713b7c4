//! Content types: what a body is, and what the client wants back.
//!
//! Invariant: a type that is not known is refused with a call that works, never guessed.

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

use super::error::ApiError;
use super::headers;
use crate::units::whole_number;
use crate::wire::BodyFormat;
use crate::wire::json::quote;

/// The type of the body. None is JSON, because the field's own clients send none.
pub(super) fn body_format(headers: &HeaderMap) -> Result<BodyFormat, ApiError> {
    let Some(value) = headers::only(headers, &CONTENT_TYPE)? else {
        return Ok(BodyFormat::Json);
    };
    // What nearly every client sends.
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

/// Whether the client prefers a raw tensor to JSON. Several `Accept` lines are one list.
pub(super) fn wants_raw(headers: &HeaderMap) -> Result<bool, ApiError> {
    // What nearly every client sends.
    let mut values = headers.get_all(ACCEPT).iter();
    match (values.next().map(HeaderValue::as_bytes), values.next()) {
        (None | Some(b"*/*" | b"application/json"), None) => return Ok(false),
        (Some(b"application/octet-stream"), None) => return Ok(true),
        _ => {}
    }
    let quality = |wanted: &str| -> Result<Option<u16>, ApiError> {
        let ranges = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| HeaderValue::to_str(value).ok())
            .flat_map(|text| text.split(','));
        let mut best = None;
        for range in ranges {
            let mut parts = range.split(';').map(str::trim);
            let essence = parts.next().unwrap_or_default();
            if essence.eq_ignore_ascii_case(wanted) {
                let weight = parts.find_map(|part| {
                    let (name, value) = part.split_once('=')?;
                    name.eq_ignore_ascii_case("q").then_some(value)
                });
                best = best.max(Some(weight.map_or(Ok(WHOLE), thousandths)?));
            }
        }
        Ok(best)
    };
    // Only an explicit wish counts: `*/*` is what every client sends that never heard of raw tensors.
    let raw = quality("application/octet-stream")?.unwrap_or(0);
    Ok(raw > 0 && raw >= quality("application/json")?.unwrap_or(0))
}

/// The weight of what is wished for above all, in thousandths.
const WHOLE: u16 = 1000;

/// A weight such as `0.8`, in thousandths.
fn thousandths(text: &str) -> Result<u16, ApiError> {
    let wrong = || {
        ApiError::Invalid(format!(
            "the weight q={} in Accept is not a number from 0 to 1 with three decimals at most",
            quote(text)
        ))
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 {
        return Err(wrong());
    }
    let digits = format!("{whole}{fraction:0<3}");
    let thousandths = whole_number(&digits).ok_or_else(wrong)?;
    if thousandths > WHOLE {
        return Err(wrong());
    }
    Ok(thousandths)
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
        let wants = |value: &str| wants_raw(&headers(ACCEPT, value)).unwrap();
        assert_eq!(wants_raw(&HeaderMap::new()), Ok(false));
        assert!(!wants("*/*"));
        assert!(wants("application/octet-stream"));
        assert!(wants("application/json;q=0.5, application/octet-stream"));
        assert!(!wants("application/json, application/octet-stream;q=0.9"));
        assert!(!wants("application/octet-stream;q=0"));
        assert!(wants("application/octet-stream;Q=0.001, */*; q=.2"));
        let mut lines = headers(ACCEPT, "application/json;q=0.5");
        lines.append(ACCEPT, HeaderValue::from_static("application/octet-stream"));
        assert_eq!(wants_raw(&lines), Ok(true));
    }

    #[test]
    fn a_weight_is_a_number_from_0_to_1_and_nothing_else() {
        for (text, thousandths) in [("0", 0), ("1", 1000), ("1.000", 1000), ("0.8", 800)] {
            assert_eq!(super::thousandths(text), Ok(thousandths), "{text}");
        }
        for wrong in [
            "", "+1", "-0", "1.001", "2", "0.1234", "1e0", "inf", "NaN", "0.x", "0.+1", "0,5",
        ] {
            let accept = format!("application/octet-stream;q={wrong}");
            let told = wants_raw(&headers(ACCEPT, &accept));
            assert_eq!(told.is_err(), !wrong.contains(','), "{wrong}: {told:?}");
            assert!(super::thousandths(wrong).is_err(), "{wrong}");
        }
    }
}
