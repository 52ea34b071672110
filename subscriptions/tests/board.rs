//! A small hub for the engine's tests: one topic whose state is a few numbered fields, with the
//! same rules that the books have (snapshot, deltas, merge, resume), and nothing of GraphQL.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use spreadly_subscriptions::{
    Budget, Credentials, Execution, Executor, Frame, Grant, InitRefused, Meters, OperationKey,
    OperationKind, Priority, Request, ResponseStream, Resume, SingleResult, Source, StreamLimits,
    Streams,
};
use tokio::time::Instant;

/// How many changes the board remembers; a reader that needs older ones gets a snapshot.
const JOURNAL: usize = 400;

#[derive(Default)]
struct State {
    sequence: u64,
    fields: BTreeMap<u64, u64>,
    /// Which field each sequence touched.
    journal: VecDeque<(u64, u64)>,
    /// Every event as it was pushed.
    kept: Vec<Frame>,
    streams: Vec<(Kind, Arc<ResponseStream>)>,
    /// The last one that was encoded, with the index at which its readers go on, by stream.
    snapshot: HashMap<u64, (Frame, u64)>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// May be merged, like a book.
    Fields,
    /// May not be merged, and nothing is kept.
    Log,
    /// May not be merged, and all is kept where reading takes a while, like trades.
    Kept,
}

/// Events in a page of what is kept.
pub const PAGE: usize = 5;
/// How long a page takes.
pub const PAGE_TAKES: Duration = Duration::from_millis(40);

#[derive(Default)]
pub struct Board {
    state: Mutex<State>,
    pub snapshots_encoded: AtomicU64,
    pub lagged: AtomicU64,
    pub merged: AtomicU64,
    pub too_slow: AtomicU64,
    pub pages: AtomicU64,
    /// Pages never come, as what is kept can't be read.
    pub stuck: AtomicBool,
    /// Snapshots are made on another thread, which takes a while.
    pub elsewhere: AtomicBool,
}

impl Board {
    /// Sets a field, as an event of a feed would.
    pub fn set(&self, field: u64, value: u64, padding: usize) {
        let mut state = self.state.lock();
        let previous = state.sequence;
        state.sequence += 1 + value % 3;
        let sequence = state.sequence;
        state.fields.insert(field, value);
        state.journal.push_back((sequence, field));
        if state.journal.len() > JOURNAL {
            state.journal.pop_front();
        }
        let frame = delta(previous, sequence, [(field, value)], 1, padding);
        state.kept.push(frame.clone());
        for (_, stream) in &state.streams {
            stream.push(frame.clone());
        }
    }

    /// Invalidates what was pushed, though this board would push the same again.
    pub fn invalidate(&self) {
        let mut state = self.state.lock();
        state.snapshot.clear();
        state.streams.iter().for_each(|(_, stream)| stream.invalidate());
    }

    pub fn heartbeat(&self) {
        let state = self.state.lock();
        for (_, stream) in &state.streams {
            let body = json!({"data": {"beat": state.sequence}});
            stream.push(Frame::new(state.sequence, state.sequence, body.to_string().into_bytes()));
        }
    }

    pub fn fields(&self) -> (u64, BTreeMap<u64, u64>) {
        let state = self.state.lock();
        (state.sequence, state.fields.clone())
    }

    fn snapshot(&self, state: &mut State, stream: &ResponseStream, reason: &str) -> Resume {
        if reason == "INITIAL"
            && let Some((frame, next)) = state.snapshot.get(&stream.id())
            && stream.backlog_bytes(*next).is_some()
        {
            return Resume::Frames { frames: vec![frame.clone()], next: *next };
        }
        self.snapshots_encoded.fetch_add(1, Ordering::Relaxed);
        let fields: Vec<_> = state.fields.iter().collect();
        let body = json!({"data": {
            "snapshot": state.sequence, "reason": reason, "fields": fields,
        }});
        let frame = Frame::new(state.sequence, state.sequence, body.to_string().into_bytes());
        if reason == "INITIAL" {
            state.snapshot.insert(stream.id(), (frame.clone(), stream.next_index()));
        }
        let next = stream.next_index();
        if !self.elsewhere.load(Ordering::Relaxed) {
            return Resume::Frames { frames: vec![frame], next };
        }
        Resume::Pending(Box::pin(async move {
            tokio::time::sleep(PAGE_TAKES).await;
            Resume::Frames { frames: vec![frame], next }.into()
        }))
    }

