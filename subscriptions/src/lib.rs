//! The engine: shared response streams, the sessions that ask for them and the connections that
//! carry them. It knows no market, no schema and no database; those meet it in two traits,
//! [`Executor`] (what an operation means) and [`Source`] (what stands behind a stream).

pub mod bucket;
mod codec;
mod connection;
pub mod dialect;
pub mod executor;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod key;
pub mod limits;
pub mod memory;
pub mod meters;
mod owners;
pub mod position;
pub mod message;
pub mod sse_reader;
pub mod ring;
mod rounds;
pub mod schedule;
mod session;
pub mod shard;
pub mod streams;
pub mod worker;

pub use connection::{Guard, Socket};
pub use dialect::Dialect;
pub use executor::{
    Budget, Execution, Executor, InitRefused, OperationKind, PERSISTED, Request, SingleResult,
    StreamPlace,
};
pub use key::OperationKey;
pub use limits::Limits;
pub use memory::Memory;
pub use meters::Meters;
pub use owners::EXEMPT;
pub use position::{Cursor, CursorError, Epoch, Position, topic_hash};
pub use message::CloseCode;
pub use sse_reader::{End, Reader};
pub use ring::Frame;
pub use rounds::Priority;
pub use schedule::{Audience, Pace, Repaced, Schedule};
pub use shard::{Opening, Rank, Shard};
pub use streams::{OpenError, ResponseStream, Source, Start, StreamLimits, Streams};
pub use worker::{Turn, Worker};
