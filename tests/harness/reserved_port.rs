//! A port for a server that ends and comes back. A free port that nobody holds can go to another
//! process in between, or to a client's own end of a connection.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// The kernel gives this port to nobody who asks for any port, until this is dropped. A server that
/// sets SO_REUSEADDR can listen there: this socket is bound and does not listen.
pub struct ReservedPort {
    number: u16,
    _bound: Socket,
}

impl ReservedPort {
    pub fn new() -> Self {
        Self::bind(0).expect("the kernel has a free port")
    }

    /// That port, unless somebody has it.
    pub fn bind(number: u16) -> io::Result<Self> {
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        bound.set_reuse_address(true)?;
        bound.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, number)).into())?;
        let address = bound.local_addr()?.as_socket().expect("it is an IPv4 address");
        Ok(Self { number: address.port(), _bound: bound })
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

impl fmt::Display for ReservedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}
