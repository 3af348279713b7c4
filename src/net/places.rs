//! The places of connections: so many regular ones, a few in reserve, and how one becomes free when all are taken.
//!
//! Who gives way says `giving_way`; here it is asked to, and whoever needs its place waits until it has gone or declined.
//! Invariant: there are never more connections than places, and each place is given back when its connection is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::config::{ListenerConfig, Port};
use super::connection::Shared;
use super::giving_way::{self, Kind};
use super::phase::Phase;
use crate::telemetry::metrics::Metrics;

/// The longest that a request on a reserve place waits for a regular one. Whoever gives way does so in microseconds.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// How long to wait for a place where nobody can give way at the moment.
const PAUSE: Duration = Duration::from_millis(2);

/// How often the log says that places are rare.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// In a request's extensions: there is no place for it, and it is to be refused.
#[derive(Debug, Clone, Copy)]
pub struct NoPlace;

/// The places of one listener.
pub(super) struct Places {
    port: Port,
    max_connections: usize,
    regular: Group,
    reserve: Group,
    next_number: AtomicU64,
    metrics: Arc<Metrics>,
    crowding: Mutex<Crowding>,
}

/// The places of one kind, and who has them.
struct Group {
    free: Arc<Semaphore>,
    taken: Mutex<HashMap<u64, Arc<Shared>>>,
}

/// What happened since the log last told.
#[derive(Default)]
struct Crowding {
    gave_way: u64,
    refused: u64,
    told: Option<Instant>,
}

impl Group {
    fn new(places: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            taken: Mutex::default(),
        }
    }

    fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }
}

