//! What changes the live state: events of the log, the clock, and the state of the feeds.

use std::sync::Arc;

use super::Live;
use super::feed_states::FeedStates;
#[cfg(test)]
use super::frame::Speed;
use super::frame::{Item, ItemBody, TopicName};
use super::pace::Touched;
use crate::market::book_gap::BookGap;
use crate::market::definition::MarketId;
use crate::market::effect::{Applied, Effect};
use crate::market::levels::{Level, LevelChange};
use crate::market::ticker::LastTrade;
use crate::market::time::Micros;
use crate::market::topic::Topic;
use crate::market::trade::Trade;

/// What an event does to a book.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BookChange<'a> {
    /// Replaces it.
    Snapshot,
    /// Sets levels of one that had a snapshot.
    Levels,
    /// Sets levels of one that is summed from orders, from the first one on. This is what it then
    /// lacks.
    Order(&'a Option<Arc<BookGap>>),
}

impl Live {
    /// Applies events of the log, in the log's order, from one thread. Advances the streams that
    /// follow this state itself.
    pub fn apply(&self, events: &[Applied]) {
        let mut touched = Touched::new();
        for event in events {
            self.take(event, &mut touched);
            self.advance_all(&touched);
            touched.clear();
        }
    }

    /// Applies an event of the log, in the log's order, from one thread at a time. Costs the same
    /// for any number of streams that do not push each event.
    pub(super) fn take(&self, event: &Applied, touched: &mut Touched) {
        match &event.effect {
            Effect::Define(definition) => {
                if self.takes_definition(&definition.market, event.sequence) {
                    self.define_at(definition.clone(), event.sequence, touched);
                }
            }
            Effect::Replace { market, levels } => {
                self.change(event, market, levels, BookChange::Snapshot, touched);
            }
            Effect::Change { market, levels } => {
                self.change(event, market, levels, BookChange::Levels, touched);
            }
            Effect::Gap(gap) => {
                self.lack(event, &gap.market, Some(gap), touched);
                if gap.is_of_orders() {
                    self.publish_of_book(event, &gap.market, touched);
                }
            }
            Effect::Complete { market, gap } => {
                self.lack(event, market, gap.as_ref(), touched);
                self.publish_of_book(event, market, touched);
            }
            Effect::Order { update, levels, gap } => {
                let order = &update.order;
                self.change(event, &order.market, levels, BookChange::Order(gap), touched);
                let own = Topic::orders_of(&order.market).name();
                for topic in order.account_topics().iter().chain([&own]) {
                    self.publish(topic, event, ItemBody::Order(update.clone()), touched);
                }
            }
            Effect::Trade(trade) => {
                let body = ItemBody::Trade(trade.clone());
                self.publish(&Topic::Trades(&trade.market).name(), event, body, touched);
                self.trade(event, trade, touched);
            }
            Effect::Message(message) => {
                let body = ItemBody::Message(message.clone());
                self.publish(&Topic::Message(&message.topic).name(), event, body, touched);
            }
            Effect::None => {}
        }
        self.applied.raise_to(event.sequence);
    }

    /// Makes an event the end of a log topic. An event may be in several.
    fn publish(&self, topic: &TopicName, event: &Applied, body: ItemBody, touched: &mut Touched) {
        let item = Item { sequence: event.sequence, time: event.time, body };
        let mut topics = self.topics.lock();
        if topics.ignores(topic) {
            return;
        }
        if topics.is_forgotten(topic) {
            drop(topics);
            // Read without the lock: only this thread publishes events.
            let before = event.sequence.saturating_sub(1);
            let last = self.log.read_here(|log| log.last_until(topic, before));
            let last = last.unwrap_or_else(|error| {
                // Its followers see an event whose `prevSequence` is not the last one.
                tracing::error!(%error, %topic, "the end of a topic can't be read");
                None
            });
            topics = self.topics.lock();
            topics.recall(topic, last.unwrap_or(0));
        }
        topics.publish(topic, &item, touched);
    }

    fn change(
        &self,
        event: &Applied,
        id: &MarketId,
        levels: &[LevelChange],
        kind: BookChange<'_>,
        touched: &mut Touched,
    ) {
        let Some(market) = self.market(id) else {
            // Admission lets no event through whose market was not defined before it; a copy has
            // only what is followed.
            debug_assert!(self.origin.is_some(), "an event for {id}, which is not defined");
            return;
        };
        let (best, gap_changed) = {
            let mut state = market.state.lock();
            if event.sequence <= state.book.sequence() {
                // Read again after an older checkpoint of another market, or copied later.
                return;
            }
            // Changes of a book that nobody knows make no book.
            let begins = kind != BookChange::Levels && !state.has_book;
            state.has_book |= begins;
            match kind {
                BookChange::Snapshot => state.book.replace(event.sequence, levels),
                _ if !state.has_book => state.book.apply(event.sequence, &[]),
                _ => state.book.apply(event.sequence, levels),
            }
            let gap_changed = match kind {
                BookChange::Snapshot => state.gap.take().is_some(),
                BookChange::Levels => false,
                BookChange::Order(gap) => state.set_gap(gap.as_ref()),
            };
            if gap_changed || begins {
                touched.extend(state.streams.keys());
            }
            state.event_time = event.time;
            state.checksum.take();
            touched.extend(&state.raw);
            (state.book.best(), gap_changed.then_some(state.gap.is_some()))
        };
        if let Some(has_gap) = gap_changed {
            self.set_gap(id, has_gap, touched);
        }
        self.change_offer(id, best, event.sequence, event.time, touched);
    }