    /// What follows `seen`: from the ring, else a page of what is kept, read without the lock.
    fn replay(self: &Arc<Self>, stream: &ResponseStream, seen: u64) -> Resume {
        let state = self.state.lock();
        let until = state.sequence;
        let index = match seen == until {
            true => Some(stream.next_index()),
            false => stream.index_after(seen),
        };
        if let Some(next) = index {
            return Resume::Ring { seen, next };
        }
        drop(state);
        let board = self.clone();
        Resume::Throttled(Box::pin(async move {
            tokio::time::sleep(PAGE_TAKES).await;
            if board.stuck.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            board.pages.fetch_add(1, Ordering::Relaxed);
            let state = board.state.lock();
            let first = state.kept.partition_point(|frame| frame.sequence <= seen);
            let following = state.kept[first..].iter().take_while(|frame| frame.sequence <= until);
            let frames = following.take(PAGE).cloned().collect();
            Resume::Page(frames).into()
        }))
    }

    fn since(&self, state: &State, seen: u64, stream: &ResponseStream) -> Option<Resume> {
        if seen == state.sequence {
            return Some(Resume::Ring { seen, next: stream.next_index() });
        }
        let floor = state.journal.front().map_or(0, |(sequence, _)| *sequence);
        if seen < floor {
            return None;
        }
        let later = state.journal.iter().filter(|(sequence, _)| *sequence > seen);
        let count = later.clone().count();
        let touched: BTreeMap<u64, u64> =
            later.map(|(_, field)| (*field, state.fields[field])).collect();
        let frame = delta(seen, state.sequence, touched, count, 0);
        Some(Resume::Frames { frames: vec![frame], next: stream.next_index() })
    }
}

fn delta(
    previous: u64,
    sequence: u64,
    set: impl IntoIterator<Item = (u64, u64)>,
    events: usize,
    padding: usize,
) -> Frame {
    let set: Vec<_> = set.into_iter().collect();
    let body = json!({"data": {
        "previous": previous, "sequence": sequence, "set": set, "events": events,
        "padding": "x".repeat(padding),
    }});
    Frame::new(previous, sequence, body.to_string().into_bytes())
}

struct BoardSource {
    board: Arc<Board>,
    kind: Kind,
}

impl Source for BoardSource {
    fn attach(&self, stream: &Arc<ResponseStream>) {
        self.board.state.lock().streams.push((self.kind, stream.clone()));
    }

    fn join(&self, stream: &ResponseStream, after: Option<&str>) -> Resume {
        if let (Kind::Kept, Some(Ok(seen))) = (self.kind, after.map(str::parse)) {
            return self.board.replay(stream, seen);
        }
        let mut state = self.board.state.lock();
        match after.map(str::parse) {
            None => self.board.snapshot(&mut state, stream, "INITIAL"),
            Some(Err(_)) => Resume::Refused(Bytes::from_static(b"[{\"message\":\"bad cursor\"}]")),
            Some(Ok(seen)) => match stream.index_after(seen) {
                Some(next) => Resume::Ring { seen, next },
                None => match self.board.since(&state, seen, stream) {
                    Some(start) => start,
                    None => self.board.snapshot(&mut state, stream, "RESUME_TOO_OLD"),
                },
            },
        }
    }

    fn catch_up(&self, stream: &ResponseStream, seen: u64) -> Resume {
        match self.kind {
            Kind::Fields => {}
            Kind::Log => {
                self.board.too_slow.fetch_add(1, Ordering::Relaxed);
                return Resume::CannotContinue;
            }
            Kind::Kept => return self.board.replay(stream, seen),
        }
        let mut state = self.board.state.lock();
        match self.board.since(&state, seen, stream) {
            Some(start) => {
                self.board.merged.fetch_add(1, Ordering::Relaxed);
                start
            }
            None => {
                self.board.lagged.fetch_add(1, Ordering::Relaxed);
                self.board.snapshot(&mut state, stream, "LAGGED")
            }
        }
    }

    /// The board pushes for any reader.
    fn advance(&self, _: &ResponseStream) {}

    fn detach(&self, stream: &ResponseStream) {
        let mut state = self.board.state.lock();
        state.snapshot.remove(&stream.id());
        state.streams.retain(|(_, one)| one.id() != stream.id());
    }
}

