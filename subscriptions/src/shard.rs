//! One thread's share of the sockets. A push into a stream rings the shard's doorbell; the shard
//! reads the new frames once and writes them to each of its readers itself, inline: no task is
//! woken, nothing is queued and nothing allocated for a reader that keeps up.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use slab::Slab;
use tokio::time::{Instant, MissedTickBehavior};

use crate::connection::{Connection, Guard, Shared, Socket};
use crate::dialect::Dialect;
use crate::executor::{Executor, StreamPlace};
use crate::limits::{
    CONTIGUOUS_BYTES, FRAMES_PER_WRITE, LAST_SLICE, Limits, SWEEP_INTERVAL, WRITES_PER_LOOK,
    WRITES_PER_YIELD,
};
use crate::meters::Meters;
use crate::message::{CloseCode, Contiguous, PREFIX_BYTES, next_prefix};
use crate::sse_reader::{Bell, Reader};
use crate::ring::Frame;
use crate::rounds::{Rounds, Ticket};
use crate::streams::{Doorbell, Listener, ResponseStream, Streams};
use crate::worker::{Turn, Worker};

/// One read takes at most this much from a socket; shared by all sockets of the shard.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// How a new socket begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// In the subprotocol that was agreed on.
    Speak(Dialect),
    /// Accepted only to be told why not: a browser can't read an HTTP error.
    Refuse { code: CloseCode, reason: &'static str },
}

/// When a fan-out writes to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    First,
    /// After all others, and after later events to these. For the sockets of an address that has
    /// many, so that others don't wait until each of these is written to.
    Last,
}

/// See the module's text. Lives on one thread, inside a tokio `LocalSet`.
pub struct Shard<S, E: Executor> {
    pub(crate) executor: Arc<E>,
    pub(crate) limits: Limits,
    pub(crate) meters: Arc<Meters>,
    streams: Arc<Streams>,
    doorbell: Arc<Doorbell>,
    connections: RefCell<Slab<Shared<S, E>>>,
    read: RefCell<Table<S, E>>,
    clock: Cell<Instant>,
    tally: Tally,
    rounds: Rounds,
    last: RefCell<LastRound>,
    draining: Cell<bool>,
    /// Readers that are no connections of ours.
    readers: Cell<usize>,
    /// Some of them were woken since the last turn.
    rang: Cell<bool>,
    // Scratch memory of one write or read at a time, kept to allocate nothing on the hot path.
    pub(crate) read_buffer: RefCell<Box<[u8]>>,
    pub(crate) prefixes: RefCell<Vec<u8>>,
    pub(crate) contiguous: RefCell<Contiguous>,
    pub(crate) frames: RefCell<Vec<Frame>>,
    gathered: RefCell<Vec<u8>>,
    /// Of each operation that takes part in a write: its slot, its place and its number of frames.
    counted: RefCell<Vec<(u32, Seat, usize)>>,
}

/// When the worker has something to do.
async fn woken(worker: Option<&dyn Worker>, look: Option<Instant>) {
    let Some(worker) = worker else { return std::future::pending().await };
    match look {
        Some(look) => drop(tokio::time::timeout_at(look, worker.wake().notified()).await),
        None => worker.wake().notified().await,
    }
}

/// Gives back what a connection holds, also when its task panics.
struct Ending<S: Socket, E: Executor> {
    connection: Shared<S, E>,
    shard: Rc<Shard<S, E>>,
}

impl<S: Socket, E: Executor> Drop for Ending<S, E> {
    fn drop(&mut self) {
        self.connection.borrow_mut().end(&self.shard);
    }
}

/// The streams that this shard has readers of.
struct Table<S, E: Executor> {
    places: Slab<Local<S, E>>,
    by_id: HashMap<u64, usize>,
}

