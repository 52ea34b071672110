//! The way in: bytes to messages, and what the session decides about each of them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::Connection;
use crate::close::{self, CloseCode};
use crate::codec::Received;
use crate::context::ShardContext;
use crate::executor::{Budget, Credentials, Executor};
use crate::framing;
use crate::limits::{BYTES_OF_A_REFUSAL, REPLY_BACKLOG_BYTES, STEPS_PER_TURN};
use crate::rounds::TurnTimer;
use crate::session::Decision;
use crate::socket::Socket;

impl<S: Socket, E: Executor> Connection<S, E> {
    pub(super) fn read(
        &mut self,
        cx: &mut Context<'_>,
        context: &ShardContext<Self, E>,
    ) -> io::Result<()> {
        let turn = TurnTimer::start();
        let mut buffer = context.read_buffer.borrow_mut();
        for _ in 0..STEPS_PER_TURN {
            self.authenticate(cx, context);
            if self.authenticating.is_some() {
                return Ok(());
            }
            if self.dead || self.replies.len() > REPLY_BACKLOG_BYTES || self.refusals_left <= 0 {
                // The flush that makes room wakes this task, or the sweep.
                return Ok(());
            }
            if let Some(unhandled) = self.unhandled.take() {
                self.handle_input(&unhandled, &turn, context);
                if self.unhandled.is_some() {
                    break;
                }
                continue;
            }
            let mut filled = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.socket).poll_read(cx, &mut filled) {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result?,
            }
            if filled.filled().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.heard = context.now();
            self.unheard_bytes = 0;
            self.handle_input(filled.filled(), &turn, context);
            if turn.is_over() {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Handles what was read, at the cost of its client.
    pub(super) fn handle_input(
        &mut self,
        input: &[u8],
        turn: &TurnTimer,
        context: &ShardContext<Self, E>,
    ) {
        if !self.ignore_input {
            let client = self.client.clone();
            context.executor.measure(&client, || self.handle_messages(input, turn, context));
        }
    }

    /// Handles messages in their order, also within one segment. What is left when the turn is over
    /// is kept for the next one.
    fn handle_messages(
        &mut self,
        mut input: &[u8],
        turn: &TurnTimer,
        context: &ShardContext<Self, E>,
    ) {
        let mut messages = 0;
        let has_new_bytes = !input.is_empty();
        loop {
            let pauses = turn.is_over() || self.refusals_left <= 0;
            if (messages > 0 && pauses) || self.authenticating.is_some() {
                self.unhandled = Some(input.to_vec());
                break;
            }
            let mut answers = Vec::new();
            let received = self.codec.next(&mut input, &mut answers);
            if self.closing.is_none() {
                self.replies.append(&mut answers);
            }
            match received {
                Ok(None) => break,
                Ok(Some(Received::Close)) => {
                    // Our answer to it, if any, leaves in the flush that follows.
                    self.peer_closed(context);
                    break;
                }
                Ok(Some(_)) if self.closing.is_some() => {}
                Ok(Some(Received::PingOrPong)) => self.charge(0, context),
                Ok(Some(Received::Text(text))) => self.receive(&text, context),
                Ok(Some(Received::Binary)) => {
                    self.close(CloseCode::InvalidMessage, close::BINARY_MESSAGE, context);
                }
                Err(error) => {
                    self.ignore_input = true;
                    self.close(error.code, &error.reason, context);
                    break;
                }
            }
            messages += 1;
        }
        self.codec.unfinished_since = match messages {
            0 if has_new_bytes => Some(self.codec.unfinished_since.unwrap_or(context.now())),
            0 => self.codec.unfinished_since,
            _ => None,
        };
    }

    fn receive(&mut self, text: &str, context: &ShardContext<Self, E>) {
        context.meters.messages_received.add(1);
        self.charge(text.len(), context);
        match self.session.receive(text, &context.limits, context.now()) {
            Decision::Nothing => {}
            Decision::Reply(message) => framing::text_frame(&message, &mut self.replies),
            Decision::Refuse(message) => {
                framing::text_frame(&message, &mut self.replies);
                self.count_refusals(1);
            }
            Decision::Close { code, reason } => self.close(code, &reason, context),
            Decision::Stop { operation, answer } => {
                self.stop(operation.slot, context);
                if let Some(answer) = answer {
                    framing::text_frame(&answer, &mut self.replies);
                }
            }
            Decision::Authenticate(payload) => {
                let credentials = Credentials::Init(payload);
                let check = context.executor.authenticate(credentials, &self.client);
                // The reading loop goes on with it.
                self.authenticating = Some(check);
            }
            Decision::Execute { operation, request } => {
                let Some(grant) = &self.grant else {
                    return; // The session accepts no subscribe before the ack.
                };
                let execution = context.executor.execute(request, &grant.principal);
                self.start(operation, execution, context);
            }
        }
    }

    /// Goes on with the check of the client's credentials, if one is under way.
    fn authenticate(&mut self, cx: &mut Context<'_>, context: &ShardContext<Self, E>) {
        let Some(check) = &mut self.authenticating else { return };
        let Poll::Ready(checked) = check.as_mut().poll(cx) else { return };
        self.authenticating = None;
        match checked {
            Ok(grant) => {
                self.grant = Some(grant);
                self.codec.set_message_limit(context.limits.message_bytes);
                framing::text_frame(self.session.accept(), &mut self.replies);
                self.keep_alive();
            }
            Err(refused) => {
                if let Some(message) = self.session.dialect().rejection(&refused.reason) {
                    framing::text_frame(&message, &mut self.replies);
                }
                self.close(CloseCode::Forbidden, &refused.reason, context);
            }
        }
    }

    /// Charges the client for a message. One that has exceeded its budget is read less often.
    fn charge(&mut self, bytes: usize, context: &ShardContext<Self, E>) {
        if context.executor.charge_message(&self.client, bytes) == Budget::Exceeded {
            self.count_refusals(1 + bytes / BYTES_OF_A_REFUSAL);
        }
    }

    /// Counts refusals. A client that goes on asking for what is refused is read less often.
    pub(super) fn count_refusals(&mut self, count: usize) {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        self.refusals_left = self.refusals_left.saturating_sub(count);
    }

    /// Queues the keep-alive message of a dialect that doesn't see a WebSocket's own pings.
    pub(super) fn keep_alive(&mut self) {
        if let Some(message) = self.session.dialect().keep_alive() {
            framing::text_frame(message, &mut self.replies);
        }
    }
}
