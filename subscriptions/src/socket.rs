//! What carries a connection: a TCP stream, or a pipe in tests.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

/// See the module's text.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Writes what the socket takes at once. [`io::ErrorKind::WouldBlock`] if it is full; unlike
    /// `poll_write`, this wakes no task when there is room again.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

impl Socket for TcpStream {
    /// A direct system call. The runtime keeps a socket's readiness in memory of its own, which a
    /// fan-out over thousands of sockets would have to load for each of them.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SockRef::from(&*self).send(bytes)
    }
}

/// A pipe, for tests and for fuzzing.
impl Socket for DuplexStream {
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(self).poll_write(&mut cx, bytes) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Writes what the socket takes at once. `Pending` if it is full, without waking a task later.
pub(crate) fn try_write(socket: &mut impl Socket, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match socket.write_now(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}
