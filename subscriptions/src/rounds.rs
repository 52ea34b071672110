//! How much time the connections of a shard may take between two fan-outs. Beyond that they queue.
//! After each fan-out only as many are admitted as there is time for: waking a whole crowd that
//! reconnected at once would cost more than the few turns that fit.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use crate::limits::{TIME_PER_ROUND, TIME_PER_TURN};

/// The most connections that are admitted after one fan-out.
const MOST_AT_ONCE: usize = 1_024;
/// One in so many admissions prefers the low priority, so that it never starves.
const LOW_EVERY: u32 = 4;

/// Which connections have their turns first if there is not enough time for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    #[default]
    High,
    Low,
}

/// The state of a connection's ticket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TicketState {
    #[default]
    Free,
    Queued,
    Admitted,
}

type Queued = (Waker, Rc<Cell<TicketState>>);

/// Each connection has one. A queued connection leaves the queue when its ticket is dropped.
#[derive(Debug, Default)]
pub(crate) struct Ticket(Rc<Cell<TicketState>>);

/// The connections of one priority that wait.
#[derive(Debug, Default)]
struct WaitingLine {
    queue: VecDeque<Queued>,
    /// Those that were admitted but got no turn, as others took all the time. They come before the
    /// queue.
    returned: VecDeque<Queued>,
}

impl WaitingLine {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.returned.is_empty()
    }

    fn pop(&mut self) -> Option<Queued> {
        self.returned.pop_front().or_else(|| self.queue.pop_front())
    }
}

/// The time that one turn of a connection may take: a source may encode a snapshot in it, and a
/// request may have to be parsed.
pub(crate) struct TurnTimer(std::time::Instant);

impl TurnTimer {
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.elapsed() >= TIME_PER_TURN
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Time that turns took since the last fan-out.
    spent: Cell<Duration>,
    /// By [`Priority`].
    lines: RefCell<[WaitingLine; 2]>,
    admissions: Cell<u32>,
    /// Connections that are admitted after one fan-out.
    at_once: Cell<usize>,
    /// All are admitted at once from now on.
    has_ended: Cell<bool>,
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            spent: Cell::default(),
            lines: RefCell::default(),
            admissions: Cell::default(),
            at_once: Cell::new(1),
            has_ended: Cell::new(false),
        }
    }
}

impl Rounds {
    /// Whether a connection has its turn now. Otherwise `waker` is woken when it may ask again.
    pub(crate) fn admits(&self, ticket: &Ticket, priority: Priority, waker: &Waker) -> bool {
        let has_time = self.spent.get() < TIME_PER_ROUND;
        let mut lines = self.lines.borrow_mut();
        let index = priority as usize;
        let is_first = lines[..=index].iter().all(WaitingLine::is_empty);
        let line = match ticket.0.get() {
            _ if self.has_ended.get() => return true,
            TicketState::Queued => return false,
            TicketState::Admitted if !has_time => &mut lines[index].returned,
            TicketState::Free if !has_time || !is_first => &mut lines[index].queue,
            TicketState::Free | TicketState::Admitted => {
                ticket.0.set(TicketState::Free);
                return true;
            }
        };
        ticket.0.set(TicketState::Queued);
        line.push_back((waker.clone(), ticket.0.clone()));
        false
    }

    /// Counts what a connection's turn took.
    pub(crate) fn spend(&self, took: Duration) {
        self.spent.set(self.spent.get() + took);
    }

    /// Begins the round after a fan-out, and wakes the connections that it admits. False if none.
    pub(crate) fn begin(&self) -> bool {
        let at_once = match self.spent.take() {
            spent if spent > TIME_PER_ROUND => self.at_once.get() / 2,
            spent if spent < TIME_PER_ROUND / 2 => self.at_once.get() * 2,
            _ => self.at_once.get(),
        };
        self.at_once.set(at_once.clamp(1, MOST_AT_ONCE));
        let mut lines = self.lines.borrow_mut();
        let mut admitted = 0;
        while admitted < self.at_once.get()
            && let Some((waker, state)) = self.next(&mut lines)
        {
            // A connection that has ended has dropped its ticket.
            if Rc::strong_count(&state) > 1 {
                state.set(TicketState::Admitted);
                waker.wake();
                admitted += 1;
            }
        }
        admitted > 0
    }

    fn next(&self, lines: &mut [WaitingLine; 2]) -> Option<Queued> {
        let number = self.admissions.get().wrapping_add(1);
        self.admissions.set(number);
        let [high, low] = lines;
        match number.is_multiple_of(LOW_EVERY) {
            true => low.pop().or_else(|| high.pop()),
            false => high.pop().or_else(|| low.pop()),
        }
    }

