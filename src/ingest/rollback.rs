//! Rollback of blocks, and gaps in a source. The events of a removed block leave the log, and so do
//! the events that depend on them, such as the cancellation of an order whose placing is removed.
//! After it the state equals that of a hub that never received those blocks. All of it is computed
//! in the transaction of the event that reports the rollback, and applied after the commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::handle;
use super::projection::MakeAside;
use crate::live::checkpoint::put_back;
use crate::live::{Defined, Live, MarketLeft, Rollback};
use crate::market::admission::{Admission, BookMode};
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::effect::{Applied, Effect};
use crate::market::event::{Body, parse};
use crate::market::orders::OrderUpdate;
use crate::market::time::Micros;
use crate::market::topic::{Topic, scope_of};
use crate::recovery;
use crate::store::{NewTrade, RollbackTransaction, StoreError, Stored, TopicPosition};

/// Events read at once.
const PAGE: usize = 512;

/// What a rollback leaves, for the holders of state to apply.
pub(super) struct Left {
    pub(super) rollback: Rollback,
    admitted: Vec<MarketAdmission>,
    /// Events of no removed block that depended on those of one.
    pub(super) fallen: u64,
}

/// What admission knows of a market afterwards.
struct MarketAdmission {
    market: MarketId,
    definition: Option<Arc<MarketDefinition>>,
    mode: Option<BookMode>,
    traded: bool,
    /// Its open orders, as [`crate::market::orders::Orders::to_checkpoint`] gives them; `None`
    /// where they are as before.
    orders: Option<Vec<u8>>,
}

impl Left {
    /// After the commit.
    pub(super) fn settle(&self, admission: &mut Admission) {
        for left in &self.admitted {
            let MarketAdmission { market, definition, mode, traded, orders } = left;
            admission.resettle(market, definition.clone(), *mode, *traded);
            let Some(orders) = orders else { continue };
            if let Err(error) = admission.orders_mut().restore(market, orders) {
                // It was written a moment ago, so it is a bug; a restart reads them from the log.
                debug_assert!(false, "{error}");
                tracing::error!(%error, %market, "open orders are lost until a restart");
            }
        }
    }
}

/// Undoes the blocks from `height` on.
pub(super) fn remove_blocks(
    log: &RollbackTransaction<'_>,
    height: u64,
    now: Micros,
    admission: &Admission,
    aside: &MakeAside,
) -> Result<Left, StoreError> {
    let mut work = Work::new(log);
    loop {
        let page = log.from_height(height, PAGE)?;
        if page.is_empty() {
            break;
        }
        for stored in &page {
            work.undo(stored)?;
        }
    }
    let undone = work.count;
    let (mut markets, mut admitted) = (Vec::new(), Vec::new());
    for market in work.markets() {
        let (left, own) = work.market(&market, now, admission, aside)?;
        markets.push(left);
        admitted.push(own);
    }
    let fallen = work.count - undone;
    Ok(Left { rollback: work.end(true, markets)?, admitted, fallen })
}

/// Events of a source are lost. Their topics are not known, so every topic of the log begins a new
/// epoch, and nothing else of them changes.
pub(super) fn begin_epochs(
    log: &RollbackTransaction<'_>,
    now: Micros,
    admission: &Admission,
) -> Result<Left, StoreError> {
    let mut work = Work::new(log);
    for topic in log.topics()? {
        work.lost(&topic.name.into(), log.sequence);
    }
    let unchanged = |market: MarketId| {
        let candles = log.market_candles(&market, now)?;
        let definition = admission.definition(&market);
        let (last, event_time) =
            recovery::newest_trades(&candles, definition.map(|known| &**known));
        let (defined, book) = (Defined::AsBefore, None);
        Ok(MarketLeft { market, defined, book, candles, last, event_time })
    };
    let markets: Result<Vec<_>, StoreError> = work.markets().into_iter().map(unchanged).collect();
    Ok(Left { rollback: work.end(false, markets?)?, admitted: Vec::new(), fallen: 0 })
}

struct Work<'a> {
    log: &'a RollbackTransaction<'a>,
    /// The first event that left each topic.
    first: BTreeMap<Arc<str>, u64>,
    /// By market: orders that lost an event.
    orders: HashMap<MarketId, BTreeSet<Arc<str>>>,
    count: u64,
}

impl<'a> Work<'a> {
    fn new(log: &'a RollbackTransaction<'a>) -> Self {
        Self { log, first: BTreeMap::new(), orders: HashMap::new(), count: 0 }
    }

    /// An event leaves the log.
    fn undo(&mut self, stored: &Stored) -> Result<(), StoreError> {
        let mut further = Vec::new();
        if let Some(update) = update(stored)? {
            further = update.order.account_topics();
            let of_market = self.orders.entry(update.order.market.clone()).or_default();
            of_market.insert(update.order.id.clone());
        }
        self.log.undo(stored.sequence, &further)?;
        self.count += 1;
        self.lost(&Arc::from(&*stored.topic), stored.sequence);
        further.iter().for_each(|topic| self.lost(topic, stored.sequence));
        Ok(())
    }

