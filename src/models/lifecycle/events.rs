//! What the thread of the life of models is told.
//!
//! Invariant: whoever tells it something never waits.

use std::sync::mpsc::Sender;

use super::attempts::Loaded;

/// What the thread is told.
pub(super) enum Event {
    /// Everything is to be loaded again.
    Reload,
    /// A load has ended.
    Loaded(Box<Loaded>),
    /// Nothing is to be begun any more.
    Stop,
}

/// Tells `events` what was loaded, or gives it back if nobody listens any more.
pub(super) fn deliver(events: &Sender<Event>, loaded: Box<Loaded>) -> Result<(), Box<Loaded>> {
    match events
        .send(Event::Loaded(loaded))
        .map_err(|unsent| unsent.0)
    {
        Err(Event::Loaded(loaded)) => Err(loaded),
        Ok(()) | Err(Event::Reload | Event::Stop) => Ok(()),
    }
}
