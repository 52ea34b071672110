//! Work that takes long is cut into steps, for one stream or one reader at a time. Between two of
//! them the thread serves others, and no lock is held.

use std::time::Duration;

#[cfg(test)]
use spreadly_subscriptions::Resume;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::pool::timed;

/// Longest step.
pub(super) const STEP: Duration = Duration::from_micros(100);
/// Fields of what is made in one step because it can't be cut: about 0.7 ms.
pub const MOST_STATED_FIELDS: usize = 5_000;

/// Things of so many fields each that are made in one step: one in any case.
pub(super) fn most_stated(fields: usize) -> usize {
    (MOST_STATED_FIELDS / fields.max(1)).max(1)
}

/// Steps of one answer; the last one does all that is left. While what it is made of changes
/// faster than a step states it, more steps do not help.
pub(super) const MOST_STEPS: u32 = 256;

/// What may be done before others have their turn: something in any case, then as much as its time
/// allows.
pub(super) struct Step {
    /// `None`: all of it.
    until: Option<Instant>,
    has_begun: bool,
}

impl Step {
    pub(super) fn begin() -> Self {
        Self { until: Some(Instant::now() + STEP), has_begun: false }
    }

    /// Without an end.
    pub(super) fn whole() -> Self {
        Self { until: None, has_begun: false }
    }

    /// A step whose time is over: one thing is done.
    #[cfg(test)]
    pub(super) fn of_one() -> Self {
        Self { until: Some(Instant::now()), has_begun: false }
    }

    /// Whether the next thing belongs to this step.
    pub(super) fn goes_on(&mut self) -> bool {
        let is_over = || self.until.is_some_and(|until| Instant::now() >= until);
        if self.has_begun && is_over() {
            return false;
        }
        self.has_begun = true;
        true
    }
}

/// Makes an answer in steps, each in its turn: of all answers that are made at a time, one takes a
/// step before the thread serves others. `ask` answers `None` where it needs a further step. The
/// answer comes with the processor time that it took.
pub(super) async fn in_steps<T>(
    turn: &Semaphore,
    mut ask: impl FnMut(&mut Step) -> Option<T>,
) -> Option<(T, Duration)> {
    let mut all = Duration::ZERO;
    for left in (0..MOST_STEPS).rev() {
        // First in, first out.
        let _turn = turn.acquire().await.ok()?;
        let mut step = if left == 0 { Step::whole() } else { Step::begin() };
        let (answer, took) = timed(|| ask(&mut step));
        all += took;
        if let Some(answer) = answer {
            return Some((answer, all));
        }
        tokio::task::yield_now().await;
    }
    None
}

/// An answer that is made in steps, once it is made.
#[cfg(test)]
pub fn made(start: Resume) -> Resume {
    match start {
        Resume::Pending(answer) | Resume::Throttled(answer) => {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_time().build().unwrap().block_on(answer).resume
        }
        at_once => at_once,
    }
}