    fn lost(&mut self, topic: &Arc<str>, sequence: u64) {
        if Topic::parse(topic) == Some(Topic::Blocks) {
            return; // Nobody follows it.
        }
        let first = self.first.entry(topic.clone()).or_insert(sequence);
        *first = sequence.min(*first);
    }

    /// Stores the new epochs, and returns what is to be published.
    fn end(self, of_blocks: bool, markets: Vec<MarketLeft>) -> Result<Rollback, StoreError> {
        let scopes: Vec<_> = self.scopes().into_iter().collect();
        for (scope, first) in &scopes {
            self.log.renumber(scope, *first)?;
        }
        let (at, undone, topics) = (self.log.sequence, self.count, self.topics()?);
        Ok(Rollback { at, of_blocks, undone, scopes, markets, topics })
    }

    /// The first event that left each scope.
    fn scopes(&self) -> BTreeMap<String, u64> {
        let mut scopes = BTreeMap::new();
        for (topic, sequence) in &self.first {
            let first = scopes.entry(scope_of(topic)).or_insert(*sequence);
            *first = (*first).min(*sequence);
        }
        scopes
    }

    fn markets(&self) -> Vec<MarketId> {
        self.scopes()
            .keys()
            .filter_map(|scope| Topic::parse(scope)?.market())
            .map(Arc::from)
            .collect()
    }

    /// Works out what is left of a market.
    fn market(
        &mut self,
        market: &MarketId,
        now: Micros,
        admission: &Admission,
        aside: &MakeAside,
    ) -> Result<(MarketLeft, MarketAdmission), StoreError> {
        let (defined, definition) = self.definition(market, admission)?;
        let redefined = self.first.get(&*Topic::Market(market).name()).copied();
        let levels = Topic::Book(market).name();
        let (orders, trades) = (Topic::orders_of(market).name(), Topic::Trades(market).name());
        let mode = admission.mode(market);
        let book = match mode {
            Some(BookMode::Orders) => &orders,
            Some(BookMode::Levels) | None => &levels,
        };
        // From where on its book and its trades have to be read again.
        let from =
            |topic: &Arc<str>| self.first.get(topic).copied().into_iter().chain(redefined).min();
        let (book_from, trades_from) = (from(book), from(&trades));
        let mut replayed = Replayed::default();
        if let Some(from) = book_from.filter(|_| mode.is_some()) {
            let mut replay =
                Replay::begin(self.log, (market, mode), definition.as_ref(), book, from, aside)?;
            replay.run(self)?;
            replayed = replay.end(self)?;
        }
        let mut standing = |stored: &Stored| recovery::standing(stored, definition.as_deref());
        if let Some(from) = trades_from {
            if redefined.is_some() {
                self.refuse_trades(&trades, from, &mut standing)?;
            }
            self.log.rebuild_candles(market, from, &mut standing)?;
        }
        let candles = self.log.market_candles(market, now)?;
        let (last, event_time) = recovery::newest_trades(&candles, definition.as_deref());
        let has_book = self.log.newest(book)?.is_some();
        let Replayed { book: state, orders } = replayed;
        let own = MarketAdmission {
            market: market.clone(),
            definition,
            mode: mode.filter(|_| has_book),
            traded: candles.newest.is_some(),
            orders,
        };
        let market = market.clone();
        Ok((MarketLeft { market, defined, book: state, candles, last, event_time }, own))
    }

    fn definition(
        &self,
        market: &MarketId,
        admission: &Admission,
    ) -> Result<(Defined, Option<Arc<MarketDefinition>>), StoreError> {
        let topic = Topic::Market(market).name();
        if !self.first.contains_key(&topic) {
            return Ok((Defined::AsBefore, admission.definition(market).cloned()));
        }
        let Some(stored) = self.log.newest(&topic)? else { return Ok((Defined::Not, None)) };
        match parse(stored.body.as_bytes()).map(|event| event.body) {
            Ok(Body::Market(definition)) => {
                let definition = Arc::new(definition);
                Ok((Defined::So(definition.clone()), Some(definition)))
            }
            Ok(_) => Err(unreadable(&stored, "it defines no market".to_owned())),
            Err(refusal) => Err(unreadable(&stored, refusal.to_string())),
        }
    }

