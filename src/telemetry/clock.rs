//! The wall clock of the log.
//!
//! Invariant: of two lines that one thread writes, the later one has no earlier time, as long as the system's clock is
//! not set back.

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// The wall clock as text, to the microsecond. Its date changes once a day and its second once a second, so that only
/// the fraction is printed anew for each line.
#[derive(Default)]
pub(super) struct Clock {
    second: u64,
    /// `2026-11-25T09:46:22.`, of that second.
    prefix: String,
}

impl Clock {
    pub(super) fn write(&mut self, line: &mut Vec<u8>) {
        let now = since_epoch();
        if now.as_secs() != self.second || self.prefix.is_empty() {
            let mut text = String::with_capacity(32);
            // Writing into a string cannot fail, and the clock's own formatting does not.
            let _ = SystemTime.format_time(&mut Writer::new(&mut text));
            if since_epoch().as_secs() != now.as_secs() {
                // The second ended meanwhile, and whose second the text has is not known; it is right for this line.
                line.extend_from_slice(text.as_bytes());
                return;
            }
            text.truncate(text.find('.').map_or(text.len(), |point| point + 1));
            self.prefix = text;
            self.second = now.as_secs();
        }
        line.extend_from_slice(self.prefix.as_bytes());
        let mut digits = *b"000000Z";
        let mut rest = now.subsec_micros();
        for digit in digits.iter_mut().take(6).rev() {
            *digit = b"0123456789"
                .get((rest % 10) as usize)
                .copied()
                .unwrap_or(b'0');
            rest /= 10;
        }
        line.extend_from_slice(&digits);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the log is what wall clocks are for"
)]
fn since_epoch() -> std::time::Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_never_go_back_within_a_second() {
        let mut clock = Clock::default();
        let mut last = Vec::new();
        for _ in 0..1000 {
            let mut text = Vec::new();
            clock.write(&mut text);
            assert!(text >= last, "{text:?} after {last:?}");
            last = text;
        }
    }
}
