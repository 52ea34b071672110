//! A reader of a stream that is no WebSocket: whoever owns its connection asks for frames when it
//! can send some, and sends them itself. It reads the same ring as everyone else, so one that is
//! slow costs a number, and what is pushed is encoded once for all.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::Socket;
use crate::executor::{Executor, StreamPlace};
use crate::limits::{FRAMES_PER_WRITE, START_DEADLINE};
use crate::ring::Frame;
use crate::shard::{Seat, Shard};
use crate::streams::{ResponseStream, Start};

/// How the shard tells a reader something: that its stream has news, or when to end.
#[derive(Default)]
pub(crate) struct Bell {
    notify: Notify,
    drain_at: Cell<Option<Instant>>,
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.notify.notify_one();
    }

    pub(crate) fn drain_at(&self, when: Instant) {
        self.drain_at.set(Some(when));
        self.ring();
    }
}

/// Why there are no more frames.
#[derive(Debug)]
pub enum End {
    /// The source refused: a JSON array of GraphQL errors.
    Refused(bytes::Bytes),
    /// What was missed can't be told any more.
    TooSlow,
    /// The hub goes away.
    Draining,
}

/// See the module's text. Counted like a socket with one operation until it is dropped.
pub struct Reader<S: Socket, E: Executor> {
    shard: Rc<Shard<S, E>>,
    stream: Arc<ResponseStream>,
    bell: Rc<Bell>,
    seat: Seat,
    goes_on: GoesOn,
    /// Index in the ring of the next frame.
    next: u64,
    /// The last sequence that was read.
    seen: u64,
    place: Option<Box<dyn StreamPlace>>,
}

/// Where the next frames come from.
enum GoesOn {
    /// From where the source says, which was not asked yet.
    Join(Option<String>),
    Ring,
    /// From the source again, behind the page that was read.
    Ask,
}

impl<S: Socket, E: Executor> Reader<S, E> {
    pub(crate) fn new(
        shard: Rc<Shard<S, E>>,
        stream: Arc<ResponseStream>,
        after: Option<String>,
        place: Option<Box<dyn StreamPlace>>,
    ) -> Self {
        let bell = Rc::<Bell>::default();
        let seat = shard.seat_reader(&stream, bell.clone());
        let goes_on = GoesOn::Join(after);
        Self { shard, stream, bell, seat, goes_on, next: 0, seen: 0, place }
    }

    /// The next frames, at least one, as soon as there are some. Not to be given up halfway: what
    /// it has read by then is lost with it.
    pub async fn frames(&mut self) -> Result<Vec<Frame>, End> {
        loop {
            self.check_drain()?;
            let source = self.stream.source();
            let mut start = match std::mem::replace(&mut self.goes_on, GoesOn::Ring) {
                GoesOn::Join(after) => source.join(&self.stream, after.as_deref()),
                GoesOn::Ask => source.catch_up(&self.stream, self.seen),
                GoesOn::Ring => {
                    let mut frames = Vec::new();
                    if self.stream.read(self.next, FRAMES_PER_WRITE, &mut frames) {
                        if frames.is_empty() {
                            self.wait().await;
                            continue;
                        }
                        self.next += frames.len() as u64;
                        return Ok(self.taken(frames));
                    }
                    self.shard.meters.catch_ups.add(1);
                    source.catch_up(&self.stream, self.seen)
                }
            };
            let start = loop {
                let (answer, in_turn) = match start.awaited() {
                    Ok(awaited) => awaited,
                    Err(start) => break start,
                };
                let place = self.place.as_ref().filter(|_| in_turn);
                if let Some(wait) = place.and_then(|place| place.turn()) {
                    tokio::time::sleep(wait).await;
                }
                let answer = tokio::time::timeout(START_DEADLINE, answer).await;
                start = answer.unwrap_or(Start::TooSlow);
            };
            match start {
                Start::Ring { seen, next } => (self.seen, self.next) = (seen, next),
                Start::Frames { frames, next } => {
                    self.next = next;
                    return Ok(self.taken(frames));
                }
                Start::Page(frames) => {
                    self.shard.meters.replayed_pages.add(1);
                    self.goes_on = GoesOn::Ask;
                    return Ok(self.taken(frames));
                }
                Start::Refused(errors) => return Err(End::Refused(errors)),
                Start::TooSlow | Start::Later(_) | Start::Soon(_) => return Err(End::TooSlow),
            }
        }
    }

    fn taken(&mut self, frames: Vec<Frame>) -> Vec<Frame> {
        self.seen = frames.last().map_or(self.seen, |last| last.sequence);
        self.shard.count_delivered(frames.len());
        self.shard.count_bytes(frames.iter().map(|frame| frame.tail.len()).sum());
        frames
    }

    fn check_drain(&self) -> Result<(), End> {
        match self.bell.drain_at.get() {
            Some(when) if Instant::now() >= when => Err(End::Draining),
            _ => Ok(()),
        }
    }

    async fn wait(&self) {
        let rung = self.bell.notify.notified();
        match self.bell.drain_at.get() {
            // Either way the caller looks at both again.
            Some(when) => drop(tokio::time::timeout_at(when, rung).await),
            None => rung.await,
        }
    }
}

impl<S: Socket, E: Executor> Drop for Reader<S, E> {
    fn drop(&mut self) {
        self.shard.unseat_reader(self.seat);
    }
}
