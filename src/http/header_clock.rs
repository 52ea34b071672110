//! Until when the headers of a request have to be there. The time runs from the accept, and later
//! from the first byte of each request: between two requests a connection may be idle for longer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

/// See the module's text. Shared by a connection's reader and its requests.
pub struct HeaderClock {
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The client has a request to send, and time until then.
    Awaits(Instant),
    /// A request is there and is not answered yet.
    Works,
    Idle,
}

/// The reader's timer, which only a client that is slow makes it start.
pub type HeaderTimer = Option<(Instant, Pin<Box<Sleep>>)>;

impl HeaderClock {
    /// Of a new connection.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, state: Mutex::new(State::Awaits(Instant::now() + timeout)) }
    }

    /// Bytes came.
    pub fn received(&self) {
        let mut state = self.state.lock();
        if *state == State::Idle {
            *state = State::Awaits(Instant::now() + self.timeout);
        }
    }

    /// All headers of a request are there.
    pub fn request(&self) {
        *self.state.lock() = State::Works;
    }

    /// What came is answered, and the next request may take its time.
    pub fn answered(&self) {
        *self.state.lock() = State::Idle;
    }

    /// Ready when the client has had its time. To be asked while no byte is there.
    pub fn poll_over(&self, timer: &mut HeaderTimer, cx: &mut Context<'_>) -> Poll<()> {
        let State::Awaits(deadline) = *self.state.lock() else {
            *timer = None;
            return Poll::Pending;
        };
        if timer.as_ref().is_none_or(|(until, _)| *until != deadline) {
            *timer = Some((deadline, Box::pin(sleep_until(deadline))));
        }
        timer.as_mut().map_or(Poll::Pending, |(_, sleep)| sleep.as_mut().poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    /// More than a client has for headers.
    const LONG: Duration = Duration::from_secs(60);

    /// Waits until the client has had its time, for an hour at most.
    async fn over(clock: &HeaderClock) -> Option<Duration> {
        let (began, mut timer) = (Instant::now(), None);
        let over = poll_fn(|cx| clock.poll_over(&mut timer, cx));
        let over = tokio::time::timeout(Duration::from_secs(3_600), over).await;
        over.ok().map(|()| began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn headers_have_their_time_from_the_accept_and_from_the_first_byte_of_each_request() {
        let clock = HeaderClock::new(TIMEOUT);
        // More bytes give no more time.
        tokio::time::sleep(TIMEOUT / 2).await;
        clock.received();
        assert_eq!(over(&clock).await, Some(TIMEOUT / 2));
        clock.request();
        assert_eq!(over(&clock).await, None, "a request that is worked on takes its time");
        clock.received();
        assert_eq!(over(&clock).await, None, "as does the one after it");
        clock.answered();
        tokio::time::sleep(LONG).await;
        assert_eq!(over(&clock).await, None, "an idle connection awaits no headers");
        clock.received();
        assert_eq!(over(&clock).await, Some(TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn the_timer_of_one_request_does_not_end_the_next_one() {
        let clock = HeaderClock::new(TIMEOUT);
        let mut timer = None;
        let mut poll = || {
            let waker = std::task::Waker::noop();
            clock.poll_over(&mut timer, &mut Context::from_waker(waker)).is_ready()
        };
        assert!(!poll());
        tokio::time::advance(TIMEOUT / 2).await;
        clock.request();
        clock.answered();
        clock.received();
        assert!(!poll());
        tokio::time::advance(TIMEOUT * 3 / 4).await;
        assert!(!poll(), "the first request's time was over");
        tokio::time::advance(TIMEOUT / 2).await;
        assert!(poll());
    }
}
