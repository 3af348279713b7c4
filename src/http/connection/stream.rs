//! The bytes of one connection: a stream that tells what comes and goes, and ends without losing what it has sent.
//!
//! Invariant: an answer that is on its way is not dropped because the peer sends no more, and what is read after the last
//! one is bounded.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::Shared;
use crate::http::phase::{Event, Phase};

/// How many bytes are read and thrown away after the last answer.
const LINGERING_BYTES: usize = 4 << 20;

/// The most bytes of an answer that are copied to be sent as one piece.
const SENT_TOGETHER: usize = 1024;

/// A stream that tells what comes and goes.
pub(super) struct WatchedStream<S> {
    stream: S,
    shared: Arc<Shared>,
    /// Whether hyper was not told that the peer sends no more.
    end_withheld: bool,
    discarded: usize,
    write_closed: bool,
}

impl<S> WatchedStream<S> {
    pub(super) fn new(stream: S, shared: Arc<Shared>) -> Self {
        Self {
            stream,
            shared,
            end_withheld: false,
            discarded: 0,
            write_closed: false,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // hyper takes the end of what a peer sends for its end, and drops an answer that is on its way. But it may have
        // said only that this was its last request. One that is gone resets the connection when more is written.
        let sending = self.shared.state().phase == Phase::Sending;
        if sending && self.end_withheld {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.shared.note(Event::BytesArrived);
        } else if sending && buffer.remaining() > 0 {
            self.end_withheld = true;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.shared.note_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        // The head of an answer and a small body are sent as one piece: the kernel takes longer to look at two than a
        // copy does.
        let mut together = [0; SENT_TOGETHER];
        let stream = Pin::new(&mut self.stream);
        let result = match join(slices, &mut together) {
            Some(bytes) => stream.poll_write(context, bytes),
            None => stream.poll_write_vectored(context, slices),
        };
        self.shared.note_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when its own buffers are empty, and only then.
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.shared.note(Event::AllWritten);
        if std::mem::take(&mut self.end_withheld) {
            // hyper was told to wait for what will not come.
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the answer, and reads what the peer has sent meanwhile, or is still sending, so that the answer is not lost:
    /// the kernel resets a connection that is closed with unread bytes.
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.write_closed = true;
            self.shared.note(Event::WriteClosed);
        }
        let mut scratch = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            let result = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
            let more_may_come =
                self.discarded > 0 || self.shared.unread_body.load(Ordering::Relaxed);
            if result.is_pending() && !more_may_come {
                return Poll::Ready(Ok(()));
            }
            ready!(result)?;
            let read = buffer.filled().len();
            self.discarded += read;
            if read == 0 || self.discarded >= LINGERING_BYTES {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// What stands in `slices`, put together in `buffer` if it is several pieces and fits.
fn join<'b>(slices: &[IoSlice<'_>], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let length: usize = slices.iter().map(|slice| slice.len()).sum();
    if slices.len() < 2 || length > buffer.len() {
        return None;
    }
    let mut end = 0;
    for slice in slices {
        let start = end;
        end += slice.len();
        buffer.get_mut(start..end)?.copy_from_slice(slice);
    }
    buffer.get(..end)
}
