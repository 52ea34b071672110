//! What runs for the client: queries and mutations in tasks of their own, and operations that read
//! a stream.

use futures_util::future::BoxFuture;

use super::Connection;
use super::running::{AnswerTask, Running, StreamOperation};
use crate::close::{self, CloseCode};
use crate::context::ShardContext;
use crate::executor::{Execution, Executor};
use crate::framing;
use crate::resume::{Answer, await_answer};
use crate::session::OperationRef;
use crate::socket::Socket;
use crate::stream_cursor::{Progress, Step, StreamCursor};
use crate::subscribers::{InlineId, Subscriber, SubscriberHandle};

impl<S: Socket, E: Executor> Connection<S, E> {
    pub(super) fn start(
        &mut self,
        operation: OperationRef,
        execution: Execution,
        context: &ShardContext<Self, E>,
    ) {
        let running = match execution {
            Execution::Refused(errors) => return self.refuse(operation, &errors),
            Execution::Single(result) => {
                let own = self.own.clone();
                let task = tokio::task::spawn_local(async move {
                    let result = result.await;
                    if let Some(connection) = own.upgrade() {
                        let mut connection = connection.borrow_mut();
                        match result {
                            Ok(result) => connection.finish(operation, &result.json),
                            Err(errors) => connection.refuse_late(operation, &errors),
                        }
                    }
                });
                Running::Single(task.abort_handle())
            }
            Execution::Stream { stream, after, permit } => {
                let Some(id) = self.session.start_streaming(operation) else {
                    return stream.release();
                };
                let subscriber = Subscriber {
                    connection: self.own.clone(),
                    progress: Progress::default(),
                    slot: operation.slot,
                    waits: true,
                    rank: self.rank,
                    dialect: self.session.dialect(),
                    id: InlineId::new(&id),
                };
                let handle = context.subscribe(&stream, subscriber);
                self.waiting.push_back(operation.slot);
                let cursor = StreamCursor::new(after);
                Running::Stream(StreamOperation {
                    stream,
                    handle,
                    cursor,
                    permit,
                    is_stalled: false,
                })
            }
        };
        let slot = operation.slot as usize;
        if self.running.len() <= slot {
            self.running.resize_with(slot + 1, || None);
        }
        self.streams += u32::from(matches!(running, Running::Stream(_)));
        self.running[slot] = Some(running);
    }

    /// Operations that read a stream.
    pub(crate) fn streams(&self) -> u32 {
        self.streams
    }

    /// The shard's handles of these operations, with their slots.
    pub(crate) fn subscribers(&self) -> impl Iterator<Item = (u32, SubscriberHandle)> {
        self.running.iter().enumerate().filter_map(|(slot, running)| match running {
            Some(Running::Stream(operation)) => Some((slot as u32, operation.handle)),
            _ => None,
        })
    }

    pub(super) fn stream_mut(&mut self, slot: u32) -> Option<&mut StreamOperation> {
        match self.running.get_mut(slot as usize) {
            Some(Some(Running::Stream(operation))) => Some(operation),
            _ => None,
        }
    }

    /// The socket is full for long: until it takes bytes again, its operations do not count among
    /// the readers of their streams.
    pub(super) fn stall_streams(&mut self) {
        if self.stalled_streams == self.streams {
            return;
        }
        for running in self.running.iter_mut().flatten() {
            if let Running::Stream(operation) = running
                && !std::mem::replace(&mut operation.is_stalled, true)
            {
                operation.stream.stall_reader();
                self.stalled_streams += 1;
            }
        }
    }

    /// The socket takes bytes again: one of its operations counts again, if any does not.
    pub(super) fn unstall_stream(&mut self) {
        let mut operations =
            self.running.iter_mut().flatten().filter_map(|running| match running {
                Running::Stream(operation) if operation.is_stalled => Some(operation),
                _ => None,
            });
        let Some(operation) = operations.next() else { return };
        operation.is_stalled = false;
        self.stalled_streams -= 1;
        operation.stream.resume_reader();
    }

