//! Waiting for events, and a client's own slowness.
//!
//! Invariant: nothing is waited for longer than [`PATIENCE`], and what does not come is named.

use std::time::{Duration, Instant};

/// The longest that a test waits for anything; far beyond what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again, until `holds`; panics with `what` was waited for if that is not in time.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    eventually_is(what, || holds().then_some(()));
}

/// The same for something that is there at last.
pub fn eventually_is<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        pause(Duration::from_millis(10));
    }
}

/// A client's own slowness, where a test is about it. What a test waits for is asked for by [`eventually`].
#[expect(clippy::disallowed_methods, reason = "clients may be slow")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
