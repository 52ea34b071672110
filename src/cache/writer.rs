//! What of the live state is kept in the cache, and when. A thread of its own looks at every market
//! in turn and writes what moved, with what is newest at that moment: nothing queues, and nobody
//! waits for it. Which of the kept states a start may go on from is decided in `recovery`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::lookup::{Question, SnapshotLookup};
use super::{Cache, CacheError, CacheMeters, CachedState, Found, Recent};
use crate::live::checkpoint::with_orders;
use crate::live::{Live, StateTaken, TickerView};
use crate::market::admission::{Admission, BookMode};
use crate::market::definition::MarketId;
use crate::market::fixed::{self, Fixed};
use crate::market::levels::Level;
use crate::market::time::time_text;
use crate::market::topic::Topic;
use crate::store::{LogReader, Stored};

/// Events of a book's journal that are kept with it, and touches of levels. A client that resumes
/// at a hub which started from this state may lag by as much. Some 50 bytes each.
const KEPT_JOURNAL: usize = 4_096;
/// Trades kept of each market.
const KEPT_TRADES: usize = 100;
/// How often all is offered again, also what did not move: the cache may have lost it.
const OFFER_AGAIN: Duration = Duration::from_secs(60);

/// Books that are summed from single orders, with their open orders: of one moment, as only the
/// sequencer can take them, which it does where it makes a checkpoint anyway. The newest of each
/// market, until the writer takes it. Takes nothing where there is no cache.
#[derive(Clone, Default)]
pub struct OrderBooks(Option<Arc<Mutex<HashMap<MarketId, OrderBook>>>>);

struct OrderBook {
    orders: Vec<u8>,
    state: StateTaken,
}

impl OrderBooks {
    /// Called by the sequencer.
    pub fn take(&self, admission: &Admission, market: &MarketId, live: &Live) {
        let Some(taken) = &self.0 else { return };
        if admission.mode(market) != Some(BookMode::Orders) {
            return;
        }
        let Some(state) = live.state(market, KEPT_JOURNAL) else { return };
        let orders = admission.orders().to_checkpoint(market);
        taken.lock().insert(market.clone(), OrderBook { orders, state });
    }

    fn drain(&self) -> HashMap<MarketId, OrderBook> {
        self.0.as_ref().map(|taken| std::mem::take(&mut *taken.lock())).unwrap_or_default()
    }
}

/// See the module's text.
pub struct Writer {
    cache: Cache,
    live: Arc<Live>,
    meters: Arc<CacheMeters>,
    interval: Duration,
    questions: mpsc::Receiver<Question>,
    taken: OrderBooks,
    /// Of these, what is not written yet.
    waiting: HashMap<MarketId, OrderBook>,
    /// Of each market the sequence whose state, and whose trades and ticker, the cache has.
    states: HashMap<MarketId, u64>,
    recents: HashMap<MarketId, u64>,
    /// It failed, and no whole turn went well since.
    outage: bool,
    turn: Turn,
}

/// How the cache did since the turn began.
#[derive(Default)]
struct Turn {
    answered: bool,
    failed: bool,
}

impl Writer {
    /// With what a start asks and what the sequencer hands over.
    pub fn new(
        cache: Cache,
        live: Arc<Live>,
        meters: Arc<CacheMeters>,
        interval: Duration,
    ) -> (Self, SnapshotLookup, OrderBooks) {
        let (ask, questions) = mpsc::channel(1);
        let taken = OrderBooks(Some(Arc::default()));
        let writer = Self {
            cache,
            live,
            meters,
            interval,
            questions,
            taken: taken.clone(),
            waiting: HashMap::new(),
            states: HashMap::new(),
            recents: HashMap::new(),
            outage: false,
            turn: Turn::default(),
        };
        (writer, SnapshotLookup(ask), taken)
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let keep = async {
            while let Some(question) = self.questions.recv().await {
                self.answer(question).await;
            }
            let mut offered = Instant::now();
            loop {
                if offered.elapsed() >= OFFER_AGAIN {
                    offered = Instant::now();
                    self.forget();
                }
                self.look().await;
                sleep(self.interval).await;
            }
        };
        // What is dropped half-way was not written, or is in the cache whole.
        stop.run_until_cancelled(keep).await;
    }

    async fn answer(&mut self, question: Question) {
        let markets: Vec<_> = question.markets.iter().map(|market| &**market).collect();
        let found = match self.cache.states(&markets).await {
            Ok(found) => {
                self.meters.up.store(true, Ordering::Relaxed);
                found
            }
            Err(error) => {
                self.meters.failed.fetch_add(1, Ordering::Relaxed);
                self.outage = true;
                tracing::warn!(%error, "the cache does not answer: starting from the log alone");
                Vec::new()
            }
        };
        let of = |(market, found): &(String, Found)| {
            matches!(found, Found::Unreadable).then(|| market.clone())
        };
        let unreadable: Vec<_> = found.iter().filter_map(of).collect();
        // A start that was given up doesn't miss it.
        drop(question.answer.send(found));
        for market in unreadable {
            if self.cache.remove_state(&market).await.is_err() {
                return; // The next start will.
            }
        }
    }

    /// Looks at every market once: a turn.
    async fn look(&mut self) {
        self.turn = Turn::default();
        self.waiting.extend(self.taken.drain());
        for (market, sequence) in self.live.book_sequences() {
            sleep_until(self.cache.rests_until()).await;
            self.keep_state(&market, sequence).await;
            sleep_until(self.cache.rests_until()).await;
            self.keep_recent(&market).await;
        }
        if self.outage && self.turn.answered && !self.turn.failed {
            self.outage = false;
            tracing::info!("the cache answers again");
            // It may have lost what it had.
            self.forget();
        }
    }

