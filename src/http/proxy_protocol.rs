//! The PROXY protocol: a header before the first byte of a connection, by which a proxy of ours
//! says whose connection it passes on. Exactly the header is read. What follows is the client's
//! own, be it HTTP or TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::connection_limits::is_trusted;
use crate::config::Network;

/// A header of version 2 without its fixed part: addresses and fields such as the client's
/// certificate. The protocol lets it have 64 KiB, and proxies send some 500 bytes at most.
const MOST_FIELD_BYTES: usize = 4_096;
/// A header of version 1, as its definition has it.
const MOST_V1_BYTES: usize = 107;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const LINE: &[u8] = b"PROXY ";
/// Signature, command, family, and the length of the rest.
const FIXED_PART: usize = 16;
/// Version 2, and the command by which a proxy asks for itself.
const LOCAL: u8 = 0x20;

/// What a header says, or what came instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Client(SocketAddr),
    /// The proxy asks for itself, or does not say for whom.
    Proxy,
    /// The proxy closed the connection before its first byte: it looked whether the port is open.
    Nothing,
    Missing,
    Malformed,
    TooLong,
    /// The connection ended within it.
    Cut,
    Late,
}

impl Header {
    const OUTCOMES: [&str; 8] =
        ["client", "proxy", "nothing", "missing", "malformed", "too_long", "cut", "late"];

    fn place(self) -> usize {
        match self {
            Self::Client(_) => 0,
            Self::Proxy => 1,
            Self::Nothing => 2,
            Self::Missing => 3,
            Self::Malformed => 4,
            Self::TooLong => 5,
            Self::Cut => 6,
            Self::Late => 7,
        }
    }

    /// Why the connection is closed, if that is a fault.
    fn fault(self) -> Option<&'static str> {
        Some(match self {
            Self::Client(_) | Self::Proxy | Self::Nothing => return None,
            Self::Missing => "it does not begin with a header of the PROXY protocol",
            Self::Malformed => "its header of the PROXY protocol can't be read",
            Self::TooLong => "its header of the PROXY protocol is too long",
            Self::Cut => "it ended within its header of the PROXY protocol",
            Self::Late => "its header of the PROXY protocol did not come in time",
        })
    }
}

/// Connections that should begin with a header, since the start.
#[derive(Debug, Default)]
pub struct ProxyHeaderMeters([AtomicU64; Header::OUTCOMES.len()]);

impl ProxyHeaderMeters {
    /// How many there are now, this one included.
    fn count(&self, header: Header) -> u64 {
        self.0[header.place()].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// By what came of them.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Header::OUTCOMES.into_iter().zip(counts)
    }
}

/// Whose connections begin with a header.
#[derive(Clone, Debug, Default)]
pub struct ProxyProtocol {
    /// Nobody's, if it is off.
    pub from: Vec<Network>,
    /// For a header, from the accept on.
    pub timeout: Duration,
    pub meters: Arc<ProxyHeaderMeters>,
}

impl ProxyProtocol {
    /// Whose a new connection is: of its peer, or of the client that its header names. `None`: it
    /// is to be closed, and that was counted.
    pub async fn client<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        peer: IpAddr,
    ) -> Option<IpAddr> {
        if !is_trusted(peer, &self.from) {
            return Some(peer);
        }
        let header = tokio::time::timeout(self.timeout, read(stream)).await;
        let header = header.unwrap_or(Header::Late);
        let count = self.meters.count(header);
        match header {
            Header::Client(client) => return Some(client.ip()),
            Header::Proxy => return Some(peer),
            _ => {}
        }
        // A proxy that sends none does so for each client: a few lines say it as well.
        if let Some(fault) = header.fault().filter(|_| count.is_power_of_two()) {
            tracing::warn!(%peer, count, "a proxy's connection is closed: {fault}");
        }
        None
    }
}

/// Takes a header off a connection, and no byte more.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Header {
    let mut bytes = Vec::with_capacity(MOST_V1_BYTES);
    let read = read_whole(stream, &mut bytes).await;
    read.unwrap_or(if bytes.is_empty() { Header::Nothing } else { Header::Cut })
}

