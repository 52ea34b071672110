//! The best bid and offer of a market, and the chain of its changes.

use super::levels::Level;
use super::time::Micros;

/// The top of a book, since the event that put it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BestBidOffer {
    pub bid: Option<Level>,
    pub ask: Option<Level>,
    /// Of the event that last changed price or size of either.
    pub sequence: u64,
    /// When that event happened at its source.
    pub event_time: Option<Micros>,
}

impl BestBidOffer {
    /// Takes the top of the book after an event. Returns the sequence of the change before, which
    /// the new one follows; `None` if nothing changed.
    pub fn update(
        &mut self,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        event_time: Option<Micros>,
    ) -> Option<u64> {
        if (self.bid, self.ask) == best {
            return None;
        }
        let previous = self.sequence;
        *self = Self { bid: best.0, ask: best.1, sequence, event_time };
        Some(previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_the_change_before_and_no_change_is_none() {
        let mut bbo = BestBidOffer::default();
        let bid = |size| (Some(Level { price: 10, size, orders: 0 }), None);
        assert_eq!(bbo.update(bid(1), 4, None), Some(0));
        assert_eq!(bbo.update(bid(1), 5, None), None);
        assert_eq!(bbo.update(bid(2), 9, Some(7)), Some(4));
        assert_eq!((bbo.sequence, bbo.event_time), (9, Some(7)));
    }
}
