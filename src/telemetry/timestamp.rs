//! The wall clock, as the log has it.
//!
//! Invariant: it is read nowhere else; durations are measured by clocks that are never set.

use humantime::Rfc3339Timestamp;

/// Now, in UTC and to the microsecond: `2026-11-25T09:46:22.123456Z`.
#[expect(
    clippy::disallowed_methods,
    reason = "the log is what wall clocks are for"
)]
pub(super) fn now() -> Rfc3339Timestamp {
    humantime::format_rfc3339_micros(std::time::SystemTime::now())
}