struct Local<S, E: Executor> {
    stream: Arc<ResponseStream>,
    listener: Arc<Listener>,
    /// What is handed out to the readers of either rank, by [`Rank`].
    batches: [Batch; 2],
    /// A slab, so that a reader that leaves moves nobody while others are being served.
    members: Slab<Member<S, E>>,
    /// How many of these are written to last.
    last: usize,
    /// It is in [`LastRound::next`].
    is_queued: bool,
    /// Those that read by themselves: they are woken, and no more.
    readers: Slab<Rc<Bell>>,
}

/// The frames of a ring that are handed out now, from index `start` on.
#[derive(Default)]
struct Batch {
    start: u64,
    frames: Vec<Frame>,
    /// Index in the ring up to which every reader that isn't waiting was served, or is now.
    next: u64,
    /// The ring no longer holds what the readers need next: each asks its source.
    overrun: bool,
}

/// Where the fan-out to the sockets of the last rank stands. It is interrupted after each moment.
#[derive(Default)]
struct LastRound {
    /// Places that have batches for these sockets.
    places: Vec<usize>,
    /// The index in `places`, and the reader there, that come next.
    at: (usize, usize),
    /// Places that have new frames for the next round.
    next: Vec<usize>,
}

impl<S, E: Executor> Local<S, E> {
    /// Puts its place among those that the next round of the last rank serves, once.
    fn queue(&mut self, place: usize, next: &mut Vec<usize>) {
        if !std::mem::replace(&mut self.is_queued, true) {
            next.push(place);
        }
    }
}

impl Batch {
    fn starting_at(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// Takes new frames out of a stream's ring; false if there are none.
    fn read(&mut self, stream: &ResponseStream) -> bool {
        self.start = self.next;
        if stream.read(self.next, FRAMES_PER_WRITE, &mut self.frames) {
            self.next += self.frames.len() as u64;
        } else {
            // The thread slept for longer than the ring is deep.
            self.next = stream.next_index();
            self.overrun = true;
        }
        self.overrun || !self.frames.is_empty()
    }

    /// Frames that were handed out.
    fn end(&mut self) -> usize {
        self.overrun = false;
        self.frames.drain(..).count()
    }

    /// Those that a reader at `next` has not been sent.
    fn fresh(&self, next: u64) -> &[Frame] {
        let skip = usize::try_from(next - self.start.min(next)).unwrap_or(usize::MAX);
        self.frames.get(skip..).unwrap_or_default()
    }
}

/// A place in a stream: all that a reader which keeps up costs. Kept here rather than with its
/// connection, one behind the other in memory, as a fan-out runs over thousands of them.
struct Member<S, E: Executor> {
    connection: Weak<RefCell<Connection<S, E>>>,
    /// Index in the ring of the next frame to send.
    next: u64,
    /// The last sequence sent.
    seen: u64,
    slot: u32,
    /// Reads the ring itself, in its connection's turns, until it is up to date.
    waits: bool,
    rank: Rank,
    dialect: Dialect,
    id: InlineId,
}

/// An operation's id as JSON, in place where it is short, as nearly all are (a UUID has 38 bytes).
enum InlineId {
    Short { length: u8, bytes: [u8; INLINE_ID_BYTES] },
    Long(Rc<str>),
}

const INLINE_ID_BYTES: usize = 46;

impl InlineId {
    fn new(id: &Rc<str>) -> Self {
        let mut bytes = [0; INLINE_ID_BYTES];
        match bytes.get_mut(..id.len()) {
            Some(own) => {
                own.copy_from_slice(id.as_bytes());
                Self::Short { length: id.len() as u8, bytes }
            }
            None => Self::Long(id.clone()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(id) => id.as_bytes(),
        }
    }
}

/// Where the shard knows a reader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    place: u32,
    member: u32,
}

/// Counts of this thread, added to the shared meters once a turn.
#[derive(Default)]
struct Tally {
    delivered: Cell<u64>,
    bytes: Cell<u64>,
    writes: Cell<u64>,
}

fn bump(cell: &Cell<u64>, by: usize) {
    cell.set(cell.get() + by as u64);
}

impl<S: Socket, E: Executor> Shard<S, E> {
    pub fn new(
        executor: Arc<E>,
        streams: Arc<Streams>,
        limits: Limits,
        meters: Arc<Meters>,
    ) -> Rc<Self> {
        Rc::new(Self {
            executor,
            limits,
            meters,
            streams,
            doorbell: Arc::default(),
            connections: RefCell::default(),
            read: RefCell::new(Table { places: Slab::new(), by_id: HashMap::new() }),
            clock: Cell::new(Instant::now()),
            tally: Tally::default(),
            rounds: Rounds::default(),
            last: RefCell::default(),
            draining: Cell::new(false),
            readers: Cell::new(0),
            rang: Cell::new(false),
            read_buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into_boxed_slice()),
            prefixes: RefCell::default(),
            contiguous: RefCell::default(),
            frames: RefCell::default(),
            gathered: RefCell::default(),
            counted: RefCell::default(),
        })
    }

