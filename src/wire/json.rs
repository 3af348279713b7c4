//! A strict JSON reader over one buffer: tokens on demand, nothing allocated that is not asked for.
//!
//! Invariant: whatever the bytes, reading ends with a value or an error that names the place; it never recurses by
//! the input's own depth, and it accepts nothing that RFC 8259 does not.

use std::borrow::Cow;

use super::number::Number;
use crate::inference::InvalidRequest;

/// How much of a client's own text an error repeats.
const QUOTE_LIMIT: usize = 40;

/// Repeats `text` in an error message: shortened, and without control characters.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted: String = text
        .chars()
        .take(QUOTE_LIMIT)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(QUOTE_LIMIT).is_some() {
        quoted.push_str("...");
    }
    quoted
}

/// A position in a JSON text.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    depth: usize,
    max_depth: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`, which must be UTF-8.
    pub(super) fn new(bytes: &'a [u8], max_depth: usize) -> Result<Self, InvalidRequest> {
        if let Err(error) = std::str::from_utf8(bytes) {
            let message = format!(
                "the body is not valid UTF-8 at byte {}; send JSON as UTF-8",
                error.valid_up_to()
            );
            return Err(InvalidRequest(message));
        }
        Ok(Self {
            bytes,
            position: 0,
            depth: 0,
            max_depth,
        })
    }

    /// The text is no JSON at the current position.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> InvalidRequest {
        InvalidRequest(format!("invalid JSON at byte {}: {what}", self.position))
    }

    /// The text is JSON as far as it was read, but not what is wanted here.
    pub(super) fn mismatch(&self, what: impl std::fmt::Display) -> InvalidRequest {
        InvalidRequest(format!("{what} (at byte {} of the body)", self.position))
    }

    /// Something else stands here than what was `expected`: another value, or no JSON at all. `hint` says what to do about
    /// another value.
    pub(super) fn unexpected(
        &self,
        expected: impl std::fmt::Display,
        hint: &str,
    ) -> InvalidRequest {
        let found = self.found();
        if self.begins_value() {
            self.mismatch(format_args!("{expected}, got {found}{hint}"))
        } else {
            self.error(format_args!("{expected}, got {found}{}", self.hint()))
        }
    }

    /// Whether a JSON value begins at the current position.
    fn begins_value(&self) -> bool {
        match self.bytes.get(self.position) {
            Some(b'[' | b'{' | b'"') => true,
            Some(b'-' | b'0'..=b'9') => Number::read(self.rest()).is_ok(),
            _ => ["true", "false", "null"]
                .iter()
                .any(|word| self.rest().starts_with(word.as_bytes())),
        }
    }

    /// What to do about something that other languages write and JSON does not.
    fn hint(&self) -> &'static str {
        let begins = |words: &[&str]| {
            let mut words = words.iter();
            words.any(|word| self.rest().starts_with(word.as_bytes()))
        };
        if begins(&["NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"]) {
            "; JSON has no NaN or infinity, a raw tensor has"
        } else if begins(&["True", "False", "None"]) {
            "; JSON writes true, false and null"
        } else if begins(&["'"]) {
            "; JSON writes strings in double quotes"
        } else if begins(&["\u{feff}"]) {
            "; send the body without a byte order mark"
        } else {
            ""
        }
    }

    /// What stands at the current position, for people.
    pub(super) fn found(&self) -> String {
        match self.bytes.get(self.position) {
            None => "the end of the body".to_owned(),
            Some(b'[') => "an array".to_owned(),
            Some(b'{') => "an object".to_owned(),
            Some(b'"') => "a string".to_owned(),
            Some(b'-' | b'0'..=b'9') if self.begins_value() => "a number".to_owned(),
            Some(_) => {
                let rest = std::str::from_utf8(self.rest()).unwrap_or_default();
                let is_word = |character: &char| {
                    !character.is_whitespace() && !"[]{}:,\"".contains(*character)
                };
                let mut word: String = rest.chars().take_while(is_word).take(QUOTE_LIMIT).collect();
                if word.is_empty() {
                    word = rest.chars().take(1).collect();
                }
                format!("'{}'", quote(&word))
            }
        }
    }

    /// The bytes from the current position on.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    /// Moves on by `count` bytes, which the caller has looked at.
    pub(super) fn advance(&mut self, count: usize) {
        self.position += count;
    }

    /// The next byte that is not white space, without taking it.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.position) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.position += 1;
        }
        None
    }

    /// Takes `byte` if it is next, after white space.
    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.position += usize::from(found);
        found
    }

    /// Opens an array or object.
    pub(super) fn open(&mut self, byte: u8) -> Result<(), InvalidRequest> {
        if !self.take(byte) {
            let expected = if byte == b'[' {
                "an array"
            } else {
                "an object"
            };
            return Err(self.unexpected(format_args!("expected {expected}"), ""));
        }
        self.depth += 1;
        if self.depth > self.max_depth {
            return Err(self.mismatch(format_args!(
                "the body is nested deeper than {} levels",
                self.max_depth
            )));
        }
        Ok(())
    }

    /// Closes an array or object with `byte` if that is next.
    #[inline]
    pub(super) fn close(&mut self, byte: u8) -> bool {
        let closed = self.take(byte);
        self.depth -= usize::from(closed);
        closed
    }

    /// After an element: whether another follows. Ends the array or object otherwise.
    #[inline]
    pub(super) fn another(&mut self, closing: u8) -> Result<bool, InvalidRequest> {
        if self.take(b',') {
            return Ok(true);
        }
        if self.close(closing) {
            return Ok(false);
        }
        let (found, closing) = (self.found(), char::from(closing));
        Err(self.error(format_args!("expected ',' or '{closing}', got {found}")))
    }

    /// The key of an object's next member, and its colon.
    pub(super) fn key(&mut self) -> Result<Cow<'a, str>, InvalidRequest> {
        if self.peek() != Some(b'"') {
            let found = self.found();
            return Err(self.error(format_args!("expected a key in double quotes, got {found}")));
        }
        let key = self.string()?;
        if !self.take(b':') {
            let found = self.found();
            return Err(self.error(format_args!("expected ':' after a key, got {found}")));
        }
        Ok(key)
    }

    /// The end of the text: nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), InvalidRequest> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("expected the end of the body after the value")),
        }
    }

    /// The word `word` if it is next (`true`, `false`).
    pub(super) fn word(&mut self, word: &str) -> bool {
        self.peek();
        let found = self.rest().starts_with(word.as_bytes());
        self.position += if found { word.len() } else { 0 };
        found
    }

    /// A string. Without escapes it is borrowed from the text.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, InvalidRequest> {
        if !self.take(b'"') {
            return Err(self.unexpected("expected a string", ""));
        }
        let plain = self.plain_run()?;
        if self.take_exact(b'"') {
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = plain.to_owned();
        loop {
            text.push(self.escape()?);
            text.push_str(self.plain_run()?);
            if self.take_exact(b'"') {
                return Ok(Cow::Owned(text));
            }
        }
    }

    /// Takes `byte` if it is next, white space included.
    fn take_exact(&mut self, byte: u8) -> bool {
        let found = self.bytes.get(self.position) == Some(&byte);
        self.position += usize::from(found);
        found
    }

    /// The part of a string up to its end or the next escape.
    fn plain_run(&mut self) -> Result<&'a str, InvalidRequest> {
        let rest = self.rest();
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
        match end.and_then(|end| rest.split_at_checked(end)) {
            Some((plain, [b'"' | b'\\', ..])) => {
                self.position += plain.len();
                std::str::from_utf8(plain).map_err(|_| self.error("a string is not valid UTF-8"))
            }
            Some(_) => Err(self.error("a control character stands unescaped in a string")),
            None => Err(self.error("a string does not end")),
        }
    }

    /// One escape sequence, the backslash included.
    fn escape(&mut self) -> Result<char, InvalidRequest> {
        let [b'\\', kind, ..] = self.rest() else {
            return Err(self.error("a string does not end"));
        };
        let character = match kind {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(self.error("unknown escape in a string")),
        };
        self.position += 2;
        Ok(character)
    }

    /// `\uXXXX`, or a pair of them for a character beyond the basic plane.
    fn unicode_escape(&mut self) -> Result<char, InvalidRequest> {
        let first = self.code_unit()?;
        let code = match first {
            0xd800..0xdc00 => match self.code_unit() {
                Ok(second @ 0xdc00..0xe000) => {
                    0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                }
                _ => return Err(self.error("a lone surrogate in a string")),
            },
            other => other,
        };
        char::from_u32(code).ok_or_else(|| self.error("a lone surrogate in a string"))
    }

    fn code_unit(&mut self) -> Result<u32, InvalidRequest> {
        let digits = match self.rest() {
            [b'\\', b'u', a, b, c, d, ..] => [*a, *b, *c, *d],
            _ => return Err(self.error("expected \\u and four hexadecimal digits")),
        };
        let mut code = 0;
        for digit in digits {
            let value = char::from(digit).to_digit(16);
            code = code * 16
                + value.ok_or_else(|| self.error("expected \\u and four hexadecimal digits"))?;
        }
        self.position += 6;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Result<String, String> {
        let mut reader = Reader::new(text.as_bytes(), 32).unwrap();
        let string = reader.string().map_err(|error| error.0)?.into_owned();
        reader.end().map_err(|error| error.0)?;
        Ok(string)
    }

    #[test]
    fn strings_are_read_as_the_standard_says() {
        assert_eq!(string(r#""plain ä""#).unwrap(), "plain ä");
        assert_eq!(
            string(r#""\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00x""#).unwrap(),
            "\"\\/\u{8}\u{c}\n\r\tä😀x"
        );
        for wrong in [
            r#"""#,
            r#""a"#,
            "\"a\nb\"",
            r#""\x""#,
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ud83dx""#,
            r#""\u12"#,
            r#""\"#,
            "x",
        ] {
            assert!(string(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn strings_agree_with_serde_json() {
        for text in [
            r#""""#,
            r#""\u0000""#,
            r#""\uFFFF\u007f""#,
            r#""é\n""#,
            r#""\uD800\uDC00""#,
        ] {
            assert_eq!(
                string(text).unwrap(),
                serde_json::from_str::<String>(text).unwrap()
            );
        }
    }

    #[test]
    fn depth_is_bounded_and_bytes_must_be_utf8() {
        let mut reader = Reader::new(b"[[[", 2).unwrap();
        assert!(reader.open(b'[').is_ok());
        assert!(reader.open(b'[').is_ok());
        assert!(reader.open(b'[').is_err());
        assert!(Reader::new(b"\"\xff\"", 2).is_err());
    }

    #[test]
    fn quoted_text_is_short_and_harmless() {
        assert_eq!(quote("a\nb"), "a\\nb");
        assert_eq!(quote(&"x".repeat(100)).len(), QUOTE_LIMIT + 3);
    }
}
