//! Our own accept loop: a bounded number of connections, each with deadlines, and an end that loses nothing.
//!
//! Invariant: [`serve`] returns only when every connection it accepted is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::connection::{self, ConnectionConfig};
use super::drain::Drain;

/// How long accepting pauses after a failure such as a full table of file descriptors: long enough not to spin, short
/// enough that a freed descriptor is used at once.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

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
    loop {
        let accept = async {
            // The slot comes first, so that a full server leaves new connections where they cost nothing.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = drain.stopping().cancelled() => break,
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
    // Clients in the backlog have connected as far as they can tell, and may have sent their request already.
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

/// Failures that concern a peer which has gone again, and not the server.
fn is_about_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