    /// Takes over a socket whose upgrade was answered. `early` are bytes that the client sent
    /// behind its request. The guard is dropped when the connection is gone.
    pub fn adopt(
        self: &Rc<Self>,
        socket: S,
        opening: Opening,
        early: &[u8],
        client: E::Client,
        rank: Rank,
        guard: Option<Guard>,
    ) {
        self.set_now();
        let shard = self.clone();
        let connection = {
            let mut connections = self.connections.borrow_mut();
            let entry = connections.vacant_entry();
            let connection = Connection::share(socket, self, entry.key(), client, rank, guard);
            entry.insert(connection.clone());
            connection
        };
        connection.borrow_mut().open(opening, early, self);
        if self.draining.get() {
            // Its upgrade was under way when the drain began.
            connection.borrow_mut().drain_at(self.now());
        }
        self.meters.sockets_open.add(1);
        self.meters.sockets_opened.add(1);
        tokio::task::spawn_local(async move {
            let ending = Ending { connection, shard };
            poll_fn(|cx| {
                ending.shard.set_now();
                ending.connection.borrow_mut().poll(cx, &ending.shard)
            })
            .await;
        });
    }

    /// The shard's own work: the worker's turns, the fan-out and the clock. Ends when the shard was
    /// told to drain and its last connection is gone.
    pub async fn run(self: Rc<Self>, worker: Option<Arc<dyn Worker>>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rung = Vec::new();
        let mut look = None;
        while !(self.draining.get() && self.is_empty() && self.readers.get() == 0) {
            tokio::select! {
                () = self.doorbell.rung() => {}
                () = woken(worker.as_deref(), look) => {}
                _ = sweep.tick() => self.sweep(),
            }
            while let Turn::Again = self.turn(worker.as_deref(), &mut rung, &mut look).await {
                // Sockets and the clock have their turn between two of the worker's.
                tokio::task::yield_now().await;
                if sweep.tick().now_or_never().is_some() {
                    self.sweep();
                }
            }
        }
        self.rounds.end();
    }

    /// Lets the worker push, and hands out what is in the rings.
    async fn turn(
        &self,
        worker: Option<&dyn Worker>,
        rung: &mut Vec<usize>,
        look: &mut Option<Instant>,
    ) -> Turn {
        let turn = worker.map_or(Turn::Done { look: None }, Worker::turn);
        if let Turn::Done { look: next } = turn {
            *look = next;
        }
        self.doorbell.take(rung);
        // Unconstrained: tokio's budget would make sockets look full.
        let goes_on = tokio::task::coop::unconstrained(self.deliver(rung)).await;
        self.settle_tally();
        let admits = self.rounds.begin();
        let again = turn == Turn::Again || goes_on || admits;
        if again || self.rang.take() {
            // There is a backlog. A thread that an event or a client needs may wait for this
            // processor: by itself the system would let it wait for up to a tick, 4 ms.
            std::thread::yield_now();
        }
        if again { Turn::Again } else { turn }
    }

