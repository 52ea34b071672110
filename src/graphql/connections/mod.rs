//! Trades and events as lists, read from the log page by page.

pub mod paging;

use async_graphql::{Context, Result, SimpleObject};

use self::paging::{List, PageInfo};
use super::errors::{ErrorCode, fault};
use super::execution::offload;
use super::query::{live, read};
use super::types::event::{Event, event_of};
use super::types::scalars::{Cursor, DateTime};
use super::types::trade::{Trade, trade_of};
use crate::budgets::Work;
use crate::live::{Item, TopicName, item};
use crate::market::time::Micros;
use crate::store::{LogReader, Span, StoreError};

/// Bytes of events' lines in a page: one of long messages has fewer than was asked for.
const PAGE_BYTES: usize = 1 << 20;
/// Events that are looked at for one page, some 50 ms: where few lie within `from` and `to`, a page
/// has fewer than was asked for, and `endCursor` continues after the events looked at.
const MOST_LOOKED_AT: usize = 20_000;
/// A trade is at most this much later than the log took it: as far as it may be ahead of the hub's
/// clock, and some more for hubs whose clocks differ. So a page of the trades since a moment begins
/// so much before that moment, however many came earlier.
const SEEK_MARGIN_MICROS: Micros = 60_000_000;
/// Events read at once while looking for those.
const READ_AT_ONCE: usize = 512;

/// A trade in a list.
#[derive(SimpleObject)]
#[graphql(serial)]
pub struct TradeEdge {
    /// Pass this as `after` of this list for the next page, or of `trades(markets:)` of this market
    /// to receive what follows.
    cursor: Cursor,
    /// The trade.
    node: Trade,
}

/// A page of trades, oldest first.
#[derive(SimpleObject)]
pub struct TradeConnection {
    /// The trades with their cursors.
    edges: Vec<TradeEdge>,
    /// The trades.
    nodes: Vec<Trade>,
    /// Position of the page in the list.
    page_info: PageInfo,
}

/// An event in a list.
#[derive(SimpleObject)]
#[graphql(serial)]
pub struct EventEdge {
    /// Pass this as `after` of this list for the next page, or of `events(topic:)` to receive what
    /// follows.
    cursor: Cursor,
    /// The event.
    node: Event,
}

/// A page of events, oldest first.
#[derive(SimpleObject)]
pub struct EventConnection {
    /// The events with their cursors.
    edges: Vec<EventEdge>,
    /// The events.
    nodes: Vec<Event>,
    /// Position of the page in the list.
    page_info: PageInfo,
}

/// Which page of a topic.
pub struct Asked {
    pub topic: TopicName,
    pub first: Option<i32>,
    pub after: Option<Cursor>,
    /// At or after this, by the event's own time.
    pub from: Option<DateTime>,
    /// Before this.
    pub to: Option<DateTime>,
}

pub async fn trades(ctx: &Context<'_>, asked: Asked) -> Result<TradeConnection> {
    let taken_since = asked.from.map(|from| from.0.saturating_sub(SEEK_MARGIN_MICROS));
    let (items, page_info, at) = page(ctx, asked, taken_since).await?;
    let nodes: Vec<_> = items.iter().filter_map(trade_of).collect();
    let edge = |node: &Trade| TradeEdge { cursor: at(node.sequence), node: node.clone() };
    Ok(TradeConnection { edges: nodes.iter().map(edge).collect(), nodes, page_info })
}

pub async fn events(ctx: &Context<'_>, asked: Asked) -> Result<EventConnection> {
    // The time of an event may be any.
    let (items, page_info, at) = page(ctx, asked, None).await?;
    let nodes: Vec<_> = items.iter().filter_map(event_of).collect();
    let edge = |node: &Event| EventEdge { cursor: at(node.sequence), node: node.clone() };
    Ok(EventConnection { edges: nodes.iter().map(edge).collect(), nodes, page_info })
}