    fn refuse(&mut self, operation: OperationRef, errors: &[u8]) {
        self.count_refusals(1);
        if let Some(message) = self.session.refuse(operation, errors) {
            framing::text_frame(&message, &mut self.replies);
        }
    }

    /// A query was refused after it was given to a task.
    fn refuse_late(&mut self, operation: OperationRef, errors: &[u8]) {
        let Some(message) = self.session.refuse(operation, errors) else {
            return; // Completed by the client in the meantime.
        };
        self.running[operation.slot as usize] = None;
        self.can_write_inline = false;
        self.count_refusals(1);
        framing::text_frame(&message, &mut self.replies);
        self.wake();
    }

    /// A query or mutation has its result.
    fn finish(&mut self, operation: OperationRef, result: &[u8]) {
        let Some((id, complete)) = self.session.finish(operation) else {
            return; // Completed by the client in the meantime.
        };
        self.running[operation.slot as usize] = None;
        self.can_write_inline = false;
        let dialect = self.session.dialect();
        framing::next_prefix(dialect, id.as_bytes(), result.len() + 1, &mut self.replies);
        self.replies.extend_from_slice(result);
        self.replies.push(b'}');
        framing::text_frame(&complete, &mut self.replies);
        self.wake();
    }

    /// Stops what runs in a slot. The session has removed the operation already, or will.
    pub(super) fn stop(&mut self, slot: u32, context: &ShardContext<Self, E>) {
        match self.running.get_mut(slot as usize).and_then(Option::take) {
            Some(Running::Single(task)) => task.abort(),
            Some(Running::Stream(operation)) => {
                self.streams -= 1;
                if operation.is_stalled {
                    self.stalled_streams -= 1;
                    operation.stream.end_stalled_reader();
                }
                context.unsubscribe(operation.handle);
                self.waiting.retain(|one| *one != slot);
            }
            None => {}
        }
    }

    pub(super) fn stop_all(&mut self, context: &ShardContext<Self, E>) {
        for slot in 0..self.running.len() {
            self.stop(slot as u32, context);
        }
    }

    /// An operation that reads a stream has nothing to send now.
    pub(super) fn take_step(&mut self, slot: u32, step: Step, context: &ShardContext<Self, E>) {
        match step {
            Step::Send | Step::Waiting => {}
            Step::UpToDate => {
                if let Some(operation) = self.stream_mut(slot) {
                    context.set_up_to_date(operation.handle);
                }
            }
            Step::Await { answer, throttled } => {
                let task = self.spawn_answer(slot, answer, throttled);
                if let Some(operation) = self.stream_mut(slot) {
                    operation.cursor.wait(task);
                }
            }
            Step::Refused(errors) => {
                let operation = self.session.reference(slot);
                self.stop(slot, context);
                self.refuse(operation, &errors);
            }
            Step::CannotContinue => {
                self.close(CloseCode::TryAgainLater, close::CANNOT_CONTINUE, context)
            }
        }
    }

    /// Waits for a source's answer in a task of its own. The operation goes on with the answer,
    /// unless it has ended by then.
    fn spawn_answer(
        &mut self,
        slot: u32,
        answer: BoxFuture<'static, Answer>,
        throttled: bool,
    ) -> AnswerTask {
        let (own, operation) = (self.own.clone(), self.session.reference(slot));
        let permit = self.stream_mut(slot).and_then(|operation| operation.permit.as_deref());
        let answer = await_answer(answer, throttled, permit);
        let task = tokio::task::spawn_local(async move {
            let answer = answer.await;
            if let Some(connection) = own.upgrade() {
                connection.borrow_mut().answer(operation, answer);
            }
        });
        AnswerTask::new(task.abort_handle())
    }

    /// A source has answered.
    fn answer(&mut self, operation: OperationRef, answer: Answer) {
        let OperationRef { slot, .. } = operation;
        if self.session.reference(slot) == operation
            && let Some(stream) = self.stream_mut(slot)
            && stream.cursor.answer(answer)
        {
            self.wait(slot);
        }
    }
}
