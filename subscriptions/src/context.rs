//! What the connections, the fan-out and the readers of one shard share: its clock, its counters,
//! its subscribers, and buffers that are used for one read or write at a time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::executor::Executor;
use crate::limits::Limits;
use crate::meters::Meters;
use crate::ring::Frame;
use crate::rounds::{Rounds, Ticket};
use crate::signal::{Doorbell, ReaderSignal};
use crate::stream::ResponseStream;
use crate::stream_cursor::Progress;
use crate::subscribers::{Subscriber, SubscriberHandle, Subscribers};

/// One read takes at most this much from a socket; shared by all sockets of the shard.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// See the module's text. `C` is the connection.
pub(crate) struct ShardContext<C, E> {
    pub(crate) executor: Arc<E>,
    pub(crate) limits: Limits,
    pub(crate) meters: Arc<Meters>,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) subscribers: RefCell<Subscribers<C>>,
    pub(crate) rounds: Rounds,
    pub(crate) draining: Cell<bool>,
    clock: Cell<Instant>,
    counters: Counters,
    // Buffers, kept so that the hot path allocates nothing.
    pub(crate) read_buffer: RefCell<Box<[u8]>>,
    pub(crate) prefixes: RefCell<Vec<u8>>,
    pub(crate) frames: RefCell<Vec<Frame>>,
}

/// Counts of this thread, added to the shared meters once a turn.
#[derive(Default)]
struct Counters {
    delivered: Cell<u64>,
    bytes: Cell<u64>,
    writes: Cell<u64>,
}

fn add(cell: &Cell<u64>, count: usize) {
    cell.set(cell.get() + count as u64);
}

impl<C, E: Executor> ShardContext<C, E> {
    pub(crate) fn new(executor: Arc<E>, limits: Limits, meters: Arc<Meters>) -> Self {
        Self {
            executor,
            limits,
            meters,
            doorbell: Arc::default(),
            subscribers: RefCell::default(),
            rounds: Rounds::default(),
            draining: Cell::new(false),
            clock: Cell::new(Instant::now()),
            counters: Counters::default(),
            read_buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into_boxed_slice()),
            prefixes: RefCell::default(),
            frames: RefCell::default(),
        }
    }

    /// The time of this turn; reading the clock for each message would cost more than the rest.
    pub(crate) fn now(&self) -> Instant {
        self.clock.get()
    }

    pub(crate) fn set_now(&self) {
        self.clock.set(Instant::now());
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

    /// An operation begins to read a stream.
    pub(crate) fn subscribe(
        &self,
        stream: &Arc<ResponseStream>,
        subscriber: Subscriber<C>,
    ) -> SubscriberHandle {
        self.meters.readers_open.add(1);
        self.subscribers.borrow_mut().add(stream, &self.doorbell, subscriber)
    }

    /// It ends.
    pub(crate) fn unsubscribe(&self, handle: SubscriberHandle) {
        self.meters.readers_open.subtract(1);
        self.subscribers.borrow_mut().remove(handle);
    }

    /// A reader that is no WebSocket begins.
    pub(crate) fn add_reader(
        &self,
        stream: &Arc<ResponseStream>,
        signal: Rc<ReaderSignal>,
    ) -> SubscriberHandle {
        self.set_now();
        if self.draining.get() {
            signal.drain_at(self.now());
        }
        for meter in [&self.meters.readers_open, &self.meters.sockets_open] {
            meter.add(1);
        }
        self.meters.sockets_opened.add(1);
        self.subscribers.borrow_mut().add_reader(stream, &self.doorbell, signal)
    }

    /// It ends.
    pub(crate) fn remove_reader(&self, handle: SubscriberHandle) {
        for meter in [&self.meters.readers_open, &self.meters.sockets_open] {
            meter.subtract(1);
        }
        self.subscribers.borrow_mut().remove_reader(handle);
        if self.draining.get() {
            self.doorbell.wake();
        }
    }

    pub(crate) fn progress(&self, handle: SubscriberHandle) -> Progress {
        self.subscribers.borrow_mut().get_mut(handle).progress
    }

    pub(crate) fn set_progress(&self, handle: SubscriberHandle, progress: Progress) {
        self.subscribers.borrow_mut().get_mut(handle).progress = progress;
    }

    /// The subscriber has read all there is: from now on the fan-out serves it.
    pub(crate) fn set_up_to_date(&self, handle: SubscriberHandle) {
        self.subscribers.borrow_mut().get_mut(handle).waits = false;
    }

    /// Appends what precedes a payload of this length for this subscriber.
    pub(crate) fn prefix(&self, handle: SubscriberHandle, tail_bytes: usize, into: &mut Vec<u8>) {
        self.subscribers.borrow_mut().get_mut(handle).prefix(tail_bytes, into);
    }

    pub(crate) fn count_delivered(&self, frames: usize) {
        add(&self.counters.delivered, frames);
    }

    pub(crate) fn count_bytes(&self, bytes: usize) {
        add(&self.counters.bytes, bytes);
    }

    pub(crate) fn count_write(&self) {
        add(&self.counters.writes, 1);
    }

    pub(crate) fn flush_counters(&self) {
        self.meters.frames_delivered.add(self.counters.delivered.take());
        self.meters.bytes_sent.add(self.counters.bytes.take());
        self.meters.writes.add(self.counters.writes.take());
    }
}