    /// Admits all at once from now on.
    pub(crate) fn end(&self) {
        self.has_ended.set(true);
        for line in &mut *self.lines.borrow_mut() {
            while let Some((waker, _)) = line.pop() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const CROWD: usize = 10_000;
    const TURN: Duration = Duration::from_micros(20);

    fn admits(rounds: &Rounds, ticket: &Ticket, waker: &Waker) -> bool {
        rounds.admits(ticket, Priority::High, waker)
    }

    /// Gives each admitted connection its turn, and returns how many there were.
    fn round(rounds: &Rounds, tickets: &[Ticket], waker: &Waker) -> usize {
        let admitted = |ticket: &&Ticket| {
            ticket.0.get() == TicketState::Admitted && admits(rounds, ticket, waker)
        };
        tickets.iter().filter(admitted).inspect(|_| rounds.spend(TURN)).count()
    }

    #[test]
    fn a_crowd_has_its_turns_in_order_and_each_round_as_many_as_there_is_time_for() {
        let (rounds, count) = (Rounds::default(), Arc::<Count>::default());
        let waker = Waker::from(count.clone());
        rounds.spend(TIME_PER_ROUND);
        let tickets: Vec<_> = (0..CROWD).map(|_| Ticket::default()).collect();
        assert!(!tickets.iter().any(|ticket| admits(&rounds, ticket, &waker)));
        // Those that are polled again keep their place, and have no second one.
        assert!(!tickets.iter().any(|ticket| admits(&rounds, ticket, &waker)));
        let (mut done, mut number) = (0, 0);
        while rounds.begin() {
            if tickets.last().is_some_and(|last| last.0.get() == TicketState::Queued) {
                let late = Ticket::default();
                assert!(!admits(&rounds, &late, &waker), "it waits for its turn after the crowd");
            }
            let admitted = round(&rounds, &tickets[done..], &waker);
            assert!(
                tickets[done..][admitted..].iter().all(|one| one.0.get() == TicketState::Queued)
            );
            done += admitted;
            number += 1;
            let most = TIME_PER_ROUND.as_micros().div_ceil(TURN.as_micros()) as usize;
            assert!(admitted <= most, "{admitted} in round {number}");
            if done == CROWD {
                break;
            }
        }
        assert_eq!(done, CROWD);
        let woken = count.0.load(Ordering::Relaxed);
        assert!((CROWD..CROWD * 3 / 2).contains(&woken), "woken {woken} times");
        let fewest = CROWD * TURN.as_micros() as usize / TIME_PER_ROUND.as_micros() as usize;
        assert!(number <= fewest * 2, "{number} rounds");
        // The late ones have ended, and take no turn.
        rounds.spend(TIME_PER_ROUND);
        let last = Ticket::default();
        assert!(!admits(&rounds, &last, &waker));
        assert!(rounds.begin() && admits(&rounds, &last, &waker) && !rounds.begin());
    }

    #[test]
    fn one_that_is_admitted_when_others_have_taken_all_the_time_comes_first_in_the_next_round() {
        let (rounds, waker) = (Rounds::default(), Waker::from(Arc::<Count>::default()));
        let [quick, first, second, last] = <[Ticket; 4]>::default();
        // Two turns that cost nothing: now two are admitted at once.
        rounds.spend(TIME_PER_ROUND);
        assert!(!admits(&rounds, &quick, &waker));
        assert!(rounds.begin() && admits(&rounds, &quick, &waker) && !rounds.begin());
        rounds.spend(TIME_PER_ROUND);
        assert!(![&first, &second, &last].iter().any(|ticket| admits(&rounds, ticket, &waker)));
        assert!(rounds.begin());
        assert!(admits(&rounds, &first, &waker));
        rounds.spend(TIME_PER_ROUND);
        assert_eq!(second.0.get(), TicketState::Admitted);
        assert!(!admits(&rounds, &second, &waker), "the first one took all the time");
        assert!(rounds.begin() && admits(&rounds, &second, &waker));
    }

    #[test]
    fn those_of_low_priority_wait_for_the_others_and_never_starve() {
        let (rounds, waker) = (Rounds::default(), Waker::from(Arc::<Count>::default()));
        rounds.spend(TIME_PER_ROUND);
        let low: Vec<_> = (0..100).map(|_| Ticket::default()).collect();
        assert!(!low.iter().any(|ticket| rounds.admits(ticket, Priority::Low, &waker)));
        let high = Ticket::default();
        assert!(!admits(&rounds, &high, &waker));
        assert!(rounds.begin());
        assert!(admits(&rounds, &high, &waker), "it came last and goes first");
        assert!(admits(&rounds, &Ticket::default(), &waker), "while there is time");
        assert!(!rounds.admits(&Ticket::default(), Priority::Low, &waker), "others are before it");
        // There is always one of the high priority that waits.
        let mut served = 0;
        for _ in 0..400 {
            rounds.spend(TIME_PER_ROUND);
            let next = Ticket::default();
            assert!(!admits(&rounds, &next, &waker));
            rounds.begin();
            let is_admitted = |ticket: &&Ticket| ticket.0.get() == TicketState::Admitted;
            let mut of_low = low.iter().filter(is_admitted);
            served += of_low
                .by_ref()
                .filter(|ticket| rounds.admits(ticket, Priority::Low, &waker))
                .count();
        }
        assert!(served >= 50, "{served}");
    }

    #[test]
    fn after_the_end_all_are_admitted() {
        let (rounds, count) = (Rounds::default(), Arc::<Count>::default());
        let (waker, ticket) = (Waker::from(count.clone()), Ticket::default());
        rounds.spend(TIME_PER_ROUND);
        assert!(!admits(&rounds, &ticket, &waker));
        rounds.end();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(admits(&rounds, &ticket, &waker) && admits(&rounds, &Ticket::default(), &waker));
    }
}
