//! Why we close a WebSocket: the codes, and the reasons as a client reads them.

use std::time::Duration;

use crate::limits::PONG_INTERVALS;

/// Codes we close with. Part of the contract: stock clients decide by them whether to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// 1000: the client ended its session.
    Done,
    /// 1002: broken WebSocket framing.
    ProtocolError,
    /// 1007: text that is not UTF-8.
    InvalidText,
    /// 1009: message larger than the limit.
    TooLarge,
    /// 1012: the hub shuts down; come back.
    Restarting,
    /// 1013: too slow, or a limit that may pass; come back.
    TryAgainLater,
    /// 4400: a message that is not of the protocol.
    InvalidMessage,
    /// 4401: subscribe before the ack.
    Unauthorized,
    /// 4403: refused or expired.
    Forbidden,
    /// 4406: no common subprotocol.
    NoSubprotocol,
    /// 4408: no `connection_init` in time.
    InitTimeout,
    /// 4409: an operation with this id is alive.
    IdInUse,
    /// 4429: second `connection_init`.
    TooManyInits,
}

impl CloseCode {
    pub const ALL: [Self; 13] = [
        Self::Done,
        Self::ProtocolError,
        Self::InvalidText,
        Self::TooLarge,
        Self::Restarting,
        Self::TryAgainLater,
        Self::InvalidMessage,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NoSubprotocol,
        Self::InitTimeout,
        Self::IdInUse,
        Self::TooManyInits,
    ];

    pub fn number(self) -> u16 {
        match self {
            Self::Done => 1000,
            Self::ProtocolError => 1002,
            Self::InvalidText => 1007,
            Self::TooLarge => 1009,
            Self::Restarting => 1012,
            Self::TryAgainLater => 1013,
            Self::InvalidMessage => 4400,
            Self::Unauthorized => 4401,
            Self::Forbidden => 4403,
            Self::NoSubprotocol => 4406,
            Self::InitTimeout => 4408,
            Self::IdInUse => 4409,
            Self::TooManyInits => 4429,
        }
    }

    /// When a client receives it, for the reference page.
    pub fn when(self) -> &'static str {
        match self {
            Self::Done => "the client sent `connection_terminate`",
            Self::ProtocolError => {
                "the WebSocket framing is broken, or a message did not end within 10 s"
            }
            Self::InvalidText => "a text is not UTF-8",
            Self::TooLarge => "a message is above its limit",
            Self::Restarting => "the hub stops",
            Self::TryAgainLater => {
                "the client is too slow: it took no waiting byte for 10 s, answered no ping for 5 \
                 minutes, or missed more than the hub still has. Or the hub can't serve the cursor \
                 in time"
            }
            Self::InvalidMessage => "a message is not of the protocol",
            Self::Unauthorized => "`subscribe` came before the ack",
            Self::Forbidden => {
                "`connection_init` is refused, or the sign-in has expired (no client is refused \
                 yet)"
            }
            Self::NoSubprotocol => "there is no common subprotocol",
            Self::InitTimeout => "no `connection_init` came in time",
            Self::IdInUse => {
                "an `id` is in use. This includes an operation that is still prepared, and two \
                 messages in one TCP segment"
            }
            Self::TooManyInits => "a second `connection_init` came",
        }
    }

    /// Whether stock clients connect again by themselves, and how.
    pub fn reconnects(self) -> &'static str {
        match self {
            Self::Restarting => "yes: resume at another hub, or later",
            Self::TryAgainLater => "yes: resume",
            Self::Forbidden | Self::InitTimeout => "yes",
            _ => "no",
        }
    }
}

// Reasons: at most `CLOSE_REASON_BYTES`. Those of a malformed message are in `message`.

pub(crate) const BINARY_MESSAGE: &str = "Binary messages are not used";
pub(crate) const INVALID_TEXT: &str = "text is not UTF-8";
pub(crate) const UNAUTHORIZED: &str = "Unauthorized";
pub(crate) const INIT_TIMEOUT: &str = "Connection initialisation timeout";
pub(crate) const EXPIRED: &str = "The sign-in has expired: sign in again";
pub(crate) const TOO_MANY_INITS: &str = "Too many initialisation requests";
pub(crate) const RESTARTING: &str = "The hub restarts: come back";
pub(crate) const CANNOT_CONTINUE: &str =
    "The hub can't continue from what you have now: resume with your cursor";

pub(crate) fn message_too_large(limit: usize) -> String {
    format!("message_bytes: the limit is {limit}")
}

pub(crate) fn unfinished_message(timeout: Duration) -> String {
    format!("A message did not end within {} s", timeout.as_secs())
}

/// `id` is JSON already, with its quotes.
pub(crate) fn id_in_use(id: &str) -> String {
    format!("Subscriber for {id} already exists")
}

pub(crate) fn pings_unanswered(ping_interval: Duration) -> String {
    format!(
        "Too slow: no answer to a ping for {} ms ({PONG_INTERVALS} ping_interval_ms)",
        (ping_interval * PONG_INTERVALS).as_millis()
    )
}

pub(crate) fn writer_stalled(writer_stall: Duration) -> String {
    let millis = writer_stall.as_millis();
    format!("Too slow: nothing could be sent for {millis} ms (writer_stall_ms)")
}
