//! The engine: shared response streams, the sessions that ask for them and the connections that
//! carry them. It knows no market, no schema and no database. Those are connected by two traits:
//! [`Executor`] (what an operation means) and [`Source`] (what makes the frames of a stream).

mod batch;
pub mod bucket;
mod close;
mod codec;
mod connection;
mod context;
pub mod dialect;
mod error;
mod executor;
mod fanout;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod idle_streams;
mod key;
pub mod limits;
mod memory;
mod message;
mod meters;
mod owners;
mod pace;
mod position;
mod readership;
mod request;
mod resume;
mod ring;
mod rounds;
mod schedule;
mod session;
mod shard;
mod signal;
mod socket;
mod sse_reader;
mod stream;
mod stream_cursor;
mod streams;
mod subscribers;
mod worker;

pub use batch::Rank;
pub use close::CloseCode;
pub use connection::Guard;
pub use dialect::Dialect;
pub use error::{ErrorCode, GraphqlError, millis};
pub use executor::{
    Budget, Credentials, Execution, Executor, Grant, InitRefused, SingleResult, StreamPermit,
};
pub use key::OperationKey;
pub use limits::Limits;
pub use memory::Memory;
pub use meters::{EventStreamEnd, Meter, Meters};
pub use owners::EXEMPT;
pub use pace::Pace;
pub use position::{Cursor, CursorError, Epoch, Position, topic_hash};
pub use readership::Readership;
pub use request::{MOST_JSON_VALUES, OperationKind, PERSISTED, Request, has_too_many_values};
pub use resume::{Answer, Resume};
pub use ring::Frame;
pub use rounds::Priority;
pub use schedule::{PaceChange, Schedule};
pub use shard::{Opening, Shard};
pub use socket::Socket;
pub use sse_reader::{SseReader, StreamEnd};
pub use stream::{ResponseStream, Source};
pub use streams::{OpenError, StreamLimits, Streams};
pub use worker::{Turn, Worker};
