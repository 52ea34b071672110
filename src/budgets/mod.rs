//! Who causes work, and what it costs: one account for each client address, shared by its sockets,
//! HTTP connections and event streams. Counts what an address holds open, and keeps its bucket of
//! cost. Knows no HTTP, no GraphQL and no configuration.

mod account;
mod address;
mod meters;
mod pressure;
mod prices;
mod streams;
mod table;
mod unread;

pub use self::account::{AccountLimits, ClientAccount, ConnectionPlace, RateLimited};
pub use self::address::ClientAddress;
pub use self::meters::{ClientMeters, ExceededLimit};
pub use self::pressure::HubShare;
pub use self::prices::Work;
pub use self::streams::{StreamCounts, StreamPlace, TooManyStreams};
pub use self::table::Accounts;
pub use self::unread::{UnreadPlace, UnreadReplies};
