//! Headers that a request may have once.
//!
//! Invariant: of two lines that contradict each other none is believed, because whoever stands in between may have believed
//! the other one.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::error::ApiError;

/// The only value of the header `name`, if there is one.
///
/// # Errors
/// When there is a second one, whatever it says.
pub(super) fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    match values.next() {
        None => Ok(value),
        Some(_) => Err(ApiError::Invalid(format!(
            "the header {} stands {} times; send it once",
            title(name),
            values.count() + 2
        ))),
    }
}

/// The name as people write it.
fn title(name: &HeaderName) -> String {
    let part = |part: &str| {
        let mut characters = part.chars();
        let first = characters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(characters).collect::<String>()
    };
    name.as_str()
        .split('-')
        .map(part)
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;

    use super::*;

    #[test]
    fn a_second_line_is_refused_also_if_it_says_the_same() {
        let value = HeaderValue::from_static("application/json");
        let mut headers = HeaderMap::new();
        assert_eq!(only(&headers, &CONTENT_TYPE), Ok(None));
        headers.append(CONTENT_TYPE, value.clone());
        assert_eq!(only(&headers, &CONTENT_TYPE), Ok(Some(&value)));
        headers.append(CONTENT_TYPE, value.clone());
        let told = only(&headers, &CONTENT_TYPE).unwrap_err().message();
        assert_eq!(told, "the header Content-Type stands 2 times; send it once");
    }
}