    /// Takes what a book lacks from now on.
    fn lack(
        &self,
        event: &Applied,
        id: &MarketId,
        gap: Option<&Arc<BookGap>>,
        touched: &mut Touched,
    ) {
        let Some(market) = self.market(id) else { return };
        {
            let mut state = market.state.lock();
            if event.sequence <= state.book.sequence() {
                return;
            }
            // One that is summed from orders begins with its first event.
            state.has_book |= gap.is_none_or(|gap| gap.is_of_orders());
            state.book.apply(event.sequence, &[]);
            state.set_gap(gap);
            touched.extend(state.streams.keys());
        }
        self.set_gap(id, gap.is_some(), touched);
    }

    /// Publishes an event of a book in the topic of its orders.
    fn publish_of_book(&self, event: &Applied, market: &MarketId, touched: &mut Touched) {
        self.publish(&Topic::orders_of(market).name(), event, ItemBody::OfBook, touched);
    }

    /// Takes for all that is made of a book whether the book missed an event.
    pub(super) fn set_gap(&self, market: &str, has_gap: bool, touched: &mut Touched) {
        self.offers.lock().set_gap(market, has_gap, touched);
        self.tickers.lock().set_gap(market, has_gap, touched);
    }

    pub(super) fn change_offer(
        &self,
        id: &MarketId,
        best: (Option<Level>, Option<Level>),
        sequence: u64,
        time: Option<Micros>,
        touched: &mut Touched,
    ) {
        // Most events do not reach the top of the book.
        if self.offers.lock().update(id, best, sequence, time, touched) {
            self.tickers.lock().change_offer(id, best, sequence, time, touched);
        }
    }

    /// Takes a trade with the candles that it left.
    fn trade(&self, event: &Applied, trade: &Trade, touched: &mut Touched) {
        // An event that is read again from the log has none: the candles' checkpoint has it
        // already.
        let ([minute, ..], Some(market)) = (&event.candles[..], self.market(&trade.market)) else {
            return;
        };
        market.candles.lock().trade(event, touched);
        // A trade that is not its minute's latest is not the market's either.
        let last = (minute.close_sequence == event.sequence).then_some(LastTrade {
            time: minute.last,
            price: trade.price,
            size: trade.size,
            taker_side: trade.taker_side,
        });
        let mut tickers = self.tickers.lock();
        tickers.trade(&trade.market, event, minute, last, self.now(), touched);
    }

    /// Advances the books' streams of this speed that follow this state itself.
    #[cfg(test)]
    pub(super) fn tick(&self, speed: Speed) {
        for follower in self.followers() {
            if follower.pace == speed.into() {
                self.advance(&follower);
            }
        }
    }

    /// The same, called each second, of what the clock has changed, and quiet streams.
    pub fn heartbeat(&self) {
        let mut touched = Touched::new();
        self.roll(&mut touched);
        self.advance_all(&touched);
        for follower in self.followers() {
            if self.beat(&follower) {
                self.advance(&follower);
            }
        }
    }

    /// Takes what the clock has changed. To be called each second.
    pub(super) fn roll(&self, touched: &mut Touched) {
        let now = self.now();
        for market in self.all() {
            market.candles.lock().roll(now, touched);
        }
        self.tickers.lock().roll(now, touched);
        self.feeds.lock().roll(touched);
    }

    /// Whether what every stream says is up to date; those that follow this state itself say it at
    /// once.
    pub fn set_feed_states(&self, states: FeedStates) {
        let mut touched = Touched::new();
        self.take_feed_states(states, &mut touched);
        self.advance_all(&touched);
    }

    pub(super) fn take_feed_states(&self, states: FeedStates, touched: &mut Touched) {
        let mut own = self.feed_states.lock();
        if *own == states {
            return;
        }
        *own = states.clone();
        drop(own);
        for market in self.all() {
            touched.extend(market.state.lock().streams.keys());
            touched.extend(market.candles.lock().streams());
        }
        self.offers.lock().set_states(states.clone(), touched);
        self.tickers.lock().set_states(states.clone(), touched);
        self.topics.lock().set_states(states, touched);
    }
}
