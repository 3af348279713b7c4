//! What the pieces of one connection know of each other: what it is doing, and since when.
//!
//! Invariant: the state changes by an event only, as `phase` says.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::net::departure::Departure;
use crate::net::phase::{Event, Micros, Phase, State, micros};

/// The size of a body that does not say it.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// What the stream, the service and the bodies of one connection know of each other. All live on one task, so plain
/// atomic loads and stores suffice. Others only look: whoever needs a place, for one that can give way.
pub(in crate::net) struct Shared {
    pub(super) start: Instant,
    /// When the connection is so old that the next answer is to be its last.
    old_at: Option<Instant>,
    /// The fields of a [`State`].
    phase: AtomicU8,
    open: AtomicU32,
    since: AtomicU64,
    /// One more than the time; zero if the peer takes bytes.
    blocked: AtomicU64,
    arrears: AtomicU64,
    /// Bytes that are left of a body that nobody reads any more; [`UNKNOWN`] of one that does not say how many.
    pub(super) unread_body: AtomicU64,
    /// Whether the body of the request in progress is chunked, and wanted.
    pub(super) chunked: AtomicBool,
    /// Whether the body of the request in progress, or of the one that has just arrived, is too large by its own account.
    pub(super) declared_too_large: AtomicBool,
    /// Whether the body of the request in progress was read to its end.
    pub(super) body_read: AtomicBool,
    /// Whether the peer sent no more before it was known that the request in progress is complete.
    pub(super) end_doubted: AtomicBool,
    /// Whether bytes were there, when last looked for, that nobody has read.
    pub(super) unread_bytes: AtomicBool,
    /// How the connection is asked to give way.
    pub(in crate::net) departure: Departure,
    /// The id of the request whose answer was begun last.
    answering: Mutex<Option<HeaderValue>>,
    /// The id with which a head was refused that no handler has seen.
    refused: Mutex<Option<HeaderValue>>,
}

impl Shared {
    /// `max_age` is how long the connection may be used.
    pub(super) fn new(max_age: Option<Duration>) -> Self {
        let start = Instant::now();
        let shared = Self {
            start,
            old_at: max_age.map(|age| start + age),
            phase: AtomicU8::new(0),
            open: AtomicU32::new(0),
            since: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            arrears: AtomicU64::new(0),
            unread_body: AtomicU64::new(0),
            chunked: AtomicBool::new(false),
            declared_too_large: AtomicBool::new(false),
            body_read: AtomicBool::new(false),
            end_doubted: AtomicBool::new(false),
            unread_bytes: AtomicBool::new(false),
            departure: Departure::default(),
            answering: Mutex::new(None),
            refused: Mutex::new(None),
        };
        shared.store(State::new());
        shared
    }

    pub(in crate::net) fn now(&self) -> Micros {
        micros(self.start.elapsed())
    }

    /// Whether the next answer is to be the last.
    pub(super) fn is_old(&self) -> bool {
        self.old_at.is_some_and(|at| Instant::now() >= at)
    }

    pub(super) fn instant(&self, at: Micros) -> Instant {
        self.start + Duration::from_micros(at)
    }

    pub(in crate::net) fn state(&self) -> State {
        State {
            phase: Phase::from_index(self.phase.load(Ordering::Relaxed)),
            open: self.open.load(Ordering::Relaxed),
            since: self.since.load(Ordering::Relaxed),
            blocked: self.blocked.load(Ordering::Relaxed).checked_sub(1),
            arrears: self.arrears.load(Ordering::Relaxed),
        }
    }

    fn store(&self, state: State) {
        self.phase.store(state.phase.index(), Ordering::Relaxed);
        self.open.store(state.open, Ordering::Relaxed);
        self.since.store(state.since, Ordering::Relaxed);
        let blocked = state.blocked.map_or(0, |since| since.saturating_add(1));
        self.blocked.store(blocked, Ordering::Relaxed);
        self.arrears.store(state.arrears, Ordering::Relaxed);
    }

    pub(super) fn note(&self, event: Event) {
        let before = self.state();
        let after = before.on(event, || self.now());
        if after != before {
            self.store(after);
        }
    }

    /// Takes note of the request whose answer begins, by its id.
    pub(super) fn note_answer(&self, id: Option<&HeaderValue>) {
        *self.answering.lock() = id.cloned();
    }

    /// Takes note of the id with which a head was refused that no handler has seen.
    pub(super) fn note_refusal(&self, id: HeaderValue) {
        *self.refused.lock() = Some(id);
    }

    /// The id with which a head was refused, if one was.
    pub(super) fn refused(&self) -> Option<HeaderValue> {
        self.refused.lock().take()
    }

    pub(super) fn note_write(&self, result: &Poll<std::io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(bytes)) => self.note(Event::BytesTaken(*bytes)),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.note(Event::WriteBlocked),
        }
    }
}

/// The last of the pieces is gone, and so is the connection: this is how far it came.
impl Drop for Shared {
    fn drop(&mut self) {
        if self.state().phase != Phase::Sending {
            return;
        }
        let id = self.answering.get_mut().take();
        let request_id = id.as_ref().and_then(|id| id.to_str().ok());
        tracing::info!(
            target: "access",
            request_id, delivered = false,
            "the connection ended before the client had taken the whole answer"
        );
    }
}
