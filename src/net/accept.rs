//! Our own accept loop: a bounded number of connections, each with deadlines and a place, and an end that loses nothing.
//!
//! Invariant: [`serve`] returns only when every connection it accepted is gone, and no number of them keeps it from
//! accepting more.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::config::ListenerConfig;
use super::connection;
use super::drain::Drain;
use super::places::{Place, Places};
use super::site::{HttpService, Site};
use crate::telemetry::metrics::Metrics;

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

/// The bytes of an answer that the kernel takes at once on a reserve place, if the system allows it: far more than metrics.
const RESERVE_SEND_BUFFER: usize = 1 << 20;

/// Connections that may wait to be accepted, as far as the system allows.
const BACKLOG: i32 = 4096;

/// Where a TCP header has its flags.
const TCP_FLAGS: u32 = 13;

/// The flag of a packet that begins a handshake.
const SYN: u32 = 0x02;

/// How often a lasting failure is logged.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Serves `site` on `listener` until `drain` stops it and the last connection is gone.
pub async fn serve<S: HttpService>(
    listener: TcpListener,
    site: Site<S>,
    config: ListenerConfig,
    drain: Drain,
    metrics: Arc<Metrics>,
) {
    bound_unsent_bytes(&listener);
    lengthen_backlog(&listener);
    let places = Places::new(config, metrics);
    let connections = TaskTracker::new();
    let spawn = |stream: TcpStream, place: Place| {
        if place.is_on_reserve() {
            leave_answer_to_the_kernel(&stream);
        }
        let serving = connection::serve(
            stream,
            site.clone(),
            config.connection,
            drain.clone(),
            place,
        );
        connections.spawn(serving);
    };
    let mut last_log: Option<Instant> = None;
    let mut stopping = pin!(drain.stopping());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopping => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                #[cfg(feature = "testkit")]
                crate::testkit::panic_at("accept");
                let place = tokio::select! {
                    biased;
                    () = &mut stopping => None,
                    place = places.enter() => Some(place),
                };
                let Some(place) = place else {
                    spawn(stream, places.last());
                    break;
                };
                spawn(stream, place);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                if last_log.is_none_or(|logged| logged.elapsed() >= ERROR_LOG_INTERVAL) {
                    tracing::warn!(%error, "no connection can be accepted");
                    last_log = Some(Instant::now());
                }
                // Most likely the table of file descriptors is full, and a connection that ends makes room in it.
                places.relieve(ERROR_PAUSE).await;
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
        spawn(stream, places.last());
    }
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                spawn(stream, places.last());
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// Lets more handshakes wait for the accept loop than by default (1024). One that finds no room is tried again by its client
/// a second later, which is longer than a probe may take; the loop is through with so many in less.
fn lengthen_backlog(listener: &TcpListener) {
    if let Err(error) = SockRef::from(listener).listen(BACKLOG) {
        tracing::debug!(%error, "the backlog stays as short as it is");
    }
}

/// Bounds what the kernel takes for the connections to `listener`, which inherit it.
fn bound_unsent_bytes(listener: &TcpListener) {
    // Where there is no such bound, as in some sandboxes, progress is seen later.
    if let Err(error) = SockRef::from(listener).set_tcp_notsent_lowat(MAX_UNSENT_BYTES) {
        tracing::debug!(%error, "what the kernel buffers of answers cannot be bounded");
    }
}

/// Lets the kernel take as much of an answer as it can: the answer of a probe or scrape leaves the server at once, and its
/// connection ends, however slowly the peer reads.
fn leave_answer_to_the_kernel(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    // Where this cannot be set, a peer that does not read gives way to the next one.
    let _ = socket.set_tcp_notsent_lowat(u32::MAX);
    let _ = socket.set_send_buffer_size(RESERVE_SEND_BUFFER);
}

/// Makes the kernel drop the first packet of new connections to `listener`, as if it had got lost.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's own struct has sixteen bits for these codes, which are of one byte"
)]
fn ignore_new_handshakes(listener: &TcpListener) {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_IF_ANY_OF: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // A classic socket filter: load the byte of the TCP flags, drop the packet if SYN is among them, else keep it. The
    // connections that are accepted afterwards inherit it, and never see such a packet.
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, TCP_FLAGS),
        SockFilter::new(JUMP_IF_ANY_OF, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
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
