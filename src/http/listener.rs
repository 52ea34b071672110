//! The ports: bound with a backlog as deep as the system lets, so that a crowd that comes back at
//! once waits in it instead of being dropped.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

/// Connections that wait to be accepted. The kernel takes the smaller of this and
/// `net.core.somaxconn`, 4,096 where nobody changed it. A SYN beyond is dropped, and its client
/// tries again after a second.
const BACKLOG: i32 = 4_096;

/// A classic BPF program that drops each SYN. The filter of a TCP socket sees the TCP header, whose
/// byte 13 has the flags. It looks at SYN and ACK alone: `ldb [13]; and 0x12; jeq SYN; drop; take`.
const NO_SYN: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Binds and listens, without waiting.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // As a restart finds connections of before in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes connections in for threads of other runtimes. tokio's own listener registers each
/// connection with the runtime that accepts it, which costs more than accepting it: a crowd is
/// taken in past it.
pub struct Incoming(tokio::net::TcpListener);

impl Incoming {
    /// Inside a runtime.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        tokio::net::TcpListener::from_std(listener).map(Self)
    }

    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.accept_waiting() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let (stream, peer) = self.0.accept().await?;
                Ok((stream.into_std()?, peer))
            }
            accepted => accepted,
        }
    }

    /// One that is in the backlog; `WouldBlock` if none is.
    fn accept_waiting(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, peer) = SockRef::from(&self.0).accept()?;
        socket.set_nonblocking(true)?;
        let peer = peer.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((socket.into(), peer))
    }

    /// Lets nobody begin a connection any more, while those that have begun go on. A client that
    /// tries sends its SYN again after a second, and finds the port closed.
    pub fn drop_new(&self) -> io::Result<()> {
        SockRef::from(&self.0).attach_filter(&NO_SYN)
    }

    /// Closes the port. The kernel would reset what is in the backlog then, and these clients are
    /// connected already: they come first.
    pub fn close(self) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
        let waiting = (0..BACKLOG).map_while(move |_| match self.accept_waiting() {
            Ok(accepted) => Some(Some(accepted)),
            // It has left while it waited; the next one may not have.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Some(None),
            Err(_) => None,
        });
        waiting.flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    use super::*;

    /// More than the 128 that the standard library listens with.
    const CROWD: usize = 1_000;

    #[test]
    fn a_crowd_waits_in_the_backlog_while_nobody_accepts() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let crowd = CROWD.min(most.trim().parse().unwrap());
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        // A SYN that is dropped is sent again after a second.
        let patience = Duration::from_millis(900);
        let connect = |_| TcpStream::connect_timeout(&address, patience).ok();
        let waiting: Vec<_> = (0..crowd).map_while(connect).collect();
        assert_eq!(waiting.len(), crowd);
    }

    #[tokio::test]
    async fn connections_in_the_backlog_come_before_the_port_is_closed() {
        let incoming = Incoming::new(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let address = incoming.0.local_addr().unwrap();
        let clients: Vec<_> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
        let rest: Vec<_> = incoming.close().map(|(_, peer)| peer).collect();
        let expected: Vec<_> = clients.iter().map(|one| one.local_addr().unwrap()).collect();
        assert_eq!(rest, expected);
        assert!(TcpStream::connect(address).is_err());
    }

    #[tokio::test]
    async fn before_the_port_is_closed_those_that_are_connected_go_on_and_nobody_else_connects() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let incoming = Incoming::new(bind(address.parse().unwrap()).unwrap()).unwrap();
            let address = incoming.0.local_addr().unwrap();
            let mut client = TcpStream::connect(address).unwrap();
            incoming.drop_new().unwrap();
            let refused = TcpStream::connect_timeout(&address, Duration::from_millis(100));
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
            let (mut accepted, peer) = incoming.accept().await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            drop(incoming.close());
            // It inherits the filter.
            client.write_all(b"hello").unwrap();
            let mut hello = [0; 5];
            accepted.set_nonblocking(false).unwrap();
            accepted.read_exact(&mut hello).unwrap();
            assert_eq!(&hello, b"hello");
        }
    }

    #[tokio::test]
    async fn each_connection_of_a_crowd_is_accepted_once() {
        let incoming = Incoming::new(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let address = incoming.0.local_addr().unwrap();
        let clients: Vec<_> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut expected: Vec<_> = clients.iter().map(|one| one.local_addr().unwrap()).collect();
        let mut accepted = Vec::new();
        for _ in 0..300 {
            accepted.push(incoming.accept().await.unwrap().1);
        }
        expected.sort_unstable();
        accepted.sort_unstable();
        assert_eq!(accepted, expected);
        assert!(futures_util::FutureExt::now_or_never(incoming.accept()).is_none());
    }
}
