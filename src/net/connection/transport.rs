//! What a connection must know of its socket beyond reading and writing.
//!
//! Invariant: nothing here waits for a peer, and nothing is taken from what it has sent.

use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Second descriptors at once, so that they never fill the table of file descriptors. A reset beyond is noticed when the
/// answer is written.
const MOST_WATCHED: usize = 64;

static WATCHED: Semaphore = Semaphore::const_new(MOST_WATCHED);

/// Ends when the peer resets its connection.
pub(super) type Reset = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A socket, or what stands for one in a test.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Whether bytes have arrived that were not read yet. Asks the kernel, which knows before the runtime does.
    fn has_unread(&self) -> bool;

    /// Waits until there is something to read: bytes, their end, or an error. Nobody else may wait for that meanwhile.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()>;

    /// What ends when the peer resets the connection, also after it has said that it sends no more. None if that cannot
    /// be told.
    fn reset(&self) -> Option<Reset>;
}

impl Transport for TcpStream {
    fn has_unread(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        SockRef::from(self)
            .peek(&mut byte)
            .is_ok_and(|bytes| bytes > 0)
    }

    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(context).map(drop)
    }

    fn reset(&self) -> Option<Reset> {
        // With bytes that nobody reads yet, or after the end of what the peer sends, the socket counts as readable for good,
        // and nothing wakes a reader any more. A second descriptor of the same socket can wait for its error alone.
        let permit = WATCHED.try_acquire().ok()?;
        let second = SockRef::from(self).try_clone().ok()?;
        let second = TcpStream::from_std(second.into()).ok()?;
        Some(Box::pin(async move {
            let _held = permit;
            let _ = second.ready(Interest::ERROR).await;
        }))
    }
}

#[cfg(test)]
impl Transport for tokio::io::DuplexStream {
    fn has_unread(&self) -> bool {
        false
    }

    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn reset(&self) -> Option<Reset> {
        None
    }
}