async fn read_whole<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
) -> io::Result<Header> {
    // The shortest header of version 1 is longer than the signature of version 2.
    while bytes.len() < SIGNATURE.len() {
        let mut part = [0; SIGNATURE.len()];
        let read = stream.read(&mut part[bytes.len()..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let begin = bytes.len();
        bytes.extend_from_slice(&part[begin..begin + read]);
        let known = bytes.len().min(LINE.len());
        if !SIGNATURE.starts_with(bytes) && bytes[..known] != LINE[..known] {
            return Ok(Header::Missing);
        }
    }
    if *bytes == SIGNATURE {
        read_fields(stream, bytes).await
    } else {
        read_line(stream, bytes).await
    }
}

/// The rest of version 2.
async fn read_fields<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
) -> io::Result<Header> {
    bytes.resize(FIXED_PART, 0);
    stream.read_exact(&mut bytes[SIGNATURE.len()..]).await?;
    let command = bytes[SIGNATURE.len()];
    let length = usize::from(u16::from_be_bytes([bytes[FIXED_PART - 2], bytes[FIXED_PART - 1]]));
    if length > MOST_FIELD_BYTES {
        return Ok(Header::TooLong);
    }
    bytes.resize(FIXED_PART + length, 0);
    stream.read_exact(&mut bytes[FIXED_PART..]).await?;
    // Whatever else it says is to be ignored then.
    Ok(if command == LOCAL { Header::Proxy } else { parsed(bytes) })
}

/// The rest of version 1, byte by byte, as only its end says where it ends.
async fn read_line<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
) -> io::Result<Header> {
    while !bytes.ends_with(b"\r\n") {
        if bytes.len() == MOST_V1_BYTES {
            return Ok(Header::TooLong);
        }
        bytes.push(stream.read_u8().await?);
    }
    Ok(parsed(bytes))
}