/// `taken_since`: what is asked for was taken by the log at this moment or later.
async fn page(
    ctx: &Context<'_>,
    asked: Asked,
    taken_since: Option<Micros>,
) -> Result<(Vec<Item>, PageInfo, impl Fn(u64) -> Cursor + use<>)> {
    let live = live(ctx)?.clone();
    let topic = asked.topic;
    let list = List::new(&topic, live.epochs(&topic));
    let first = paging::checked_first(asked.first)?;
    let after = asked.after.map(|after| list.begin_after(&after)).transpose()?;
    let (from, to) = (asked.from.map(|time| time.0), asked.to.map(|time| time.0));
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(fault(ErrorCode::ValidationFailed, "from must not be later than to"));
    }
    let rows = |found: &Found| found.looked_at;
    let found = read(ctx, rows, move |log| {
        let wanted = |one: &Item| match (from, to) {
            (None, None) => true,
            _ => one.time.is_some_and(|time| {
                from.is_none_or(|from| time >= from) && to.is_none_or(|to| time < to)
            }),
        };
        let read_at_once = if from.is_none() && to.is_none() { first + 1 } else { READ_AT_ONCE };
        let after = after.unwrap_or(0);
        let search = Search { topic, after, taken_since, first, read_at_once };
        search.run(log, wanted, |stored| item(stored, |market| live.definition(market)))
    });
    let found = found.await?;
    offload::before(ctx, Work::Row, found.items.len()).await;
    offload::before_items(ctx, found.items.len()).await?;
    let at = move |sequence| list.cursor(sequence);
    let info = PageInfo {
        has_next_page: found.more,
        has_previous_page: found.before,
        start_cursor: found.items.first().map(|one| at(one.sequence)),
        end_cursor: found.end.map(&at),
    };
    Ok((found.items, info, at))
}

struct Search {
    topic: TopicName,
    after: u64,
    taken_since: Option<Micros>,
    first: usize,
    read_at_once: usize,
}

#[derive(Default)]
struct Found {
    items: Vec<Item>,
    /// Something follows, or may follow.
    more: bool,
    /// Something came before.
    before: bool,
    /// Pass this as `after` for the next page.
    end: Option<u64>,
    /// Rows of the log that were read for it.
    looked_at: usize,
}

