//! The bytes of one connection: a stream that tells what comes and goes, and ends without losing what it has sent.
//!
//! Invariant: a request that was received whole is not dropped because the peer sends no more, only because it has reset
//! the connection, and what is read after the last answer is bounded.

use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::ChunkWatch;
use super::shared::{Shared, UNKNOWN};
use super::transport::{Reset, Transport};
use crate::net::config::ConnectionConfig;
use crate::net::phase::{Event, Phase};
use crate::net::site::Edge;

/// How many bytes are read and thrown away after the last answer.
const LINGERING_BYTES: usize = 4 << 20;

/// The same of a body that declares more than those: it is not taken to its end anyway, and what is thrown away costs as
/// much as what is received.
const LINGERING_BYTES_OF_MORE: usize = 256 << 10;

/// How reading ended when it was last tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastRead {
    /// Bytes came, or their end. Unless hyper reads again, it does not see that the peer is gone.
    Done,
    /// Nothing was there, and hyper will be woken.
    Waits,
    /// As it does when the peer has reset the connection.
    Failed,
}

/// A stream that tells what comes and goes.
pub(super) struct WatchedStream<S> {
    stream: S,
    shared: Arc<Shared>,
    /// Whether hyper was not told that the peer sends no more.
    end_withheld: bool,
    /// Ends when the peer is gone for good, while the end of what it sends is withheld, or it has sent what nobody reads yet.
    reset: Option<Reset>,
    last_read: LastRead,
    /// Says what is written in the place of an answer of hyper's own.
    edge: Arc<dyn Edge>,
    /// What is still to be written in its place.
    refusal: Vec<u8>,
    chunks: ChunkWatch,
    discarded: usize,
    write_closed: bool,
}

impl<S> WatchedStream<S> {
    pub(super) fn new(
        stream: S,
        shared: Arc<Shared>,
        edge: Arc<dyn Edge>,
        config: &ConnectionConfig,
    ) -> Self {
        Self {
            stream,
            shared,
            end_withheld: false,
            reset: None,
            last_read: LastRead::Done,
            edge,
            refusal: Vec::new(),
            chunks: ChunkWatch::new(config.max_body_bytes.try_into().unwrap_or(u64::MAX)),
            discarded: 0,
            write_closed: false,
        }
    }
}

impl<S: Transport> WatchedStream<S> {
    /// The peer has said that it sends no more. hyper takes that for the end of the connection, and drops the request in
    /// progress. But HTTP lets a peer say so behind its last request and wait for the answer; one that is gone resets the
    /// connection, now or when more is written. Whether hyper is told.
    fn tells_end(&mut self, phase: Phase, context: &mut Context<'_>) -> bool {
        match phase {
            Phase::Sending => self.end_withheld = true,
            Phase::InRequest if self.shared.body_read.load(Ordering::Relaxed) => {
                self.end_withheld = true;
                // Whoever waits for a reset has to ask once, to be woken by it.
                context.waker().wake_by_ref();
            }
            Phase::InRequest if !self.shared.end_doubted.swap(true, Ordering::Relaxed) => {
                // hyper looks for the end before the handler has seen the last piece of the body, which it does next.
                context.waker().wake_by_ref();
            }
            _ => return true,
        }
        false
    }

    /// Looks at bytes that have arrived for the size that a body declares.
    fn watch_chunks(&mut self, bytes: &[u8]) {
        let too_large = match self.shared.state().phase {
            Phase::AwaitingFirstByte | Phase::Idle => self.chunks.in_head(bytes, true),
            Phase::ReadingHead => self.chunks.in_head(bytes, false),
            _ if self.shared.chunked.load(Ordering::Relaxed) => self.chunks.in_body(bytes),
            // It was no chunked body, or nobody wants it.
            _ => false,
        };
        if too_large {
            self.shared
                .declared_too_large
                .store(true, Ordering::Relaxed);
        }
    }