    /// Runs the work of a connection that is no WebSocket in turn with them: it is polled while a
    /// round of the shard has time left for sockets.
    pub async fn in_turn<T>(&self, client: &E::Client, work: impl Future<Output = T>) -> T {
        let (mut work, ticket) = (pin!(work), Ticket::default());
        poll_fn(|cx| {
            if !self.admits(&ticket, client, cx.waker()) {
                return Poll::Pending;
            }
            let begin = std::time::Instant::now();
            let polled = work.as_mut().poll(cx);
            self.spend(begin.elapsed());
            polled
        })
        .await
    }

    /// Whether a connection has its turn now. Otherwise it is woken after one of the next fan-outs.
    pub(crate) fn admits(&self, ticket: &Ticket, client: &E::Client, waker: &Waker) -> bool {
        let admits = self.rounds.admits(ticket, self.executor.priority(client), waker);
        if !admits {
            self.doorbell.wake();
        }
        admits
    }

    /// Counts what a connection's turn took.
    pub(crate) fn spend(&self, took: Duration) {
        self.rounds.spend(took);
    }

    /// Closes every connection with 1012, evenly spread over `spread`, so that a crowd does not
    /// come back at one instant.
    pub fn drain(&self, spread: Duration) {
        self.set_now();
        self.draining.set(true);
        let connections = self.connections.borrow();
        let count = (connections.len() + self.readers.get()).max(1) as u32;
        let when = |place: usize| self.now() + spread * place as u32 / count;
        for (place, (_, connection)) in connections.iter().enumerate() {
            connection.borrow_mut().drain_at(when(place));
        }
        let table = self.read.borrow();
        let bells = table.places.iter().flat_map(|(_, local)| local.readers.iter());
        for (place, (_, bell)) in bells.enumerate() {
            bell.drain_at(when(connections.len() + place));
        }
        self.doorbell.wake();
    }

    /// Gives back a stream that an execution opened and nobody will read.
    pub fn give_back(&self, stream: &ResponseStream) {
        self.streams.release(stream);
    }

    /// A reader of a stream that an execution opened, for a connection that is not a WebSocket of
    /// ours. It goes on behind `after`, or begins.
    pub fn read(
        self: &Rc<Self>,
        stream: Arc<ResponseStream>,
        after: Option<String>,
        place: Option<Box<dyn StreamPlace>>,
    ) -> Reader<S, E> {
        Reader::new(self.clone(), stream, after, place)
    }

