//! One client's protocol state: a message goes in, a decision comes out. No clock (the caller
//! passes the time), no socket, no task. The connection carries the decisions out.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::close::{self, CloseCode};
use crate::dialect::Dialect;
use crate::error::GraphqlError;
use crate::limits::Limits;
use crate::message::{self, ClientMessage};
use crate::request::Request;

/// What the connection has to do now.
#[derive(Debug)]
pub(crate) enum Decision {
    Nothing,
    /// Send this message.
    Reply(Vec<u8>),
    /// Send this error: an operation was refused by a limit of the socket.
    Refuse(Vec<u8>),
    /// Check the credentials, then call [`Session::accept`] or close with 4403.
    Authenticate(Option<Map<String, Value>>),
    /// Execute the request, then call [`Session::refuse`], [`Session::finish`] or
    /// [`Session::start_streaming`].
    Execute {
        operation: OperationRef,
        request: Request,
    },
    /// The client ended this operation: stop it, and send the answer if its dialect has one.
    Stop {
        operation: OperationRef,
        answer: Option<Vec<u8>>,
    },
    Close {
        code: CloseCode,
        reason: String,
    },
}

/// An operation of a session. The generation distinguishes it from earlier operations in the same
/// slot or with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OperationRef {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No `connection_init` came yet.
    AwaitingInit,
    /// The credentials of `connection_init` are being checked.
    Authenticating,
    Acknowledged,
}

struct Operation {
    /// The id as JSON with its quotes, as every message repeats it.
    id: Rc<str>,
    /// It has neither a result nor a stream yet.
    pending: bool,
}

/// A slot is kept after its operation ends, so that the generation can rise.
struct Slot {
    generation: u32,
    operation: Option<Operation>,
}

pub(crate) struct Session {
    dialect: Dialect,
    phase: Phase,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_id: HashMap<Rc<str>, u32>,
    pending: usize,
    bucket: TokenBucket,
}

