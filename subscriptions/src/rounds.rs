//! What the connections of a shard may take of its time between two fan-outs. Beyond it they queue
//! and are admitted in turn, only so many after each fan-out as have time: to wake all of a crowd
//! that came back at once costs more each time than the few of them that get their turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use crate::limits::TIME_PER_ROUND;

/// Connections that are admitted after one fan-out at most.
const MOST_AT_ONCE: usize = 1_024;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Free,
    Queued,
    Admitted,
}

type Queued = (Waker, Rc<Cell<Standing>>);

/// A connection's own; its place in the queue is gone when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Ticket(Rc<Cell<Standing>>);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Since the last fan-out.
    spent: Cell<Duration>,
    queue: RefCell<VecDeque<Queued>>,
    /// Those that were admitted in vain, as others took all the time: they come before the queue.
    returned: RefCell<VecDeque<Queued>>,
    at_once: Cell<usize>,
    /// Nobody waits any more.
    has_ended: Cell<bool>,
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            spent: Cell::default(),
            queue: RefCell::default(),
            returned: RefCell::default(),
            at_once: Cell::new(1),
            has_ended: Cell::new(false),
        }
    }
}

impl Rounds {
    /// Whether a connection has its turn now; otherwise `waker` is woken when it has.
    pub(crate) fn admits(&self, ticket: &Ticket, waker: &Waker) -> bool {
        let has_time = self.spent.get() < TIME_PER_ROUND;
        let (mut queue, mut returned) = (self.queue.borrow_mut(), self.returned.borrow_mut());
        let is_empty = queue.is_empty() && returned.is_empty();
        let line = match ticket.0.get() {
            _ if self.has_ended.get() => return true,
            Standing::Queued => return false,
            Standing::Admitted if !has_time => &mut *returned,
            Standing::Free if !has_time || !is_empty => &mut *queue,
            Standing::Free | Standing::Admitted => {
                ticket.0.set(Standing::Free);
                return true;
            }
        };
        ticket.0.set(Standing::Queued);
        line.push_back((waker.clone(), ticket.0.clone()));
        false
    }

    /// Counts what a connection's turn took.
    pub(crate) fn spend(&self, took: Duration) {
        self.spent.set(self.spent.get() + took);
    }

    /// Begins the round after a fan-out, and wakes those who are admitted. Whether there are any.
    pub(crate) fn begin(&self) -> bool {
        let at_once = match self.spent.take() {
            spent if spent > TIME_PER_ROUND => self.at_once.get() / 2,
            spent if spent < TIME_PER_ROUND / 2 => self.at_once.get() * 2,
            _ => self.at_once.get(),
        };
        self.at_once.set(at_once.clamp(1, MOST_AT_ONCE));
        let (mut queue, mut returned) = (self.queue.borrow_mut(), self.returned.borrow_mut());
        let mut admitted = 0;
        while admitted < self.at_once.get()
            && let Some((waker, standing)) = returned.pop_front().or_else(|| queue.pop_front())
        {
            // One that is gone has no ticket.
            if Rc::strong_count(&standing) > 1 {
                standing.set(Standing::Admitted);
                waker.wake();
                admitted += 1;
            }
        }
        admitted > 0
    }

    /// Lets all have their turns from now on.
    pub(crate) fn end(&self) {
        self.has_ended.set(true);
        let (mut queue, mut returned) = (self.queue.borrow_mut(), self.returned.borrow_mut());
        returned.drain(..).chain(queue.drain(..)).for_each(|(waker, _)| waker.wake());
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

    /// Gives each admitted connection its turn, and returns how many there were.
    fn round(rounds: &Rounds, tickets: &[Ticket], waker: &Waker) -> usize {
        let admitted =
            |ticket: &&Ticket| ticket.0.get() == Standing::Admitted && rounds.admits(ticket, waker);
        tickets.iter().filter(admitted).inspect(|_| rounds.spend(TURN)).count()
    }

    #[test]
    fn a_crowd_has_its_turns_in_order_and_each_round_as_many_as_there_is_time_for() {
        let (rounds, count) = (Rounds::default(), Arc::<Count>::default());
        let waker = Waker::from(count.clone());
        rounds.spend(TIME_PER_ROUND);
        let tickets: Vec<_> = (0..CROWD).map(|_| Ticket::default()).collect();
        assert!(!tickets.iter().any(|ticket| rounds.admits(ticket, &waker)));
        // Those that are polled again keep their place, and have no second one.
        assert!(!tickets.iter().any(|ticket| rounds.admits(ticket, &waker)));
        let (mut done, mut number) = (0, 0);
        while rounds.begin() {
            if tickets.last().is_some_and(|last| last.0.get() == Standing::Queued) {
                let late = Ticket::default();
                assert!(!rounds.admits(&late, &waker), "it goes behind the crowd");
            }
            let admitted = round(&rounds, &tickets[done..], &waker);
            assert!(tickets[done..][admitted..].iter().all(|one| one.0.get() == Standing::Queued));
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
        // Those that came late are gone, and take nobody's turn.
        rounds.spend(TIME_PER_ROUND);
        let last = Ticket::default();
        assert!(!rounds.admits(&last, &waker));
        assert!(rounds.begin() && rounds.admits(&last, &waker) && !rounds.begin());
    }

    #[test]
    fn one_that_is_admitted_when_others_have_taken_all_the_time_comes_first_in_the_next_round() {
        let (rounds, waker) = (Rounds::default(), Waker::from(Arc::<Count>::default()));
        let [quick, first, second, last] = <[Ticket; 4]>::default();
        // Two turns that cost nothing: now two are admitted at once.
        rounds.spend(TIME_PER_ROUND);
        assert!(!rounds.admits(&quick, &waker));
        assert!(rounds.begin() && rounds.admits(&quick, &waker) && !rounds.begin());
        rounds.spend(TIME_PER_ROUND);
        assert!(![&first, &second, &last].iter().any(|ticket| rounds.admits(ticket, &waker)));
        assert!(rounds.begin());
        assert!(rounds.admits(&first, &waker));
        rounds.spend(TIME_PER_ROUND);
        assert_eq!(second.0.get(), Standing::Admitted);
        assert!(!rounds.admits(&second, &waker), "the first one took all the time");
        assert!(rounds.begin() && rounds.admits(&second, &waker));
    }

    #[test]
    fn after_the_end_all_have_their_turns() {
        let (rounds, count) = (Rounds::default(), Arc::<Count>::default());
        let (waker, ticket) = (Waker::from(count.clone()), Ticket::default());
        rounds.spend(TIME_PER_ROUND);
        assert!(!rounds.admits(&ticket, &waker));
        rounds.end();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(rounds.admits(&ticket, &waker) && rounds.admits(&Ticket::default(), &waker));
    }
}
