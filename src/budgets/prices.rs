//! The kinds of work that a client can cause, each with its price: an estimate of the processor
//! time that the hub spends on it. Fixed, so that a client can foresee what is refused, and so that
//! a hub on a slow machine refuses nearly the same. What takes longer than its prices is charged
//! what it took, so that no request is cheaper than it is. From the processor time of a release
//! build for some hundred of each; only their proportions matter, as `limits.cost_rate` scales all
//! of them. `loadtest/bench/prices.py` compares them with the cost of whole requests.

/// A kind of work; each says what is counted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A TCP connection that is accepted, or one that becomes a WebSocket.
    Connection,
    /// A message over a WebSocket, whatever it says; its KiB are charged too.
    Message,
    /// A request: taken in, weighed, answered; for an operation that many clients share it is all.
    /// Over HTTP it is charged twice, once for HTTP itself, and once more for each further piece of
    /// its body.
    Request,
    /// A lexical token of a document that was not parsed lately.
    DocumentToken,
    /// A response stream that nobody had opened: validated, its source found and attached. More
    /// than that takes, as it costs something with each event until it is swept.
    Stream,
    /// A field that is selected, fragments expanded: validated and resolved. Or a selection of the
    /// whole document, if these are more, as all of it is validated.
    Field,
    /// A field of a price level or a candle that is resolved and encoded.
    LevelField,
    /// A field of a market, trade, event, order or feed in a list: resolved and encoded.
    ItemField,
    /// A level's field of a shared snapshot that another client caused: it is only sent again.
    SharedLevelField,
    /// A field of the schema's own description.
    IntrospectionField,
    /// A look into the log: a thread of the pool, a transaction, a query.
    LogRead,
    /// A page of the log for a subscription that resumes from further back than memory reaches.
    /// Less than its processor time, as a crowd that comes back shares its pages.
    Page,
    /// A row of the log that is read and parsed.
    Row,
    /// An event that is written into the log.
    Write,
    /// A generic topic that had no event before. Far more than its processor time: it takes a
    /// place in the hub's memory.
    Topic,
    /// A nanosecond that a request took beyond all these.
    Measured,
    /// A KiB of a request's body or variables, or of a result that is encoded for one client alone.
    Kib,
}

impl Work {
    pub const ALL: [Self; 17] = [
        Self::Connection,
        Self::Message,
        Self::Request,
        Self::DocumentToken,
        Self::Stream,
        Self::Field,
        Self::LevelField,
        Self::ItemField,
        Self::SharedLevelField,
        Self::IntrospectionField,
        Self::LogRead,
        Self::Page,
        Self::Row,
        Self::Write,
        Self::Topic,
        Self::Measured,
        Self::Kib,
    ];

    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Message => "message",
            Self::Request => "request",
            Self::DocumentToken => "document",
            Self::Stream => "stream",
            Self::Field => "field",
            Self::LevelField => "level_field",
            Self::ItemField => "item_field",
            Self::SharedLevelField => "shared_level_field",
            Self::IntrospectionField => "introspection",
            Self::LogRead => "log_read",
            Self::Page => "page",
            Self::Row => "row",
            Self::Write => "write",
            Self::Topic => "topic",
            Self::Measured => "measured",
            Self::Kib => "kib",
        }
    }

    /// Nanoseconds of processor time, each.
    pub const fn nanos(self) -> u64 {
        match self {
            Self::Connection => 50_000,
            Self::Message => 2_000,
            Self::Request => 20_000,
            Self::DocumentToken => 800,
            Self::Stream => 500_000,
            Self::Field => 500,
            Self::LevelField => 100,
            Self::ItemField => 120,
            Self::SharedLevelField => 10,
            Self::IntrospectionField => 800,
            Self::LogRead => 60_000,
            Self::Page => 300_000,
            Self::Row => 2_000,
            Self::Write => 150_000,
            Self::Topic => 10_000_000,
            Self::Measured => 1,
            Self::Kib => 4_000,
        }
    }
}
