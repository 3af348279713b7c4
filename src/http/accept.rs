//! Our own accept loop: a bounded number of connections, each with deadlines, and an end that loses nothing.
//!
//! Invariant: [`serve`] returns only when every connection it accepted is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::connection::{self, ConnectionConfig};
use super::drain::Drain;

/// How long accepting pauses after a failure such as a full table of file descriptors: long enough not to spin, short
/// enough that a freed descriptor is used at once.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// How long handshakes that have begun may take to end before the listener closes: many round trips between hosts of
/// one data centre, and little of any grace period.
const HANDSHAKE_PAUSE: Duration = Duration::from_millis(20);

/// How much of an answer the kernel takes beyond what it can send. It would take megabytes, count them as taken by the
/// peer, and tell nothing until a third of them has gone: at 50 kB a second that is longer than a peer that does not read
/// is waited for. With this little the peer's progress is seen, and memory is not held for what waits.
const MAX_UNSENT_BYTES: u32 = 64 << 10;

/// How often a lasting failure is logged.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The bounds of a listener and its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Connections at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// The bounds of each connection.
    pub connection: ConnectionConfig,
}

/// Serves `router` on `listener` until `drain` stops it and the last connection is gone.
pub async fn serve(listener: TcpListener, router: Router, config: ListenerConfig, drain: Drain) {
    bound_unsent_bytes(&listener);
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let connections = TaskTracker::new();
    let spawn = |stream: TcpStream, slot: Option<OwnedSemaphorePermit>| {
        let (router, drain) = (router.clone(), drain.clone());
        connections.spawn(async move {
            connection::serve(stream, router, config.connection, drain).await;
            drop(slot);
        });
    };
    let mut last_log: Option<Instant> = None;
    let mut stopping = drain.stopping();
    loop {
        let accept = async {
            // The slot comes first, so that a full server leaves new connections where they cost nothing.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = &mut stopping => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => spawn(stream, slot),
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                if last_log.is_none_or(|logged| logged.elapsed() >= ERROR_LOG_INTERVAL) {
                    tracing::warn!(%error, "no connection can be accepted");
                    last_log = Some(Instant::now());
                }
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
    // Closing a listener resets the connections in its backlog, whose clients have connected as far as they can tell and
    // may have sent their request already. So no new handshake is begun, those under way may end, and only then is the
    // listener closed. Clients that try meanwhile try again, and are refused.
    ignore_new_handshakes(&listener);
    let handshakes_end = tokio::time::Instant::now() + HANDSHAKE_PAUSE;
    while let Ok(Ok((stream, _))) = tokio::time::timeout_at(handshakes_end, listener.accept()).await
    {
        spawn(stream, None);
    }
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                spawn(stream, None);
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// Bounds what the kernel takes for the connections to `listener`, which inherit it.
fn bound_unsent_bytes(listener: &TcpListener) {
    // Where there is no such bound, as in some sandboxes, progress is seen later.
    if let Err(error) = SockRef::from(listener).set_tcp_notsent_lowat(MAX_UNSENT_BYTES) {
        tracing::debug!(%error, "what the kernel buffers of answers cannot be bounded");
    }
}

/// Makes the kernel drop the first packet of new connections to `listener`, as if it had got lost.
fn ignore_new_handshakes(listener: &TcpListener) {
    // A classic socket filter: load the byte of the TCP flags, drop the packet if SYN is among them, else keep it. The
    // connections that are accepted afterwards inherit it, and never see such a packet.
    let filter = [
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x45, 0, 1, 0x02),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    // Where there are no such filters, as in some sandboxes, a narrow window remains.
    if let Err(error) = SockRef::from(listener).attach_filter(&filter) {
        tracing::debug!(%error, "new connections cannot be held off before the listener closes");
    }
}

/// Failures that concern a peer which has gone again, and not the server.
fn is_about_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