/// Queries: `fields`, `log`, `kept` (subscriptions), `ask` (one result), `slow` (the same, which
/// takes a while to begin), `late` (refused after a while), `never` (a result that does not come).
/// All others are refused. Variable `after` is the cursor, `own` makes the key unshared, `owner` is
/// who opens the stream.
pub struct BoardExecutor {
    pub board: Arc<Board>,
    pub streams: Arc<Streams>,
    /// What clients may still send before their budget is exceeded.
    pub message_bytes: AtomicUsize,
}

impl BoardExecutor {
    pub fn new(limits: StreamLimits) -> (Arc<Self>, Arc<Meters>) {
        let meters = Arc::new(Meters::default());
        let streams = Arc::new(Streams::new(limits, meters.clone()));
        let message_bytes = AtomicUsize::new(usize::MAX);
        (Arc::new(Self { board: Arc::default(), streams, message_bytes }), meters)
    }
}

impl Executor for BoardExecutor {
    type Principal = ();
    type Client = ();

    fn charge_message(&self, (): &(), bytes: usize) -> Budget {
        let left = self.message_bytes.load(Ordering::Relaxed).saturating_sub(bytes + 1);
        self.message_bytes.store(left, Ordering::Relaxed);
        if left > 0 { Budget::Within } else { Budget::Exceeded }
    }

    fn measure<T>(&self, (): &(), work: impl FnOnce() -> T) -> T {
        work()
    }

    fn priority(&self, (): &()) -> Priority {
        Priority::High
    }

    fn authenticate(
        &self,
        credentials: Credentials,
        (): &(),
    ) -> BoxFuture<'static, Result<Grant<()>, InitRefused>> {
        let Credentials::Init(payload) = credentials else { panic!("{credentials:?}") };
        let payload = payload.unwrap_or_default();
        let millis = |name| payload.get(name).and_then(Value::as_u64).map(Duration::from_millis);
        let (delay, lifetime) = (millis("delayMs"), millis("lifetimeMs"));
        let refused = payload.contains_key("refuse");
        async move {
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            if refused {
                return Err(InitRefused { reason: "Forbidden".to_owned() });
            }
            Ok(Grant {
                principal: (),
                expires_at: lifetime.map(|lifetime| Instant::now() + lifetime),
            })
        }
        .boxed()
    }

    fn kind(&self, request: &Request, (): &()) -> Option<OperationKind> {
        match request.query.as_str() {
            "fields" | "log" => Some(OperationKind::Subscription),
            "ask" | "slow" | "never" => Some(OperationKind::Query),
            _ => None,
        }
    }

    fn execute(&self, request: Request, (): &()) -> Execution {
        let kind = match request.query.as_str() {
            "fields" => Kind::Fields,
            "log" => Kind::Log,
            "kept" => Kind::Kept,
            "ask" | "slow" => {
                if request.query == "slow" {
                    // Longer than a socket's turn, by the clock of the system, not of the test.
                    std::thread::sleep(Duration::from_millis(2));
                }
                let answer = json!({"data": {"ask": self.board.fields().0}}).to_string();
                let result = SingleResult { json: answer.into(), has_errors: false };
                return Execution::Single(Box::pin(async move { Ok(result) }));
            }
            "never" => return Execution::Single(Box::pin(std::future::pending())),
            "late" => {
                return Execution::Single(Box::pin(async {
                    tokio::time::sleep(PAGE_TAKES).await;
                    Err(Bytes::from_static(b"[{\"message\":\"not valid\"}]"))
                }));
            }
            _ => return Execution::Refused(Bytes::from_static(b"[{\"message\":\"unknown\"}]")),
        };
        let mut variables = request.variables.unwrap_or_default();
        let after = variables.remove("after").and_then(|after| Some(after.as_str()?.to_owned()));
        let owner = variables.remove("owner").and_then(|owner| owner.as_u64()).unwrap_or(0);
        let key = OperationKey {
            document: request.query,
            operation_name: None,
            variables: Value::Object(variables).to_string(),
            audience: String::new(),
            cursor_extension: false,
        };
        let source = BoardSource { board: self.board.clone(), kind };
        match self.streams.open(key, owner, || Ok(Box::new(source) as Box<dyn Source>)) {
            Ok(stream) => Execution::Stream { stream, after, permit: None },
            Err(_) => Execution::Refused(Bytes::from_static(b"[{\"message\":\"full\"}]")),
        }
    }
}
