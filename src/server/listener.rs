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

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    /// More than the 128 that the standard library listens with.
    const CROWD: usize = 1_000;

    #[tokio::test]
    async fn a_crowd_waits_in_the_backlog_while_nobody_accepts() {
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
}
