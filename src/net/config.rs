//! The bounds of listeners and of their connections.
//!
//! Invariant: all places together fit into the table of file descriptors.

use std::time::Duration;

use super::phase::{Limits, micros};

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Predictions, and everything else.
    Main,
    /// Probes and metrics only.
    Admin,
}

/// The bounds of a listener and its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerConfig {
    /// What it is for.
    pub port: Port,
    /// Connections at once, beside those in reserve; further ones take the place of those that wait for their clients.
    pub max_connections: usize,
    /// Places beyond these, for probes, and for requests until they have one of the others.
    pub reserve: usize,
    /// The bounds of each connection.
    pub connection: ConnectionConfig,
}

/// File descriptors that the process has for everything but connections: libraries, models while they are read, a GPU's
/// devices, epoll, the log, and the second descriptors of half-closed connections.
const OWN_DESCRIPTORS: usize = 192;

impl ListenerConfig {
    /// The same with no more connections than fit beside everything else into a table of so many file descriptors, of
    /// which `others` are taken by other listeners.
    #[must_use]
    pub fn fitting(self, descriptors: usize, others: usize) -> Self {
        // A small table is divided: nothing would be served by keeping all of it for oneself.
        let own = OWN_DESCRIPTORS.min(descriptors / 2);
        let reserve = self.reserve.min(descriptors / 8).max(1);
        let left = descriptors.saturating_sub(own + others + reserve);
        Self {
            max_connections: self.max_connections.min(left).max(1),
            reserve,
            ..self
        }
    }

    /// The file descriptors that all of its connections take.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.max_connections.saturating_add(self.reserve)
    }
}

/// The bounds of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// From being accepted to the first byte.
    pub first_byte_timeout: Duration,
    /// From the first byte of a request's head to its end.
    pub header_timeout: Duration,
    /// While the peer takes no bytes of an answer, or so few that it falls behind by so much.
    pub write_timeout: Duration,
    /// Between an answer and the next request.
    pub keep_alive_timeout: Duration,
    /// After this time, give or take a tenth, the next answer ends the connection; never if not given.
    pub max_age: Option<Duration>,
    /// The largest head of a request that is read at all, in bytes.
    pub max_head_bytes: usize,
    /// The most headers that are read at all.
    pub max_headers: usize,
    /// The most bytes that a chunked body may declare.
    pub max_body_bytes: usize,
}

impl ConnectionConfig {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            first_byte: micros(self.first_byte_timeout),
            head: micros(self.header_timeout),
            write: micros(self.write_timeout),
            keep_alive: micros(self.keep_alive_timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_beside_everything_else_into_the_table_of_descriptors() {
        let connection = ConnectionConfig {
            first_byte_timeout: Duration::ZERO,
            header_timeout: Duration::ZERO,
            write_timeout: Duration::ZERO,
            keep_alive_timeout: Duration::ZERO,
            max_age: None,
            max_head_bytes: 0,
            max_headers: 0,
            max_body_bytes: 0,
        };
        let config = ListenerConfig {
            port: Port::Main,
            max_connections: 4096,
            reserve: 256,
            connection,
        };
        for (descriptors, others, expected) in [
            (1 << 20, 0, (4096, 256)),
            (4096, 0, (4096 - 192 - 256, 256)),
            (1024, 64, (1024 - 192 - 64 - 128, 128)),
            (96, 0, (48 - 12, 12)),
            (8, 0, (3, 1)),
            (0, 0, (1, 1)),
        ] {
            let fitting = config.fitting(descriptors, others);
            let places = (fitting.max_connections, fitting.reserve);
            assert_eq!(places, expected, "{descriptors}");
        }
    }
}