    /// Writes our words in the place of `answer`, if hyper answers a head by itself: no request is in progress then.
    fn poll_refusal(
        &mut self,
        context: &mut Context<'_>,
        answer: &[u8],
    ) -> Option<Poll<std::io::Result<usize>>> {
        if self.refusal.is_empty() {
            let phase = self.shared.state().phase;
            if !matches!(
                phase,
                Phase::AwaitingFirstByte | Phase::ReadingHead | Phase::Idle
            ) {
                return None;
            }
            let status = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
            let status = StatusCode::from_bytes(status).ok()?;
            let refusal = self.edge.refusal(status)?;
            self.shared.note_refusal(refusal.id);
            self.refusal = refusal.bytes;
        }
        while !self.refusal.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(context, &self.refusal);
            self.shared.note_write(&written);
            match written {
                Poll::Ready(Ok(written)) if written > 0 => drop(self.refusal.drain(..written)),
                other => return Some(other),
            }
        }
        Some(Poll::Ready(Ok(answer.len())))
    }

    /// Whether the peer of the request in progress is gone, which hyper does not see: while it holds bytes behind the
    /// request, it does not read. And when reading fails, it lets the handler answer.
    fn is_gone_unseen(&mut self, context: &mut Context<'_>) -> bool {
        if self.shared.state().phase != Phase::InRequest {
            return false;
        }
        match self.last_read {
            LastRead::Failed => return true,
            LastRead::Waits => return false,
            LastRead::Done => {}
        }
        if self.end_withheld || !self.shared.body_read.load(Ordering::Relaxed) {
            return false;
        }
        self.stream.poll_readable(context).is_ready() && self.is_reset(context)
    }

    /// Whether the peer, of which no more comes or is read, has reset the connection.
    fn is_reset(&mut self, context: &mut Context<'_>) -> bool {
        if self.reset.is_none() && self.shared.state().phase == Phase::InRequest {
            self.reset = self.stream.reset();
        }
        let reset = self.reset.as_mut();
        reset.is_some_and(|reset| reset.as_mut().poll(context).is_ready())
    }
}

impl<S: Transport> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.end_withheld {
            if self.is_reset(context) {
                return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
            }
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.shared.departure.is_asked_for() {
            let unread = result.is_pending() && self.stream.has_unread();
            self.shared.unread_bytes.store(unread, Ordering::Relaxed);
        }
        self.last_read = match &result {
            Poll::Pending => LastRead::Waits,
            Poll::Ready(Ok(())) => LastRead::Done,
            Poll::Ready(Err(_)) => LastRead::Failed,
        };
        ready!(result)?;
        if buffer.filled().len() > before {
            self.watch_chunks(buffer.filled().get(before..).unwrap_or_default());
            self.shared.note(Event::BytesArrived);
        } else if buffer.remaining() > 0 {
            let phase = self.shared.state().phase;
            if !self.tells_end(phase, context) {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncWrite for WatchedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if let Some(result) = self.poll_refusal(context, bytes) {
            return result;
        }
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.shared.note_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        if let [only] = slices
            && let Some(result) = self.poll_refusal(context, only)
        {
            return result;
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
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
        if self.is_gone_unseen(context) {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.shared.note(Event::AllWritten);
        // hyper flushes also while a request is handled and nothing has been written yet.
        let phase = self.shared.state().phase;
        if phase != Phase::InRequest && !self.end_withheld && self.reset.is_some() {
            self.reset = None;
        }
        if self.end_withheld && phase != Phase::InRequest {
            self.end_withheld = false;
            self.reset = None;
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
        let unread = self.shared.unread_body.load(Ordering::Relaxed);
        let is_more = unread != UNKNOWN && unread > LINGERING_BYTES as u64;
        let most = if is_more {
            LINGERING_BYTES_OF_MORE
        } else {
            LINGERING_BYTES
        };
        let mut scratch = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            let result = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
            let more_may_come = self.discarded > 0 || unread > 0;
            if result.is_pending() && !more_may_come {
                return Poll::Ready(Ok(()));
            }
            ready!(result)?;
            let read = buffer.filled().len();
            self.discarded += read;
            if read == 0 || self.discarded >= most {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
