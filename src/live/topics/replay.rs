//! From the log back to frames, for readers whom no ring serves: page by page, read and encoded off
//! the shards' threads. A frame here has many items, but the same ones in the same order that were
//! pushed one by one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use spreadly_subscriptions::{Frame, Start};

use super::{Place, TopicName};
use crate::live::Live;
use crate::live::frame::{Item, ItemBody};
use crate::market::event::{Body, MarketDefinition, parse};
use crate::market::orders::OrderUpdate;
use crate::market::trade::Trade;
use crate::store::{LogReader, ReadError, Span, StoreError, Stored};

/// Events of a page: some milliseconds of reading and encoding.
const PAGE_EVENTS: usize = 512;
/// Bytes of their lines. What a page costs while its reader takes it in, about twice this.
const PAGE_BYTES: usize = 128 << 10;
/// Events of a frame, which is encoded under the topics' lock: below a millisecond.
const FRAME_EVENTS: usize = 64;
/// How long a reader waits for its turn at the log before it is told to come back.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a reader is told that the log could not be read for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::live) enum Replay {
    /// It just asked: an error.
    Joining,
    /// In the middle of its stream: 1013, so that it resumes.
    CatchingUp,
}

impl Replay {
    /// Where a reader goes on, from memory or, later, from the log.
    pub(in crate::live) fn start(
        self,
        live: &Arc<Live>,
        stream: u64,
        names: &Arc<[TopicName]>,
        place: Place,
    ) -> Start {
        let (after, until) = match place {
            Place::Here(start) => return start,
            Place::Log { after, until } => (after, until),
        };
        let (live, names) = (live.clone(), names.clone());
        Start::Later(Box::pin(async move {
            let reading = live.clone();
            let page = live
                .log
                .clone()
                .soon(PATIENCE, move |log| page(&reading, log, stream, &names, (after, until)));
            match page.await {
                Ok(frames) if !frames.is_empty() => Start::Page(frames),
                // The stream was closed meanwhile, and its readers with it.
                Ok(_) => Start::TooSlow,
                Err(error) => self.failed(&error),
            }
        }))
    }

    fn failed(self, error: &ReadError) -> Start {
        match error {
            ReadError::Busy(_) => tracing::debug!(%error, "a replay had to be put off"),
            ReadError::Store(_) | ReadError::Broken(_) => {
                tracing::error!(%error, "a replay could not read the log");
            }
        }
        match self {
            Self::CatchingUp => Start::TooSlow,
            Self::Joining => {
                let errors = json!([{
                    "message": "the log can't be read now: subscribe again with the same cursor",
                    "extensions": { "code": "UNAVAILABLE" },
                }]);
                Start::Refused(Bytes::from(errors.to_string()))
            }
        }
    }
}

/// The frames that follow `after`; none if the stream is gone. On a blocking thread.
fn page(
    live: &Live,
    log: &LogReader,
    stream: u64,
    names: &[TopicName],
    (after, until): (u64, u64),
) -> Result<Vec<Frame>, StoreError> {
    // Whoever came before in the crowd may have read it.
    if let Some(frames) = live.topics.lock().stream(stream).and_then(|own| own.page(after)) {
        return Ok(frames);
    }
    let span = Span { after, until, most: PAGE_EVENTS, most_bytes: PAGE_BYTES };
    let events = log.read_span(names, &span)?;
    let mut definitions = HashMap::new();
    // Of each topic, the event before the next frame's first one.
    let mut before: HashMap<&str, u64> = HashMap::new();
    let (mut frames, mut seen) = (Vec::new(), after);
    for run in events.chunk_by(|one, next| one.topic == next.topic) {
        let Some(name) = names.iter().find(|name| ***name == *run[0].topic) else { continue };
        for run in run.chunks(FRAME_EVENTS) {
            let previous = match before.get(&**name) {
                Some(previous) => *previous,
                None => log.last_until(name, after)?.unwrap_or(0),
            };
            let mut items = Vec::with_capacity(run.len());
            for stored in run {
                items.push(item_of(live, &mut definitions, stored)?);
            }
            let last = run.last().map_or(seen, |stored| stored.sequence);
            // Locked for a frame at a time: the sequencer waits for this lock.
            let mut topics = live.topics.lock();
            let Some(bytes) = topics.encode(stream, (name, previous), items, live.now()) else {
                return Ok(Vec::new());
            };
            drop(topics);
            frames.push(Frame::new(seen, last, bytes));
            before.insert(name, last);
            seen = last;
        }
    }
    if let Some(own) = live.topics.lock().stream(stream) {
        own.keep_page(after, frames.clone());
    }
    Ok(frames)
}

type Definitions = HashMap<Arc<str>, Option<Arc<MarketDefinition>>>;

fn item_of(
    live: &Live,
    definitions: &mut Definitions,
    stored: &Stored,
) -> Result<Item, StoreError> {
    item(stored, |market| {
        let known = definitions.entry(market.clone());
        known.or_insert_with(|| live.definition(market)).clone()
    })
}

/// What an event of a log topic means, read back from the log.
pub fn item(
    stored: &Stored,
    definition: impl FnOnce(&Arc<str>) -> Option<Arc<MarketDefinition>>,
) -> Result<Item, StoreError> {
    let unreadable =
        |reason: String| StoreError::Unreplayable { sequence: stored.sequence, reason };
    if let Some(update) = &stored.update {
        let update: OrderUpdate =
            serde_json::from_str(update).map_err(|error| unreadable(error.to_string()))?;
        let (time, body) = (update.order.updated_at, ItemBody::Order(Arc::new(update)));
        return Ok(Item { sequence: stored.sequence, time, body });
    }
    let event = parse(stored.body.as_bytes()).map_err(|refusal| unreadable(refusal.to_string()))?;
    let body = match event.body {
        Body::Trade(written) => {
            let market = definition(&written.market);
            let trade = Trade::from_log(&written, market.as_deref());
            ItemBody::Trade(Arc::new(trade.map_err(|error| unreadable(error.to_string()))?))
        }
        Body::Message(message) => ItemBody::Message(Arc::new(message)),
        _ => return Err(unreadable("it is no event that is told one by one".to_owned())),
    };
    Ok(Item { sequence: stored.sequence, time: event.time, body })
}