    /// Connections alive.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands the new frames of some places to their readers of the first rank, and those that are
    /// left to readers of the last rank, for a moment. What one socket gets of them leaves in one
    /// write. Whether some of the last rank still wait.
    async fn deliver(&self, rung: &mut Vec<usize>) -> bool {
        let mut writes = 0;
        while !rung.is_empty() {
            self.set_now();
            rung.retain(|place| self.read_batch(*place));
            self.serve_first(rung, &mut writes).await;
            // Those whose batch was full may have more.
            rung.retain(|place| self.end_batch(*place, Rank::First) == FRAMES_PER_WRITE);
            if !rung.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        if self.begin_last_round() && writes > 0 {
            // Who was just written to may wait for this processor.
            std::thread::yield_now();
        }
        self.serve_last()
    }

    /// Hands the batches of some places to their readers of the first rank.
    async fn serve_first(&self, places: &[usize], writes: &mut usize) {
        let several = places.len() > 1;
        for place in places {
            for member in 0..self.members(*place) {
                if !self.serve(*place, member, Rank::First, several) {
                    continue;
                }
                *writes += 1;
                if writes.is_multiple_of(WRITES_PER_YIELD) {
                    tokio::task::yield_now().await;
                    self.set_now();
                }
            }
        }
    }

    /// Reads what the next round hands out, if none is under way. Whether one is now.
    fn begin_last_round(&self) -> bool {
        let LastRound { places, at, next } = &mut *self.last.borrow_mut();
        if places.is_empty() {
            std::mem::swap(places, next);
            let mut table = self.read.borrow_mut();
            places.retain(|place| {
                let Some(local) = table.places.get_mut(*place) else { return false };
                // Another stream may have got the place of one that is gone.
                std::mem::take(&mut local.is_queued)
                    && local.batches[Rank::Last as usize].read(&local.stream)
            });
            *at = (0, 0);
        }
        !places.is_empty()
    }

    /// Goes on with the round of the last rank for a moment. Whether anything is left.
    fn serve_last(&self) -> bool {
        let LastRound { places, at, next } = &mut *self.last.borrow_mut();
        let several = places.len() > 1;
        let (begin, mut writes) = (std::time::Instant::now(), 0);
        while let Some(place) = places.get(at.0).copied() {
            for member in at.1..self.members(place) {
                if self.serve(place, member, Rank::Last, several) {
                    writes += 1;
                    if writes % WRITES_PER_LOOK == 0 && begin.elapsed() >= LAST_SLICE {
                        at.1 = member + 1;
                        return true;
                    }
                }
            }
            *at = (at.0 + 1, 0);
        }
        for place in places.drain(..) {
            let mut table = self.read.borrow_mut();
            let Some(local) = table.places.get_mut(place) else { continue };
            if local.batches[Rank::Last as usize].end() == FRAMES_PER_WRITE {
                local.queue(place, next);
            }
        }
        !next.is_empty()
    }

    /// Readers of a place, with those that are gone.
    fn members(&self, place: usize) -> usize {
        self.read.borrow().places.get(place).map_or(0, |local| local.members.capacity())
    }

    /// Takes new frames of a place's ring for the readers of the first rank; false if there are
    /// none. Those of the last rank get theirs in the next round.
    fn read_batch(&self, place: usize) -> bool {
        let mut table = self.read.borrow_mut();
        let Some(local) = table.places.get_mut(place) else { return false };
        local.listener.answered();
        for (_, bell) in &local.readers {
            bell.ring();
            self.rang.set(true);
        }
        let [first, last] = &mut local.batches;
        let fresh = first.read(&local.stream);
        if local.last == 0 {
            // A reader that joins that rank begins at the end of the ring.
            last.next = first.next;
        } else if fresh {
            local.queue(place, &mut self.last.borrow_mut().next);
        }
        fresh
    }

    /// Frames that were handed out to the readers of this rank.
    fn end_batch(&self, place: usize, rank: Rank) -> usize {
        let mut table = self.read.borrow_mut();
        table.places.get_mut(place).map_or(0, |local| local.batches[rank as usize].end())
    }

    /// Hands a place's batch to one reader of this rank, unless it waits; where it has several
    /// frames or `several` places have a batch, with those of the other operations on its socket.
    /// Whether there was something to hand out.
    fn serve(&self, place: usize, member: usize, rank: Rank, several: bool) -> bool {
        let mut table = self.read.borrow_mut();
        let Some(local) = table.places.get_mut(place) else { return false };
        let Local { batches, members, .. } = local;
        let Some(member) = members.get_mut(member).filter(|one| !one.waits && one.rank == rank)
        else {
            return false;
        };
        let batch = &batches[rank as usize];
        debug_assert!(
            batch.overrun || member.next >= batch.start,
            "a reader that is further back than the shard waits"
        );
        let fresh = batch.fresh(member.next);
        if fresh.is_empty() && !batch.overrun {
            return false;
        }
        let Some(connection) = member.connection.upgrade() else { return false };
        let mut connection = connection.borrow_mut();
        if fresh.len() > 1 || (several && connection.streams() > 1) {
            self.serve_all(&mut table, &mut connection);
            return true;
        }
        if let [frame] = fresh
            && frame.tail.len() <= CONTIGUOUS_BYTES
        {
            let mut contiguous = self.contiguous.borrow_mut();
            let message = contiguous.message(member.dialect, member.id.as_bytes(), &frame.tail);
            if connection.offer(message, &frame.tail, self).is_ok() {
                member.next += 1;
                member.seen = frame.sequence;
                bump(&self.tally.delivered, 1);
                bump(&self.tally.writes, 1);
                return true;
            }
        }
        // A large frame, or no room: in the connection's own turn, for which it may have to queue.
        member.waits = true;
        connection.wait(member.slot);
        true
    }

    /// Writes the batches of all operations of a connection in one piece. What can't leave so waits
    /// for the connection's own turns.
    fn serve_all(&self, table: &mut Table<S, E>, connection: &mut Connection<S, E>) {
        let mut message = self.gathered.borrow_mut();
        message.clear();
        let mut counted = self.counted.borrow_mut();
        counted.clear();
        let mut frames = 0;
        for (slot, seat) in connection.seats() {
            let Local { batches, members, .. } = &mut table.places[seat.place as usize];
            let member = &mut members[seat.member as usize];
            let batch = &batches[member.rank as usize];
            let fresh = batch.fresh(member.next);
            if member.waits || (fresh.is_empty() && !batch.overrun) {
                continue;
            }
            let before = member.id.as_bytes().len() + PREFIX_BYTES;
            let bytes: usize = fresh.iter().map(|frame| before + frame.tail.len()).sum();
            let fits = message.len() + bytes <= CONTIGUOUS_BYTES
                && frames + fresh.len() <= FRAMES_PER_WRITE;
            counted.push((slot, seat, if fits && !batch.overrun { fresh.len() } else { 0 }));
            if fits && !batch.overrun {
                frames += fresh.len();
                for frame in fresh {
                    let (dialect, id) = (member.dialect, member.id.as_bytes());
                    next_prefix(dialect, id, frame.tail.len(), &mut message);
                    message.extend_from_slice(&frame.tail);
                }
            }
        }
        let sent = frames > 0 && connection.offer(&message, &Bytes::new(), self).is_ok();
        if sent {
            bump(&self.tally.delivered, frames);
            bump(&self.tally.writes, 1);
        }
        for (slot, seat, count) in counted.drain(..) {
            let Local { batches, members, .. } = &mut table.places[seat.place as usize];
            let member = &mut members[seat.member as usize];
            if sent
                && let Some(last) = batches[member.rank as usize].fresh(member.next)[..count].last()
            {
                member.seen = last.sequence;
                member.next += count as u64;
            } else {
                member.waits = true;
                connection.wait(slot);
            }
        }
    }

    fn sweep(&self) {
        self.set_now();
        for (_, connection) in self.connections.borrow().iter() {
            connection.borrow_mut().sweep(self.now(), self);
        }
    }

    /// A reader begins: returns where the shard knows it.
    pub(crate) fn join(
        &self,
        stream: &Arc<ResponseStream>,
        connection: Weak<RefCell<Connection<S, E>>>,
        slot: u32,
        id: &Rc<str>,
        dialect: Dialect,
        rank: Rank,
    ) -> Seat {
        self.meters.readers_open.add(1);
        let mut table = self.read.borrow_mut();
        let place = self.place(&mut table, stream);
        let id = InlineId::new(id);
        let member = Member { connection, next: 0, seen: 0, slot, waits: true, rank, dialect, id };
        let local = &mut table.places[place];
        local.last += usize::from(rank == Rank::Last);
        Seat { place: place as u32, member: local.members.insert(member) as u32 }
    }

    /// Where this shard knows a stream, from now on if it didn't.
    fn place(&self, table: &mut Table<S, E>, stream: &Arc<ResponseStream>) -> usize {
        let Table { places, by_id } = table;
        *by_id.entry(stream.id()).or_insert_with(|| {
            let entry = places.vacant_entry();
            let place = entry.key();
            let listener = Arc::new(Listener::new(self.doorbell.clone(), place));
            // Listening first: a push after this rings, one before it is below `next`.
            stream.listen(listener.clone());
            let next = stream.next_index();
            entry.insert(Local {
                batches: [Batch::starting_at(next), Batch::starting_at(next)],
                stream: stream.clone(),
                listener,
                members: Slab::new(),
                last: 0,
                is_queued: false,
                readers: Slab::new(),
            });
            place
        })
    }

    /// A reader that is no connection of ours begins.
    pub(crate) fn seat_reader(&self, stream: &Arc<ResponseStream>, bell: Rc<Bell>) -> Seat {
        self.set_now();
        if self.draining.get() {
            bell.drain_at(self.now());
        }
        self.readers.set(self.readers.get() + 1);
        for meter in [&self.meters.readers_open, &self.meters.sockets_open] {
            meter.add(1);
        }
        self.meters.sockets_opened.add(1);
        let mut table = self.read.borrow_mut();
        let place = self.place(&mut table, stream);
        Seat { place: place as u32, member: table.places[place].readers.insert(bell) as u32 }
    }

    /// It ends.
    pub(crate) fn unseat_reader(&self, seat: Seat) {
        self.readers.set(self.readers.get() - 1);
        for meter in [&self.meters.readers_open, &self.meters.sockets_open] {
            meter.subtract(1);
        }
        let mut table = self.read.borrow_mut();
        table.places[seat.place as usize].readers.remove(seat.member as usize);
        self.left(&mut table, seat.place as usize);
        if self.draining.get() {
            self.doorbell.wake();
        }
    }

    /// One of a stream's readers here is gone.
    fn left(&self, table: &mut Table<S, E>, place: usize) {
        let local = &table.places[place];
        self.streams.release(&local.stream);
        if local.members.is_empty() && local.readers.is_empty() {
            let local = table.places.remove(place);
            local.stream.unlisten(&local.listener);
            table.by_id.remove(&local.stream.id());
        }
    }

    fn with<T>(&self, seat: Seat, act: impl FnOnce(&mut Member<S, E>) -> T) -> T {
        let mut table = self.read.borrow_mut();
        act(&mut table.places[seat.place as usize].members[seat.member as usize])
    }

    /// The index in the ring at which a reader goes on, and the last sequence it was sent.
    pub(crate) fn progress(&self, seat: Seat) -> (u64, u64) {
        self.with(seat, |member| (member.next, member.seen))
    }

    pub(crate) fn advance(&self, seat: Seat, next: u64, seen: u64) {
        self.with(seat, |member| (member.next, member.seen) = (next, seen));
    }

    /// The reader has read all there is: from now on the fan-out serves it.
    pub(crate) fn up_to_date(&self, seat: Seat) {
        self.with(seat, |member| member.waits = false);
    }

    /// Appends what stands before a payload of this length for this reader.
    pub(crate) fn prefix(&self, seat: Seat, tail_bytes: usize, into: &mut Vec<u8>) {
        self.with(seat, |member| {
            next_prefix(member.dialect, member.id.as_bytes(), tail_bytes, into);
        });
    }

    /// A reader ends.
    pub(crate) fn leave(&self, seat: Seat) {
        let (place, member) = (seat.place as usize, seat.member as usize);
        self.meters.readers_open.subtract(1);
        let mut table = self.read.borrow_mut();
        let local = &mut table.places[place];
        let left = local.members.remove(member);
        local.last -= usize::from(left.rank == Rank::Last);
        self.left(&mut table, place);
    }

    /// A connection ends.
    pub(crate) fn forget(&self, key: usize) {
        if self.connections.borrow_mut().try_remove(key).is_some() {
            self.meters.sockets_open.subtract(1);
        }
        if self.draining.get() {
            self.doorbell.wake();
        }
    }

    /// The time of this turn; reading the clock for each message would cost more than the rest.
    pub(crate) fn now(&self) -> Instant {
        self.clock.get()
    }

    fn set_now(&self) {
        self.clock.set(Instant::now());
    }

    pub(crate) fn count_delivered(&self, frames: usize) {
        bump(&self.tally.delivered, frames);
    }

    pub(crate) fn count_bytes(&self, bytes: usize) {
        bump(&self.tally.bytes, bytes);
    }

    pub(crate) fn count_writes(&self) {
        bump(&self.tally.writes, 1);
    }

    fn settle_tally(&self) {
        self.meters.frames_delivered.add(self.tally.delivered.take());
        self.meters.bytes_sent.add(self.tally.bytes.take());
        self.meters.writes.add(self.tally.writes.take());
    }
}
