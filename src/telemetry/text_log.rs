//! Events as lines of text for people: time, level, message, and the event's own fields.
//!
//! Invariant: an event is one line whatever its fields hold; no text of theirs can end the line, add a field, or steer
//! the terminal.

use std::fmt;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::log_writer::LogWriter;
use super::timestamp;

/// The target of events that are commands for people to copy. They are written at a terminal only.
pub const HINTS: &str = "hint";

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// The layer that writes events as text.
pub(super) struct TextLog {
    writer: LogWriter,
    colour: bool,
}

impl TextLog {
    pub(super) fn new(writer: LogWriter, colour: bool) -> Self {
        Self { writer, colour }
    }
}

impl<S: Subscriber> Layer<S> for TextLog {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut line = Line {
            text: Vec::with_capacity(256),
            fields: Vec::new(),
            colour: self.colour,
        };
        let metadata = event.metadata();
        event.record(&mut line);
        let mut text = Vec::with_capacity(line.text.len() + line.fields.len() + 64);
        if metadata.target() == HINTS {
            // What people may copy stands alone.
            text.extend_from_slice(b"  ");
        } else {
            line.dimmed(&mut text, |text| {
                // Writing into memory cannot fail, here and below.
                let _ = write!(text, "{}", timestamp::now());
            });
            let (colour, level) = match *metadata.level() {
                Level::ERROR => ("\x1b[31m", "ERROR"),
                Level::WARN => ("\x1b[33m", " WARN"),
                Level::INFO => ("\x1b[32m", " INFO"),
                Level::DEBUG => ("\x1b[34m", "DEBUG"),
                Level::TRACE => ("\x1b[35m", "TRACE"),
            };
            text.push(b' ');
            if self.colour {
                let _ = write!(text, "{colour}{level}{PLAIN} ");
            } else {
                let _ = write!(text, "{level} ");
            }
        }
        text.extend_from_slice(&line.text);
        text.extend_from_slice(&line.fields);
        text.push(b'\n');
        self.writer.put(&text);
    }
}

/// A line being written.
struct Line {
    /// The message.
    text: Vec<u8>,
    fields: Vec<u8>,
    colour: bool,
}

impl Line {
    fn dimmed(&self, text: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.colour {
            text.extend_from_slice(DIM.as_bytes());
        }
        write(text);
        if self.colour {
            text.extend_from_slice(PLAIN.as_bytes());
        }
    }

    fn key(&mut self, field: &Field) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.push(b' ');
        self.dimmed(&mut fields, |fields| {
            fields.extend_from_slice(field.name().as_bytes());
            fields.push(b'=');
        });
        self.fields = fields;
    }

    fn value(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            escaped(&mut self.text, value);
            return;
        }
        self.key(field);
        let needs_quotes = value.is_empty()
            || value
                .chars()
                .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '"' | '='));
        if needs_quotes {
            self.fields.push(b'"');
            escaped(&mut self.fields, &value.replace('"', "\\\""));
            self.fields.push(b'"');
        } else {
            self.fields.extend_from_slice(value.as_bytes());
        }
    }
}

/// Writes `value` with its control characters made visible.
fn escaped(text: &mut Vec<u8>, value: &str) {
    for character in value.chars() {
        if character.is_control() {
            let _ = write!(text, "{}", character.escape_default());
        } else {
            let _ = write!(text, "{character}");
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.value(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.value(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // Six digits behind the point are microseconds of a second, and more than people read.
        let text = format!("{value:.6}");
        let text = if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.')
        } else {
            &text
        };
        self.value(field, text);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::log_writer::testing::logged;
    use super::*;

    /// What `log` logs.
    fn text(colour: bool, log: impl FnOnce()) -> String {
        logged(
            |writer| tracing_subscriber::registry().with(TextLog::new(writer, colour)),
            log,
        )
    }

    #[test]
    fn a_line_is_time_level_message_and_fields() {
        let nothing: Option<&str> = None;
        let written = text(false, || {
            tracing::info!(
                word = "plain",
                words = "two words",
                empty = "",
                count = 3_u64,
                yes = true,
                ratio = 0.25,
                whole = 2.0,
                size = Some(4),
                nothing,
                quoted = "a=\"b\"",
                "a message"
            );
        });
        let (time, rest) = written.split_at(27);
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        assert_eq!(
            rest,
            "  INFO a message word=plain words=\"two words\" empty=\"\" count=3 yes=true ratio=0.25 whole=2 size=4 quoted=\"a=\\\"b\\\"\"\n"
        );
    }

    #[test]
    fn no_text_can_forge_a_line_or_steer_the_terminal() {
        let written = text(false, || {
            tracing::warn!(
                error = "x\n2026 ERROR forged\x1b[2J",
                "one\r\ntwo \x1b]0;title\x07"
            );
        });
        assert_eq!(written.lines().count(), 1, "{written}");
        assert!(!written.contains('\x1b'), "{written}");
        assert!(written.contains("one\\r\\ntwo"), "{written}");
    }

    #[test]
    fn colour_is_only_where_it_was_asked_for() {
        let log = || tracing::error!(field = 1, "message");
        assert!(!text(false, log).contains('\x1b'));
        assert!(text(true, log).contains("\x1b[31mERROR\x1b[0m message \x1b[2mfield=\x1b[0m1"));
    }

    #[test]
    fn what_people_may_copy_stands_alone() {
        let written = text(true, || tracing::info!(target: HINTS, "curl localhost"));
        assert_eq!(written, "  curl localhost\n");
    }
}