    /// Trades that do not fit what defines their market now.
    fn refuse_trades(
        &mut self,
        topic: &Arc<str>,
        from: u64,
        standing: &mut dyn FnMut(&Stored) -> Option<NewTrade>,
    ) -> Result<(), StoreError> {
        let mut after = from;
        loop {
            let page = self.log.read_topic(topic, after, PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.sequence;
            for stored in &page {
                if standing(stored).is_none() {
                    self.undo(stored)?;
                }
            }
        }
    }

    /// The last events of the touched topics whose events are published one by one.
    fn topics(&self) -> Result<Vec<(TopicPosition, Option<Micros>)>, StoreError> {
        let mut left = Vec::new();
        for topic in self.first.keys() {
            if let Some(Topic::Book(_) | Topic::Market(_)) = Topic::parse(topic) {
                continue;
            }
            let newest = self.log.newest(topic)?;
            let last = newest.as_ref().map_or(0, |stored| stored.sequence);
            let time = newest.and_then(|stored| parse(stored.body.as_bytes()).ok()?.time);
            left.push((TopicPosition { name: (&**topic).into(), last }, time));
        }
        Ok(left)
    }
}

/// One market's book, read from the log as if the undone events had never been.
struct Replay<'a> {
    log: &'a RollbackTransaction<'a>,
    market: MarketId,
    topic: Arc<str>,
    /// All before this was admitted as it is.
    from: u64,
    /// The last event read.
    after: u64,
    admission: Admission,
    aside: Live,
    /// Of orders, what their last event left.
    left: HashMap<Arc<str>, OrderUpdate>,
}

/// What a replay came to; nothing where none was needed.
#[derive(Default)]
struct Replayed {
    book: Option<Vec<u8>>,
    orders: Option<Vec<u8>>,
}

impl<'a> Replay<'a> {
    fn begin(
        log: &'a RollbackTransaction<'a>,
        (market, mode): (&MarketId, Option<BookMode>),
        definition: Option<&Arc<MarketDefinition>>,
        topic: &Arc<str>,
        from: u64,
        aside: &MakeAside,
    ) -> Result<Self, StoreError> {
        let (mut admission, aside) = (Admission::new(), aside());
        let base = log.base(topic, from)?;
        let mut after = 0;
        if let Some(definition) = definition {
            admission.resettle(market, Some(definition.clone()), mode, false);
            let effect = Effect::Define(definition.clone());
            aside.apply(&[Applied { sequence: 0, time: None, effect, candles: Vec::new() }]);
            let mut restore = |market: &str, sequence, state: &[u8]| {
                aside.restore(market, sequence, state).is_ok()
            };
            if let Some(base) = base
                && put_back(&mut admission, &mut restore, market, &base)
            {
                after = base.sequence;
            }
        }
        let (market, topic, left) = (market.clone(), topic.clone(), HashMap::new());
        Ok(Self { log, market, topic, from, after, admission, aside, left })
    }

    fn run(&mut self, work: &mut Work<'_>) -> Result<(), StoreError> {
        loop {
            let page = self.log.read_topic(&self.topic, self.after, PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            self.after = last.sequence;
            let mut applied = Vec::with_capacity(page.len());
            for stored in &page {
                applied.extend(self.take(stored, work)?);
            }
            self.aside.apply(&applied);
        }
    }

    fn take(
        &mut self,
        stored: &Stored,
        work: &mut Work<'_>,
    ) -> Result<Option<Applied>, StoreError> {
        let read = parse(stored.body.as_bytes())
            .and_then(|event| Ok((event.time, self.admission.admit(&event)?.effect)));
        let (time, effect) = match read {
            Ok(read) => read,
            Err(_) if stored.sequence > self.from => {
                work.undo(stored)?;
                return Ok(None);
            }
            Err(refusal) => return Err(unreadable(stored, refusal.to_string())),
        };
        if let Effect::Order { update, .. } = &effect
            && stored.sequence > self.from
        {
            let json = handle::json(&**update);
            if stored.update.as_deref() != Some(&*json) {
                self.log.put_update(stored.sequence, &json)?;
            }
            self.left.insert(update.order.id.clone(), (**update).clone());
        }
        Ok(Some(Applied { sequence: stored.sequence, time, effect, candles: Vec::new() }))
    }

    /// Also writes what queries read of the orders that lost events.
    fn end(self, work: &Work<'_>) -> Result<Replayed, StoreError> {
        for id in work.orders.get(&self.market).into_iter().flatten() {
            let order = match self.left.get(id) {
                Some(update) => Some(&update.order),
                None => self.admission.orders().get(id),
            };
            match order {
                Some(order) => {
                    let (status, open) = (order.status.name(), !order.status.is_final());
                    self.log.put_order(id, status, open, &handle::json(order))?;
                }
                None => self.log.forget_order(id)?,
            }
        }
        let orders = Some(self.admission.orders().to_checkpoint(&self.market));
        let book = self.aside.checkpoint(&self.market).map(|(_, state)| state);
        Ok(Replayed { book, orders })
    }
}

/// What an order's event did.
fn update(stored: &Stored) -> Result<Option<OrderUpdate>, StoreError> {
    let read = stored.update.as_deref().map(serde_json::from_str).transpose();
    read.map_err(|error| unreadable(stored, error.to_string()))
}

fn unreadable(stored: &Stored, reason: String) -> StoreError {
    StoreError::Unreplayable { sequence: stored.sequence, reason }
}

#[cfg(test)]
mod tests;