impl Search {
    fn run(
        &self,
        log: &LogReader,
        wanted: impl Fn(&Item) -> bool,
        read: impl Fn(&crate::store::Stored) -> std::result::Result<Item, StoreError>,
    ) -> std::result::Result<Found, StoreError> {
        let before = self.after > 0 && log.last_until(&self.topic, self.after)?.is_some();
        let mut found = Found { before, ..Found::default() };
        let topics = [self.topic.clone()];
        let earlier = self.taken_since.map(|since| log.last_before(since)).transpose()?;
        let (mut seen, mut bytes) = (self.after.max(earlier.unwrap_or(0)), 0);
        loop {
            let most = self.read_at_once;
            let span = Span { after: seen, until: u64::MAX, most, most_bytes: PAGE_BYTES };
            let rows = log.read_span(&topics, &span)?;
            if rows.is_empty() {
                return Ok(found);
            }
            found.looked_at += rows.len();
            for stored in &rows {
                let one = read(stored)?;
                if wanted(&one) {
                    bytes += stored.body.len();
                    let full = found.items.len() == self.first || bytes > PAGE_BYTES;
                    if full && !found.items.is_empty() {
                        found.more = true;
                        return Ok(found);
                    }
                    found.end = Some(one.sequence);
                    found.items.push(one);
                }
                seen = stored.sequence;
            }
            if found.looked_at >= MOST_LOOKED_AT {
                (found.more, found.end) = (true, Some(seen));
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::market::topic::Topic;
    use crate::store::{NewEvent, Store};

    use super::*;

    fn search(after: u64, first: usize, read_at_once: usize) -> Search {
        let topic = Topic::Trades("A-B").name();
        Search { topic, after, taken_since: None, first, read_at_once }
    }

    /// Trades of two markets in turn, at a time that is their number in the log.
    fn log(events: usize) -> (tempfile::TempDir, LogReader) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let mut store = Store::open(&path).unwrap();
        let events: Vec<_> = (1..=events)
            .map(|number| {
                let market = if number.is_multiple_of(2) { "A-B" } else { "C-D" };
                let time = crate::market::time::time_text(number as i64);
                let body = format!(
                    r#"{{"kind":"trade","market":"{market}","price":"1","size":"1","time":"{time}"}}"#
                );
                let topic = Topic::Trades(market).name();
                NewEvent { topic, body: body.into(), ..NewEvent::default() }
            })
            .collect();
        store.append(&events, &[], 1).unwrap();
        let reader = store.reader().unwrap();
        (folder, reader)
    }

    fn sequences(found: &Found) -> Vec<u64> {
        found.items.iter().map(|one| one.sequence).collect()
    }

    #[test]
    fn pages_follow_one_another_without_gap_or_double() {
        let (_folder, log) = log(25);
        let (mut after, mut all) = (0, Vec::new());
        loop {
            let found = search(after, 5, 6).run(&log, |_| true, |one| item(one, |_| None)).unwrap();
            assert_eq!(found.before, after > 0);
            all.extend(sequences(&found));
            after = found.end.unwrap();
            if !found.more {
                break;
            }
            assert_eq!(found.items.len(), 5);
        }
        assert_eq!(all, (2..=24).step_by(2).collect::<Vec<_>>());
        let end = search(after, 5, 6).run(&log, |_| true, |one| item(one, |_| None)).unwrap();
        assert_eq!((end.items.len(), end.more, end.before, end.end), (0, false, true, None));
    }

    #[test]
    fn a_page_of_long_lines_ends_before_a_mib_and_the_next_one_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let mut store = Store::open(&path).unwrap();
        let event = |_| {
            let body = format!(
                r#"{{"kind":"trade","market":"A-B","price":"1","size":"1"}}{}"#,
                " ".repeat(PAGE_BYTES / 4)
            );
            NewEvent { topic: Topic::Trades("A-B").name(), body: body.into(), ..Default::default() }
        };
        store.append(&(0..5).map(event).collect::<Vec<_>>(), &[], 1).unwrap();
        let log = store.reader().unwrap();
        let page =
            |after| search(after, 100, 101).run(&log, |_| true, |one| item(one, |_| None)).unwrap();
        let (first, second) = (page(0), page(3));
        assert_eq!((sequences(&first), first.more), (vec![1, 2, 3], true));
        assert_eq!((sequences(&second), second.more), (vec![4, 5], false));
    }

    #[test]
    fn a_page_that_looked_at_too_much_says_where_to_go_on() {
        let (_folder, log) = log(2 * MOST_LOOKED_AT + 4 * READ_AT_ONCE);
        let last = 2 * MOST_LOOKED_AT as i64 + 2;
        let late = |one: &Item| one.time.is_some_and(|time| time >= last);
        let search_on = |after| {
            search(after, 3, READ_AT_ONCE).run(&log, late, |one| item(one, |_| None)).unwrap()
        };
        let nothing = search_on(0);
        assert_eq!((nothing.items.len(), nothing.more), (3, true), "found on the last read");
        let none = |_: &Item| false;
        let found = search(0, 3, READ_AT_ONCE).run(&log, none, |one| item(one, |_| None)).unwrap();
        assert!(found.items.is_empty() && found.more);
        assert!(found.end.unwrap() >= 2 * MOST_LOOKED_AT as u64);
    }
    #[test]
    fn a_page_of_the_trades_since_a_moment_begins_there_and_not_at_the_first_trade() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let mut store = Store::open(&path).unwrap();
        let event = |_| {
            let body = r#"{"kind":"trade","market":"A-B","price":"1","size":"1"}"#;
            NewEvent { topic: Topic::Trades("A-B").name(), body: body.into(), ..Default::default() }
        };
        // The clock was ahead for a while.
        let moments = [10, 20, 90, 91, 30, 40, 50, 50, 60, 70];
        for moment in moments {
            store.append(&(0..1_000).map(event).collect::<Vec<_>>(), &[], moment).unwrap();
        }
        let log = store.reader().unwrap();
        for since in 0..100 {
            let search = Search { taken_since: Some(since), ..search(0, 3, 4) };
            let found = search.run(&log, |_| true, |one| item(one, |_| None)).unwrap();
            // From here on all were taken since then.
            let batch = moments.iter().rposition(|moment| *moment < since).map_or(0, |at| at + 1);
            let first = sequences(&found).first().copied();
            assert!(first.is_none_or(|first| first <= 1_000 * batch as u64 + 1), "{since}");
            if (1..=30).contains(&since) {
                assert_eq!(first, Some(1_000 * batch as u64 + 1), "{since}");
            }
            assert!(found.looked_at <= 4, "{since}");
        }
        let last = Search { after: 9_998, taken_since: Some(10), ..search(0, 3, 4) };
        let found = last.run(&log, |_| true, |one| item(one, |_| None)).unwrap();
        assert_eq!(sequences(&found), [9_999, 10_000], "a cursor that is further on counts");
    }
}
