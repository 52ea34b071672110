//! A reader of a stream for a connection that is no WebSocket, such as an event stream: its owner
//! asks for frames when it can send some, and sends them itself. It reads the same ring as all
//! others, so one that is slow costs a number, and a frame is encoded once for all.

use std::rc::Rc;
use std::sync::Arc;

use crate::connection::Connection;
use crate::context::ShardContext;
use crate::executor::{Executor, StreamPermit};
use crate::limits::FRAMES_PER_WRITE;
use crate::meters::Meters;
use crate::resume::await_answer;
use crate::ring::Frame;
use crate::signal::ReaderSignal;
use crate::socket::Socket;
use crate::stream::ResponseStream;
use crate::stream_cursor::{Progress, Step, StreamCursor};
use crate::subscribers::SubscriberHandle;

/// Why there are no more frames.
#[derive(Debug)]
pub enum StreamEnd {
    /// The source refused: a JSON array of GraphQL errors.
    Refused(bytes::Bytes),
    /// The frames that the reader missed are no longer available.
    CannotContinue,
    /// The hub shuts down.
    Draining,
}

/// See the module's text. Counted like a socket with one operation until it is dropped.
pub struct SseReader<S: Socket, E: Executor> {
    context: Rc<ShardContext<Connection<S, E>, E>>,
    stream: Arc<ResponseStream>,
    signal: Rc<ReaderSignal>,
    handle: SubscriberHandle,
    cursor: StreamCursor<()>,
    progress: Progress,
    permit: Option<Box<dyn StreamPermit>>,
    is_stalled: bool,
}

impl<S: Socket, E: Executor> SseReader<S, E> {
    pub(crate) fn new(
        context: Rc<ShardContext<Connection<S, E>, E>>,
        stream: Arc<ResponseStream>,
        after: Option<String>,
        permit: Option<Box<dyn StreamPermit>>,
    ) -> Self {
        let signal = Rc::<ReaderSignal>::default();
        let handle = context.add_reader(&stream, signal.clone());
        let (cursor, progress) = (StreamCursor::new(after), Progress::default());
        Self { context, stream, signal, handle, cursor, progress, permit, is_stalled: false }
    }

    /// Where the end of the stream is counted.
    pub fn meters(&self) -> &Arc<Meters> {
        &self.context.meters
    }

    /// The client took nothing for [`crate::limits::STALLED_READER`]: until it does, it does not
    /// count among the readers of its stream.
    pub fn stall(&mut self) {
        if !std::mem::replace(&mut self.is_stalled, true) {
            self.stream.stall_reader();
        }
    }

    /// The client takes frames again.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.is_stalled) {
            self.stream.resume_reader();
        }
    }

    /// The next frames, at least one, as soon as there are some. Must be awaited to its end: frames
    /// that it has read by then would be lost.
    ///
    /// # Errors
    /// Why there are no more frames.
    pub async fn frames(&mut self) -> Result<Vec<Frame>, StreamEnd> {
        loop {
            if self.signal.is_draining() {
                return Err(StreamEnd::Draining);
            }
            let mut frames = Vec::new();
            let Self { context, stream, cursor, progress, permit, .. } = self;
            let (meters, permit) = (&context.meters, permit.as_deref());
            match cursor.next(stream, progress, FRAMES_PER_WRITE, &mut frames, meters, permit) {
                Step::Send => {
                    cursor.sent(progress, &frames);
                    context.count_delivered(frames.len());
                    context.count_bytes(frames.iter().map(|frame| frame.tail.len()).sum());
                    return Ok(frames);
                }
                Step::UpToDate => self.signal.notified().await,
                Step::Await { answer, throttled } => {
                    cursor.wait(());
                    let answer = await_answer(answer, throttled, permit);
                    self.cursor.answer(answer.await);
                }
                Step::Refused(errors) => return Err(StreamEnd::Refused(errors)),
                // An earlier call that waited was not awaited to its end.
                Step::CannotContinue | Step::Waiting => return Err(StreamEnd::CannotContinue),
            }
        }
    }
}

impl<S: Socket, E: Executor> Drop for SseReader<S, E> {
    fn drop(&mut self) {
        if self.is_stalled {
            self.stream.end_stalled_reader();
        }
        self.context.remove_reader(self.handle);
    }
}
