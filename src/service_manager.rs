//! systemd, where it has started this process: it is told when the server is ready, loads its models again, stops, and
//! that it still lives.
//!
//! Invariant: where `NOTIFY_SOCKET` is not set, nobody is told anything; whom one cannot reach costs a line of the log.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// Whether the log tells that it cannot be reached.
static TOLD: AtomicBool = AtomicBool::new(false);

/// How long a start may take from when it is told that there is progress: as long as the unit allows a whole one.
const START: Duration = Duration::from_secs(600);

/// The server is not ready yet, and is getting on.
pub fn starting() {
    let microseconds = u32::try_from(START.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// The models are served.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The server drains.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The server lives: a restart is not the cure.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be said, if it must be: twice as often as it is looked for.
#[must_use]
pub fn alive_interval() -> Option<Duration> {
    let within = sd_notify::watchdog_enabled().filter(|within| !within.is_zero());
    within.map(|within| within / 2)
}

/// Models are being loaded again while this is there, however that ends.
#[must_use = "it ends when this is dropped"]
pub struct Reloading(());

impl Reloading {
    /// It begins.
    pub fn begin() -> Self {
        let now = NotifyState::monotonic_usec_now();
        let states = std::iter::once(NotifyState::Reloading).chain(now);
        tell(&states.collect::<Vec<_>>());
        Self(())
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        ready();
    }
}

/// Sends `states`. The library does not know sockets without a file, whose names begin with `@`.
fn send(states: &[NotifyState<'_>]) -> std::io::Result<()> {
    let name = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let Some(name) = name.as_bytes().strip_prefix(b"@") else {
        return sd_notify::notify(states);
    };
    let address = SocketAddr::from_abstract_name(name)?;
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
    let text = lines.join("\n") + "\n";
    socket.send(text.as_bytes()).map(drop)
}

fn tell(states: &[NotifyState<'_>]) {
    let is_there = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
    if !is_there {
        return;
    }
    if let Err(error) = send(states) {
        let error = error.to_string();
        if TOLD.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            error,
            "the service manager at NOTIFY_SOCKET cannot be told how the server is"
        );
    }
}