impl Places {
    pub(super) fn new(config: ListenerConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            port: config.port,
            max_connections: config.max_connections,
            regular: Group::new(config.max_connections),
            reserve: Group::new(config.reserve),
            next_number: AtomicU64::new(0),
            metrics,
            crowding: Mutex::default(),
        })
    }

    /// A place for a new connection: a regular one if one is free, else one in reserve.
    pub(super) async fn enter(self: &Arc<Self>) -> Place {
        loop {
            if let Some(permit) = self.regular.try_take() {
                return self.place(Kind::Regular, Some(permit));
            }
            if let Some(permit) = self.reserve.try_take() {
                return self.place(Kind::Reserve, Some(permit));
            }
            let asked = self.ask(Kind::Reserve);
            tokio::select! {
                biased;
                Ok(permit) = Arc::clone(&self.regular.free).acquire_owned() => {
                    return self.place(Kind::Regular, Some(permit));
                }
                Ok(permit) = Arc::clone(&self.reserve.free).acquire_owned() => {
                    return self.place(Kind::Reserve, Some(permit));
                }
                () = answered(asked) => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// A place beyond all others, for who has connected before the listener closes.
    pub(super) fn last(self: &Arc<Self>) -> Place {
        self.place(Kind::Regular, None)
    }

    /// Asks somebody to give way, because the operating system has no room for more, and waits a moment for it.
    pub(super) async fn relieve(&self, pause: Duration) {
        let asked = self.ask(Kind::Regular).or_else(|| self.ask(Kind::Reserve));
        let _ = tokio::time::timeout(pause, answered(asked)).await;
    }

    fn place(self: &Arc<Self>, kind: Kind, permit: Option<OwnedSemaphorePermit>) -> Place {
        Place {
            places: Arc::clone(self),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            on_reserve: AtomicBool::new(kind == Kind::Reserve),
            permit: Mutex::new(permit),
        }
    }

    fn group(&self, kind: Kind) -> &Group {
        match kind {
            Kind::Regular => &self.regular,
            Kind::Reserve => &self.reserve,
        }
    }

    /// Asks the one who is first to give way. What is returned ends when it has gone, or has declined.
    fn ask(&self, kind: Kind) -> Option<oneshot::Receiver<()>> {
        let taken = self.group(kind).taken.lock();
        let candidates = taken
            .values()
            .filter(|shared| !shared.departure.is_asked_for())
            .map(|shared| (shared, shared.state(), shared.now()));
        giving_way::first_to_give_way(candidates, kind).map(|shared| shared.departure.ask())
    }

    /// A regular place for a request that has come on a reserve one; none if nobody gives way for it.
    async fn regular_place(&self) -> Option<OwnedSemaphorePermit> {
        let deadline = tokio::time::Instant::now() + LONGEST_WAIT;
        loop {
            if let Some(permit) = self.regular.try_take() {
                return Some(permit);
            }
            let asked = self.ask(Kind::Regular);
            asked.as_ref()?;
            tokio::select! {
                biased;
                permit = Arc::clone(&self.regular.free).acquire_owned() => return permit.ok(),
                () = answered(asked) => {}
                () = tokio::time::sleep_until(deadline) => return None,
            }
        }
    }

    fn note(&self, event: impl FnOnce(&mut Crowding)) {
        let mut crowding = self.crowding.lock();
        event(&mut crowding);
        if crowding
            .told
            .is_none_or(|told| told.elapsed() >= LOG_INTERVAL)
        {
            let (gave_way, refused) = (crowding.gave_way, crowding.refused);
            let max_connections = self.max_connections;
            match self.port {
                Port::Main => tracing::warn!(
                    max_connections,
                    gave_way,
                    refused,
                    "all connections are taken: those that wait longest for their clients give way, and requests without a place are refused; raise --max-connections (MAX_CONNECTIONS) or lower --keep-alive-timeout (KEEP_ALIVE_TIMEOUT) if clients are many"
                ),
                Port::Admin => tracing::warn!(
                    max_connections,
                    gave_way,
                    refused,
                    "all connections of the admin port are taken: those that wait longest for their clients give way; let only probes and Prometheus reach it"
                ),
            }
            *crowding = Crowding {
                told: Some(Instant::now()),
                ..Crowding::default()
            };
        }
    }
}

/// Ends when who was asked has gone or declined; never if nobody was.
async fn answered(asked: Option<oneshot::Receiver<()>>) {
    match asked {
        Some(asked) => drop(asked.await),
        None => std::future::pending().await,
    }
}

/// The place of one connection.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    on_reserve: AtomicBool,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Place {
    /// Says who has it, so that it can be asked to give way.
    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) {
        let group = self.places.group(self.kind());
        group.taken.lock().insert(self.number, Arc::clone(shared));
    }

    pub(super) fn kind(&self) -> Kind {
        if self.is_on_reserve() {
            Kind::Reserve
        } else {
            Kind::Regular
        }
    }

    pub(super) fn is_on_reserve(&self) -> bool {
        self.on_reserve.load(Ordering::Relaxed)
    }

    /// Takes a regular place instead of this one in reserve, if one is free.
    pub(super) fn try_move(&self) -> bool {
        let permit = self.places.regular.try_take();
        permit.map(|permit| self.move_to(permit)).is_some()
    }

    /// The same, and lets somebody give way for it.
    pub(super) async fn move_or_refuse(&self) -> bool {
        if let Some(permit) = self.places.regular_place().await {
            self.move_to(permit);
            return true;
        }
        self.places.metrics.connections_refused.inc();
        self.places.note(|crowding| crowding.refused += 1);
        false
    }

    fn move_to(&self, permit: OwnedSemaphorePermit) {
        let shared = self.places.reserve.taken.lock().remove(&self.number);
        self.on_reserve.store(false, Ordering::Relaxed);
        let reserve = self.permit.lock().replace(permit);
        if let Some(shared) = shared {
            self.belongs_to(&shared);
        }
        drop(reserve);
    }

    /// Counts that its connection, in this phase, ends for others.
    pub(super) fn note_gave_way(&self, phase: Phase) {
        // Where the last answer has gone, nothing is lost.
        if phase != Phase::Closing {
            self.places.metrics.connections_gave_way.inc();
            self.places.note(|crowding| crowding.gave_way += 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // First the place, then the word that it is free.
        drop(self.permit.lock().take());
        let shared = self
            .places
            .group(self.kind())
            .taken
            .lock()
            .remove(&self.number);
        if let Some(shared) = shared {
            shared.departure.answer();
        }
    }
}
