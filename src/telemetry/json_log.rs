//! Events as lines of JSON: timestamp, level, message, the event's own fields, and the target.
//!
//! Hot path: each request writes a line. `make instructions` holds it (`JsonLog::on_event`); benches/NOTES.md has what the
//! layer of `tracing-subscriber` costs in its place.
//! Invariant: a line is one JSON object whatever the fields hold; no text of theirs can end the line or add a field.

use std::cell::RefCell;
use std::fmt;
use std::fmt::Write as _;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::log_writer::LogWriter;
use super::timestamp;

/// The layer that writes events as JSON, by appending to a buffer that its thread keeps.
pub(super) struct JsonLog {
    writer: LogWriter,
}

impl JsonLog {
    pub(super) fn new(writer: LogWriter) -> Self {
        Self { writer }
    }
}

thread_local! {
    static LINE: RefCell<Line> = RefCell::default();
}

impl<S: Subscriber> Layer<S> for JsonLog {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        LINE.with(|line| {
            // Formatting a field may itself log; such a line begins a buffer of its own.
            match line.try_borrow_mut() {
                Ok(mut line) => line.write(event, &self.writer),
                Err(_) => Line::default().write(event, &self.writer),
            }
        });
    }
}

/// A line being written, and what its thread keeps from one to the next.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    /// A value that has no form of its own in JSON.
    debug: String,
}

impl Line {
    fn write(&mut self, event: &Event<'_>, writer: &LogWriter) {
        self.text.clear();
        self.text.extend_from_slice(b"{\"timestamp\":\"");
        // Writing into memory cannot fail.
        let _ = write!(self.text, "{}", timestamp::now());
        self.text.extend_from_slice(b"\",\"level\":\"");
        let metadata = event.metadata();
        self.text
            .extend_from_slice(metadata.level().as_str().as_bytes());
        self.text.push(b'"');
        event.record(self);
        self.text.extend_from_slice(b",\"target\":");
        string(&mut self.text, metadata.target());
        self.text.extend_from_slice(b"}\n");
        writer.put(&self.text);
    }

    /// Names of fields stand in this program's own source, and need no escapes.
    fn key(&mut self, field: &Field) {
        self.text.extend_from_slice(b",\"");
        self.text.extend_from_slice(field.name().as_bytes());
        self.text.extend_from_slice(b"\":");
    }

    fn integer(&mut self, field: &Field, value: impl itoa::Integer) {
        self.key(field);
        let mut digits = itoa::Buffer::new();
        self.text.extend_from_slice(digits.format(value).as_bytes());
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.key(field);
        self.debug.clear();
        // Writing into memory fails only if the value's own formatting does; what it had written until then is kept.
        let _ = write!(self.debug, "{value:?}");
        string(&mut self.text, &self.debug);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.key(field);
        string(&mut self.text, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.key(field);
        let word: &[u8] = if value { b"true" } else { b"false" };
        self.text.extend_from_slice(word);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.integer(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.integer(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.integer(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.integer(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.key(field);
        if value.is_finite() {
            let mut digits = zmij::Buffer::new();
            self.text
                .extend_from_slice(digits.format_finite(value).as_bytes());
        } else {
            self.text.extend_from_slice(b"null");
        }
    }
}

/// Writes `text` as a JSON string.
fn string(line: &mut Vec<u8>, text: &str) {
    if text
        .bytes()
        .all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\')
    {
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        line.push(b'"');
    } else {
        // Writing a string into memory cannot fail.
        let _ = serde_json::to_writer(line, text);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::log_writer::testing::logged;
    use super::*;

    /// The lines that `log` logs.
    fn lines(log: impl FnOnce()) -> Vec<Value> {
        let text = logged(
            |writer| tracing_subscriber::registry().with(JsonLog::new(writer)),
            log,
        );
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_field_of_any_kind_is_a_value_of_json() {
        let nothing: Option<&str> = None;
        let error = std::io::Error::other("line\nbreak");
        let logged = lines(|| {
            tracing::info!(
                target: "access",
                text = "a \"quoted\" \u{7} ü",
                count = 3_u64, negative = -4, yes = true, ratio = 0.25, endless = f64::INFINITY,
                debug = ?["a"], nothing, error = %error, "a message"
            );
        });
        let [line] = logged.as_slice() else {
            panic!("{logged:?}")
        };
        let mut line = line.clone();
        let timestamp = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        let timestamp = timestamp.as_str().unwrap();
        assert!(timestamp.len() == 27 && timestamp.starts_with("20") && timestamp.ends_with('Z'));
        let expected = json!({
            "level": "INFO", "message": "a message", "text": "a \"quoted\" \u{7} ü", "count": 3, "negative": -4,
            "yes": true, "ratio": 0.25, "endless": null, "debug": "[\"a\"]", "error": "line\nbreak", "target": "access"
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn no_text_can_forge_a_line_or_a_field() {
        let logged = lines(|| {
            tracing::warn!(error = "x\"}\n{\"level\":\"ERROR\"", "one");
            tracing::warn!("two\r\n");
        });
        assert_eq!(logged.len(), 2);
        assert_eq!(logged[0]["level"], "WARN");
        assert_eq!(logged[1]["message"], "two\r\n");
    }

    #[test]
    fn a_value_that_logs_while_it_is_formatted_does_not_break_the_line() {
        struct Chatty;
        impl fmt::Debug for Chatty {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                tracing::info!("inside");
                formatter.write_str("chatty")
            }
        }
        let logged = lines(|| tracing::info!(value = ?Chatty, "outside"));
        let messages: Vec<&Value> = logged.iter().map(|line| &line["message"]).collect();
        assert!(messages.contains(&&json!("outside")), "{messages:?}");
    }
}
