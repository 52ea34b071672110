//! The ports: bound with a backlog as deep as the system lets, so that a crowd that comes back at
//! once waits in it instead of being dropped.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted. The kernel takes the smaller of this and
/// `net.core.somaxconn`, 4,096 where nobody changed it. A SYN beyond is dropped, and its client
/// tries again after a second.
const BACKLOG: i32 = 4_096;

/// Binds and listens. Inside a runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // As a restart finds connections of before in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