fn parsed(bytes: &[u8]) -> Header {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(bytes, config) {
        Ok((header, length)) if length == bytes.len() => match header.proxied_address() {
            Some(addresses) if addresses.protocol == proxy_header::Protocol::Stream => {
                Header::Client(addresses.source)
            }
            _ => Header::Proxy,
        },
        _ => Header::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures_util::FutureExt as _;
    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt as _, ReadBuf};

    use super::*;

    /// What a client sends after the header, which is not to be read.
    const REST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// Gives so many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let (part, rest) = self.0.split_at(self.1.min(buffer.remaining()).min(self.0.len()));
            buffer.put_slice(part);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    /// What is read, and what is left.
    fn taken(bytes: &[u8], piece: usize) -> (Header, Vec<u8>) {
        let mut stream = Pieces(bytes, piece);
        let header = read(&mut stream).now_or_never().expect("all bytes are there");
        (header, stream.0.to_vec())
    }

    fn v2(command: u8, family: u8, fields: &[u8]) -> Vec<u8> {
        let length = u16::try_from(fields.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, fields].concat()
    }

    /// From 203.0.113.7:5555 to 10.0.0.1:443.
    const V4: [u8; 12] = [203, 0, 113, 7, 10, 0, 0, 1, 21, 179, 1, 187];

    fn v6() -> Vec<u8> {
        let (mut from, mut to) = ([0; 16], [0; 16]);
        (from[0], from[1], from[2], from[3], from[15]) = (0x20, 0x01, 0x0d, 0xb8, 7);
        to[15] = 1;
        [&from[..], &to, &[21, 179, 1, 187]].concat()
    }

    /// A field of a type that nobody knows.
    fn field(bytes: usize) -> Vec<u8> {
        let length = u16::try_from(bytes).unwrap().to_be_bytes();
        [&[0xe0], &length[..], &vec![7; bytes]].concat()
    }

    fn headers() -> Vec<(Vec<u8>, Header)> {
        let client = |address: &str| Header::Client(address.parse().unwrap());
        let (four, six) = (client("203.0.113.7:5555"), client("[2001:db8::7]:5555"));
        let largest = field(MOST_FIELD_BYTES - V4.len() - 3);
        vec![
            (v2(0x21, 0x11, &V4), four),
            (v2(0x21, 0x21, &v6()), six),
            (v2(0x21, 0x11, &[&V4[..], &field(300)].concat()), four),
            (v2(0x21, 0x11, &[&V4[..], &largest].concat()), four),
            // Fields that end too early are not the hub's business.
            (v2(0x21, 0x11, &[&V4[..], &[1, 0]].concat()), four),
            (v2(0x20, 0, &[]), Header::Proxy),
            (v2(0x20, 0x11, &V4), Header::Proxy),
            (v2(0x20, 0xff, &[1, 2, 3]), Header::Proxy),
            (v2(0x21, 0, &[]), Header::Proxy),
            (v2(0x21, 0, &field(9)), Header::Proxy),
            // Datagrams, and a socket of the proxy's machine.
            (v2(0x21, 0x12, &V4), Header::Proxy),
            (v2(0x21, 0x31, &[0; 216]), Header::Proxy),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 5555 443\r\n".to_vec(), four),
            (b"PROXY TCP6 2001:db8::7 ::1 5555 443\r\n".to_vec(), six),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Proxy),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), Header::Proxy),
        ]
    }

    #[test]
    fn each_header_says_whose_the_connection_is_and_what_follows_is_left() {
        for (header, said) in headers() {
            let bytes = [&header[..], REST].concat();
            for piece in [1, 2, 13, bytes.len()] {
                assert_eq!(taken(&bytes, piece), (said, REST.to_vec()), "{header:?} by {piece}");
            }
        }
    }

    #[test]
    fn a_header_that_ends_anywhere_is_no_header() {
        for (header, _) in headers() {
            assert_eq!(taken(&[], 1).0, Header::Nothing);
            for end in 1..header.len() {
                assert_eq!(taken(&header[..end], end).0, Header::Cut, "{:?}", &header[..end]);
            }
        }
    }

    #[test]
    fn each_fault_of_a_header_has_its_name() {
        let long_line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; MOST_V1_BYTES]].concat();
        for (bytes, fault) in [
            (REST.to_vec(), Header::Missing),
            (b"\x16\x03\x01\x02\x00\x01".to_vec(), Header::Missing),
            (b"\r\n\r\nGET / HTTP/1.1".to_vec(), Header::Missing),
            (b"PROXIED BY NOBODY".to_vec(), Header::Missing),
            (v2(0x31, 0x11, &V4), Header::Malformed),
            (v2(0x22, 0x11, &V4), Header::Malformed),
            (v2(0x21, 0x41, &V4), Header::Malformed),
            (v2(0x21, 0x11, &V4[..11]), Header::Malformed),
            (v2(0x21, 0x21, &V4), Header::Malformed),
            (v2(0x21, 0x31, &[0; 215]), Header::Malformed),
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 5555\r\n".to_vec(), Header::Malformed),
            (b"PROXY TCP4 203.0.113.256 10.0.0.1 1 2\r\n".to_vec(), Header::Malformed),
            (b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n".to_vec(), Header::Malformed),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n".to_vec(), Header::Malformed),
            (b"PROXY UDP4 1.1.1.1 1.1.1.1 1 2\r\n".to_vec(), Header::Malformed),
            (v2(0x21, 0x11, &[&V4[..], &field(MOST_FIELD_BYTES)].concat()), Header::TooLong),
            (v2(0x20, 0, &[0; MOST_FIELD_BYTES + 1]), Header::TooLong),
            (long_line, Header::TooLong),
        ] {
            assert_eq!(taken(&bytes, bytes.len()).0, fault, "{bytes:?}");
            assert!(fault.fault().is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_named_proxy_sends_a_header_and_it_has_so_long_for_it() {
        let (proxy, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let protocol = ProxyProtocol {
            from: vec!["10.0.0.1".parse().unwrap()],
            timeout: Duration::from_secs(10),
            meters: Arc::default(),
        };
        let header = v2(0x21, 0x11, &V4);
        let client = protocol.client(&mut &*header, proxy).await;
        assert_eq!(client, Some("203.0.113.7".parse().unwrap()));
        let mut rest = &*header;
        assert_eq!(protocol.client(&mut rest, other).await, Some(other));
        assert_eq!(rest, header, "nothing is read of a connection that is nobody's but its own");
        assert_eq!(protocol.client(&mut &*v2(0x20, 0, &[]), proxy).await, Some(proxy));
        assert_eq!(protocol.client(&mut &*REST, proxy).await, None);
        assert_eq!(protocol.client(&mut &b""[..], proxy).await, None);
        let (mut far, mut near) = tokio::io::duplex(64);
        far.write_all(&header[..20]).await.unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(protocol.client(&mut near, proxy).await, None);
        assert_eq!(began.elapsed(), protocol.timeout);
        let counts: Vec<_> = protocol.meters.counts().filter(|(_, count)| *count > 0).collect();
        let expected = [("client", 1), ("proxy", 1), ("nothing", 1), ("missing", 1), ("late", 1)];
        assert_eq!(counts, expected);
    }

    proptest! {
        /// Neither panics nor reads on, and what is read does not depend on how it came.
        #[test]
        fn any_bytes_are_read_alike_in_any_pieces_and_no_further_than_the_longest_header(
            begin in prop_oneof![
                Just(Vec::new()),
                Just(SIGNATURE.to_vec()),
                Just([&SIGNATURE[..], &[0x21]].concat()),
                Just(LINE.to_vec()),
                Just(b"PROXY TCP4 ".to_vec()),
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..200),
            piece in 1_usize..64,
        ) {
            let bytes = [begin, rest].concat();
            let (header, left) = taken(&bytes, bytes.len().max(1));
            prop_assert!(bytes.len() - left.len() <= FIXED_PART + MOST_FIELD_BYTES);
            prop_assert_eq!(taken(&bytes, piece).0, header);
        }

        /// One byte that is another one never makes another client's connection of it in silence:
        /// addresses differ only where the byte is part of the address.
        #[test]
        fn a_changed_byte_outside_of_the_source_never_names_another_client(
            at in 0_usize..28,
            to in any::<u8>(),
        ) {
            let mut bytes = v2(0x21, 0x11, &V4);
            let in_source = (16..20).contains(&at) || (24..26).contains(&at);
            prop_assume!(!in_source);
            bytes[at] = to;
            let header = taken(&bytes, bytes.len()).0;
            let own = Header::Client("203.0.113.7:5555".parse().unwrap());
            prop_assert!(header == own || !matches!(header, Header::Client(_)), "{:?}", header);
        }
    }
}