impl Session {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            dialect: Dialect::default(),
            phase: Phase::AwaitingInit,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            pending: 0,
            bucket: TokenBucket::new(limits, now),
        }
    }

    /// Called before the first message, with the subprotocol that the upgrade agreed on.
    pub(crate) fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The client has not proved yet who it is.
    pub(crate) fn awaits_ack(&self) -> bool {
        self.phase != Phase::Acknowledged
    }

    /// Operations alive.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// One text message of the client.
    pub(crate) fn receive(&mut self, text: &str, limits: &Limits, now: Instant) -> Decision {
        let message = match self.dialect.parse(text) {
            Ok(message) => message,
            Err(reason) => return close(CloseCode::InvalidMessage, reason),
        };
        match message {
            ClientMessage::Ping(payload) => Decision::Reply(message::pong(payload)),
            ClientMessage::Pong => Decision::Nothing,
            ClientMessage::Init(payload) => match self.phase {
                Phase::AwaitingInit => {
                    self.phase = Phase::Authenticating;
                    Decision::Authenticate(payload)
                }
                _ => close(CloseCode::TooManyInits, close::TOO_MANY_INITS),
            },
            ClientMessage::Complete { id } => match self.by_id.get(&*json_id(&id)) {
                Some(&slot) => {
                    let operation = self.reference(slot);
                    let removed = self.remove(operation);
                    let answer = removed.and_then(|id| self.dialect.ended(&id));
                    Decision::Stop { operation, answer }
                }
                None => Decision::Nothing,
            },
            ClientMessage::Terminate => close(CloseCode::Done, ""),
            ClientMessage::Subscribe { .. } if self.phase != Phase::Acknowledged => {
                close(CloseCode::Unauthorized, close::UNAUTHORIZED)
            }
            ClientMessage::Subscribe { id, request } => self.subscribe(&id, request, limits, now),
        }
    }

    fn subscribe(&mut self, id: &str, request: Request, limits: &Limits, now: Instant) -> Decision {
        let id: Rc<str> = json_id(id).into();
        if self.by_id.contains_key(&id) {
            return close(CloseCode::IdInUse, &close::id_in_use(&id));
        }
        let refusal = if self.by_id.len() >= limits.operations_per_socket {
            limit_error("operations_per_socket", limits.operations_per_socket, self.by_id.len())
        } else if self.pending >= limits.pending_operations_per_socket {
            let limit = limits.pending_operations_per_socket;
            limit_error("pending_operations_per_socket", limit, self.pending)
        } else if let Err(retry_after_ms) = self.bucket.take(limits, now) {
            rate_error(limits.subscribe_rate, retry_after_ms)
        } else {
            let operation = self.insert(id);
            return Decision::Execute { operation, request };
        };
        Decision::Refuse(self.dialect.error(&id, refusal.to_string().as_bytes()))
    }

    /// The credentials are valid. Returns the ack to send.
    pub(crate) fn accept(&mut self) -> &'static [u8] {
        self.phase = Phase::Acknowledged;
        message::ACK
    }

    /// The operation reads a stream from now on and is no longer pending. Returns the id for its
    /// results, `None` if the operation has ended already.
    pub(crate) fn start_streaming(&mut self, operation: OperationRef) -> Option<Rc<str>> {
        let alive = self.alive_mut(operation)?;
        let (was_pending, id) = (std::mem::take(&mut alive.pending), alive.id.clone());
        self.pending -= usize::from(was_pending);
        Some(id)
    }

    /// The operation ends with errors. Returns the message to send, `None` if the operation has
    /// ended already.
    pub(crate) fn refuse(&mut self, operation: OperationRef, errors: &[u8]) -> Option<Vec<u8>> {
        let id = self.remove(operation)?;
        Some(self.dialect.error(&id, errors))
    }

    /// The operation ends with its only result. Returns the id for the result and the `complete`
    /// message, `None` if the operation has ended already.
    pub(crate) fn finish(&mut self, operation: OperationRef) -> Option<(Rc<str>, Vec<u8>)> {
        let id = self.remove(operation)?;
        let complete = message::complete(&id);
        Some((id, complete))
    }

    fn alive_mut(&mut self, operation: OperationRef) -> Option<&mut Operation> {
        let slot = self.slots.get_mut(operation.slot as usize)?;
        if slot.generation != operation.generation {
            return None;
        }
        slot.operation.as_mut()
    }

    pub(crate) fn reference(&self, slot: u32) -> OperationRef {
        OperationRef { slot, generation: self.slots[slot as usize].generation }
    }

    fn insert(&mut self, id: Rc<str>) -> OperationRef {
        let operation = Operation { id: id.clone(), pending: true };
        self.pending += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize].operation = Some(operation);
                slot
            }
            None => {
                self.slots.push(Slot { generation: 0, operation: Some(operation) });
                (self.slots.len() - 1) as u32
            }
        };
        self.by_id.insert(id, slot);
        self.reference(slot)
    }

    /// Checks and removes in one step: the caller that gets the id is the one that ended it.
    fn remove(&mut self, operation: OperationRef) -> Option<Rc<str>> {
        self.alive_mut(operation)?;
        let slot = &mut self.slots[operation.slot as usize];
        let removed = slot.operation.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        if removed.pending {
            self.pending -= 1;
        }
        self.free.push(operation.slot);
        self.by_id.remove(&removed.id);
        Some(removed.id)
    }
}

fn close(code: CloseCode, reason: &str) -> Decision {
    Decision::Close { code, reason: reason.to_owned() }
}

fn json_id(id: &str) -> String {
    Value::from(id).to_string()
}

fn limit_error(name: &str, limit: usize, current: usize) -> Value {
    let message =
        format!("limit {name} is {limit}: complete an operation before you start another");
    GraphqlError::limit_exceeded(name, limit, current, message).into_list()
}

fn rate_error(rate: u32, retry_after_ms: u64) -> Value {
    let message =
        format!("limit subscribe_rate is {rate} a second: try again in {retry_after_ms} ms");
    let wait = Duration::from_millis(retry_after_ms);
    GraphqlError::rate_limited("subscribe_rate", rate, wait, message).into_list()
}

/// Counts in thousandths of a token, so that one millisecond at 1/s adds a whole unit.
struct TokenBucket {
    thousandths: u64,
    filled: Instant,
}

const TOKEN: u64 = 1_000;

impl TokenBucket {
    fn new(limits: &Limits, now: Instant) -> Self {
        Self { thousandths: u64::from(limits.subscribe_burst) * TOKEN, filled: now }
    }

