//! A client's connection that is cut when the client takes no byte of what is sent to it for too
//! long, or sends the headers of a request too slowly. Plain HTTP has no other end for a reply that
//! nobody reads, and its memory would stay.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::delivery::Delivery;
use super::header_clock::HeaderTimer;

/// See the module's text.
pub struct StallLimited {
    stream: TcpStream,
    stall: Duration,
    /// Runs while the client takes nothing; a connection that keeps up has none.
    deadline: Option<Pin<Box<Sleep>>>,
    headers: HeaderTimer,
    delivery: Arc<Delivery>,
}

impl StallLimited {
    pub fn new(stream: TcpStream, stall: Duration, delivery: Arc<Delivery>) -> Self {
        Self { stream, stall, deadline: None, headers: None, delivery }
    }

    pub fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.deadline.take().is_some() {
                self.delivery.moved();
            }
            return written;
        }
        let stall = self.stall;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(stall)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.delivery.stall();
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for StallLimited {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = &mut *self;
        let filled = buffer.filled().len();
        let read = Pin::new(&mut own.stream).poll_read(cx, buffer);
        if buffer.filled().len() > filled {
            own.delivery.headers.received();
        }
        if read.is_pending() && own.delivery.headers.poll_over(&mut own.headers, cx).is_ready() {
            // As if the client had closed the connection.
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl AsyncWrite for StallLimited {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only what hyper has written as a whole is flushed.
        self.delivery.sent();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
