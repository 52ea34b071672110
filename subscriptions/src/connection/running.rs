//! What runs for the client in one slot of a connection. `operations` starts and stops it.

use std::sync::Arc;

use tokio::task::AbortHandle;

use crate::executor::StreamPermit;
use crate::stream::ResponseStream;
use crate::stream_cursor::StreamCursor;
use crate::subscribers::SubscriberHandle;

/// See the module's text.
pub(super) enum Running {
    Single(AbortHandle),
    Stream(StreamOperation),
}

/// An operation that reads a stream. Its progress is in [`crate::subscribers::Subscriber`].
pub(super) struct StreamOperation {
    pub(super) stream: Arc<ResponseStream>,
    pub(super) handle: SubscriberHandle,
    pub(super) cursor: StreamCursor<AnswerTask>,
    pub(super) permit: Option<Box<dyn StreamPermit>>,
    /// It does not count among the readers of its stream, as its socket is full for long.
    pub(super) is_stalled: bool,
}

/// A task that waits for a source's answer; ends with the operation it waits for.
pub(super) struct AnswerTask(AbortHandle);

impl AnswerTask {
    pub(super) fn new(task: AbortHandle) -> Self {
        Self(task)
    }
}

impl Drop for AnswerTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