    /// The error is the time until the next token, in milliseconds.
    fn take(&mut self, limits: &Limits, now: Instant) -> Result<(), u64> {
        let rate = u64::from(limits.subscribe_rate.max(1));
        let full = u64::from(limits.subscribe_burst) * TOKEN;
        let waited = now.saturating_duration_since(self.filled).as_millis() as u64;
        self.thousandths = full.min(self.thousandths.saturating_add(waited.saturating_mul(rate)));
        self.filled = now;
        match self.thousandths.checked_sub(TOKEN) {
            Some(rest) => {
                self.thousandths = rest;
                Ok(())
            }
            None => Err((TOKEN - self.thousandths).div_ceil(rate)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn acknowledged(limits: &Limits) -> (Session, Instant) {
        let now = Instant::now();
        let mut session = Session::new(limits, now);
        assert!(matches!(
            session.receive(r#"{"type":"connection_init"}"#, limits, now),
            Decision::Authenticate(None)
        ));
        session.accept();
        (session, now)
    }

    fn subscribe(id: &str) -> String {
        json!({"type": "subscribe", "id": id, "payload": {"query": "subscription { x }"}})
            .to_string()
    }

    fn begun(decision: Decision) -> OperationRef {
        match decision {
            Decision::Execute { operation, .. } => operation,
            other => panic!("expected Execute, got {other:?}"),
        }
    }

    #[test]
    fn a_reused_id_does_not_revive_its_predecessor() {
        let limits = Limits::default();
        let (mut session, now) = acknowledged(&limits);
        let first = begun(session.receive(&subscribe("a"), &limits, now));
        let ended = session.receive(r#"{"type":"complete","id":"a"}"#, &limits, now);
        assert!(matches!(ended, Decision::Stop { operation, answer: None } if operation == first));
        let second = begun(session.receive(&subscribe("a"), &limits, now));
        assert_ne!(first, second);
        assert!(session.finish(first).is_none());
        assert!(session.refuse(first, b"[]").is_none());
        assert_eq!(session.len(), 1);
        assert!(session.start_streaming(first).is_none());
        assert_eq!(session.start_streaming(second).as_deref(), Some("\"a\""));
    }

    #[test]
    fn a_second_subscribe_with_an_id_in_use_closes_also_while_the_first_is_pending() {
        let limits = Limits::default();
        let (mut session, now) = acknowledged(&limits);
        begun(session.receive(&subscribe("a"), &limits, now));
        let second = session.receive(&subscribe("a"), &limits, now);
        assert!(matches!(second, Decision::Close { code: CloseCode::IdInUse, .. }));
    }

    #[test]
    fn the_operation_limit_is_named_in_the_error_and_the_session_goes_on() {
        let limits = Limits { operations_per_socket: 2, ..Limits::default() };
        let (mut session, now) = acknowledged(&limits);
        let first = begun(session.receive(&subscribe("1"), &limits, now));
        begun(session.receive(&subscribe("2"), &limits, now));
        let Decision::Refuse(text) = session.receive(&subscribe("3"), &limits, now) else {
            panic!("expected an error message");
        };
        let reply: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(reply["payload"][0]["extensions"]["name"], "operations_per_socket");
        assert_eq!(reply["payload"][0]["extensions"]["limit"], 2);
        assert_eq!(reply["payload"][0]["extensions"]["current"], 2);
        session.finish(first);
        begun(session.receive(&subscribe("3"), &limits, now));
    }

    #[test]
    fn the_pending_limit_counts_only_what_is_being_worked_out() {
        let limits = Limits { pending_operations_per_socket: 1, ..Limits::default() };
        let (mut session, now) = acknowledged(&limits);
        let first = begun(session.receive(&subscribe("1"), &limits, now));
        assert!(matches!(session.receive(&subscribe("2"), &limits, now), Decision::Refuse(_)));
        assert!(session.start_streaming(first).is_some());
        assert!(session.start_streaming(first).is_some());
        begun(session.receive(&subscribe("2"), &limits, now));
    }

    #[test]
    fn the_subscribe_rate_says_when_to_try_again() {
        let limits = Limits { subscribe_rate: 10, subscribe_burst: 2, ..Limits::default() };
        let (mut session, now) = acknowledged(&limits);
        for id in ["1", "2"] {
            begun(session.receive(&subscribe(id), &limits, now));
        }
        let Decision::Refuse(text) = session.receive(&subscribe("3"), &limits, now) else {
            panic!("expected an error message");
        };
        let reply: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(reply["payload"][0]["extensions"]["retryAfterMs"], 100);
        begun(session.receive(&subscribe("3"), &limits, now + Duration::from_millis(100)));
    }

    #[test]
    fn a_subscribe_before_the_init_and_a_second_init_close_the_session() {
        let limits = Limits::default();
        let now = Instant::now();
        let mut session = Session::new(&limits, now);
        let early = session.receive(&subscribe("1"), &limits, now);
        assert!(matches!(early, Decision::Close { code: CloseCode::Unauthorized, .. }));
        let (mut session, now) = acknowledged(&limits);
        let again = session.receive(r#"{"type":"connection_init"}"#, &limits, now);
        assert!(matches!(again, Decision::Close { code: CloseCode::TooManyInits, .. }));
    }
}