    async fn keep_state(&mut self, market: &MarketId, newest: u64) {
        let by_orders = self.live.last_of(&Topic::orders_of(market).name()) > 0;
        let (epoch, sequence, topic, state) = if by_orders {
            let Some(OrderBook { orders, state }) = self.waiting.get(market) else { return };
            let (topic, bytes) = with_orders(market, orders, &state.to_bytes());
            (state.epoch, state.sequence(), topic, bytes)
        } else {
            if newest == 0 || self.states.get(market) == Some(&newest) {
                return;
            }
            let Some(state) = self.live.state(market, KEPT_JOURNAL) else { return };
            (state.epoch, state.sequence(), Topic::Book(market).to_string(), state.to_bytes())
        };
        let log = self.live.epoch();
        let kept = CachedState { log, epoch, sequence, topic, state: Bytes::from(state) };
        let written = self.cache.put_state(market, &kept).await;
        if self.count(&written) {
            self.waiting.remove(market);
            self.states.insert(market.clone(), sequence);
        }
    }

    async fn keep_recent(&mut self, market: &MarketId) {
        let topic = Topic::Trades(market).name();
        let sequence = self.live.last_of(&topic).max(self.live.last_of_ticker(market));
        if sequence == 0 || self.recents.get(market) == Some(&sequence) {
            return;
        }
        // It may be newer than its sequence says, never older.
        let Some(ticker) = self.live.ticker(market) else { return };
        let newest = move |log: &LogReader| log.newest(&topic, KEPT_TRADES);
        // Busy with clients: the next turn will do.
        let Ok(trades) = self.live.log().clone().now(newest).await else { return };
        let recent = Recent {
            log: self.live.epoch(),
            epoch: self.live.epochs(&Topic::Market(market).to_string()).epoch(),
            sequence,
            ticker: ticker_json(&ticker),
            trades: trades_json(trades.iter().filter(|trade| trade.sequence <= sequence)),
        };
        let written = self.cache.put_recent(market, &recent).await;
        if self.count(&written) {
            self.recents.insert(market.clone(), sequence);
        }
    }

    /// Whether the cache has it now, or something later. An outage is logged once, however many
    /// markets it concerns.
    fn count(&mut self, written: &Result<bool, CacheError>) -> bool {
        self.meters.count(written.as_ref().copied().ok());
        match written {
            Ok(_) => self.turn.answered = true,
            Err(error) => {
                if !self.outage {
                    tracing::warn!(%error, "the cache does not answer: a start would be slower");
                }
                (self.outage, self.turn.failed) = (true, true);
            }
        }
        written.is_ok()
    }

    fn forget(&mut self) {
        self.states.clear();
        self.recents.clear();
    }
}

fn ticker_json(view: &TickerView) -> String {
    let definition = &view.definition;
    let price = |value: Fixed| fixed::format(value, definition.price_decimals);
    let size = |value: Fixed| fixed::format(value, definition.size_decimals);
    let level = |level: Option<Level>| {
        level.map(|level| json!({ "price": price(level.price), "size": size(level.size) }))
    };
    let last = view.last.map(|last| {
        json!({ "price": price(last.price), "size": size(last.size), "time": time_text(last.time) })
    });
    let day = view.day.as_ref();
    json!({
        "last": last,
        "bid": level(view.bid),
        "ask": level(view.ask),
        "open": day.map(|day| price(day.open)),
        "high": day.map(|day| price(day.high)),
        "low": day.map(|day| price(day.low)),
        "close": day.map(|day| price(day.close)),
        "volume": day.map(|day| size(day.volume)),
        "trades": day.map_or(0, |day| day.count),
    })
    .to_string()
}

/// Each event as it was written, beside its sequence.
fn trades_json<'a>(trades: impl Iterator<Item = &'a Stored>) -> String {
    #[derive(Serialize)]
    struct Published<'a> {
        sequence: String,
        event: &'a RawValue,
    }
    let published: Vec<_> = trades
        .filter_map(|stored| {
            let event = serde_json::from_str(&stored.body).ok()?;
            Some(Published { sequence: stored.sequence.to_string(), event })
        })
        .collect();
    serde_json::to_string(&published).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use spreadly_subscriptions::Epoch;

    use super::*;
    use crate::market::effect::Applied;
    use crate::market::event::parse;
    use crate::store::LogReaders;

    #[test]
    fn of_each_market_the_newest_order_book_alone_waits_for_the_cache() {
        let log = LogReaders::new("nowhere".as_ref(), 1);
        let (live, mut admission) =
            (Live::new(Epoch(7), Box::new(|| 1), 16, log), Admission::new());
        let mut take = |sequence: u64, line: &str| {
            let admitted = admission.admit(&parse(line.as_bytes()).unwrap()).unwrap();
            let (effect, candles) = (admitted.effect, Vec::new());
            live.apply(&[Applied { sequence, time: None, effect, candles }]);
        };
        take(
            1,
            r#"{"kind":"market","market":"A-B","base":"A","quote":"B",
            "priceDecimals":1,"sizeDecimals":1}"#,
        );
        let books = OrderBooks(Some(Arc::default()));
        for sequence in 2..5 {
            let line = format!(
                r#"{{"kind":"order.placed","order":"{sequence}","market":"A-B",
                "side":"BUY","price":"1","size":"1"}}"#
            );
            take(sequence, &line);
        }
        let market: MarketId = "A-B".into();
        books.take(&admission, &market, &live);
        books.take(&admission, &market, &live);
        let waiting = books.drain();
        assert_eq!((waiting.len(), waiting[&market].state.sequence()), (1, 4));
    }
}
