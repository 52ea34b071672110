//! Replays the log to readers that the ring no longer serves: page by page, read and encoded off
//! the shards' threads. A frame here has many items, in the order in which they were pushed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use spreadly_subscriptions::{Answer, Frame, Resume};

use super::continuation::{Continuation, Reach};
use super::stream::{At, TopicStream, frames_of};
use crate::live::Live;
use crate::live::frame::{Item, ItemBody, TopicName};
use crate::live::reader_errors::log_unavailable;
use crate::live::steps::{Step, in_steps};
use crate::market::definition::MarketDefinition;
use crate::market::event::{Body, parse};
use crate::market::orders::OrderUpdate;
use crate::market::trade::Trade;
use crate::pool::timed;
use crate::store::{LogReader, ReadError, Span, StoreError, Stored};

/// Events of a page: some milliseconds of reading and encoding.
const PAGE_EVENTS: usize = 512;
/// Bytes of their lines. What a page costs while its reader takes it in, about twice this.
const PAGE_BYTES: usize = 128 << 10;
/// How long a reader waits for its turn at the log before it must try again.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A rollback may remove what was read meanwhile; then a reader asks again where it continues. The
/// live state follows the log within milliseconds, so this is far longer than it takes.
const MOST_TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// What a reader asked for, which decides its answer when the log can't be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::live) enum Replay {
    /// It just asked: an error.
    Joining,
    /// In the middle of its stream: 1013, so that it resumes.
    CatchingUp,
}

impl Replay {
    /// Where a reader continues, from memory or, later, from the log. `ask` is called for each try
    /// and for each of its steps.
    pub(in crate::live) fn start(
        self,
        live: &Arc<Live>,
        stream: u64,
        names: &Arc<[TopicName]>,
        ask: impl Fn(&Live, &mut Step) -> Option<Continuation> + Send + Sync + 'static,
    ) -> Resume {
        let mut known = match ask(live, &mut Step::begin()) {
            Some(Continuation::Here(start)) => return start,
            known => known,
        };
        let (live, names) = (live.clone(), names.clone());
        Resume::Throttled(Box::pin(async move {
            let mut asking = Duration::ZERO;
            for _ in 0..MOST_TRIES {
                let place = match known.take() {
                    Some(place) => place,
                    None => match in_steps(&live.answering, |step| ask(&live, step)).await {
                        Some((place, took)) => {
                            asking += took;
                            place
                        }
                        None => return Resume::CannotContinue.into(),
                    },
                };
                let reach = match place {
                    Continuation::Here(resume) => return Answer { resume, took: asking },
                    Continuation::Log(reach) => reach,
                    Continuation::Forgotten(name) => {
                        let topic = name.clone();
                        let read = move |log: &LogReader| log.last_until(&topic, u64::MAX);
                        match live.log.clone().soon(LONGEST_WAIT, read).await {
                            Ok(last) => live.topics.lock().recall(&name, last.unwrap_or(0)),
                            Err(error) => return self.failed(&error).into(),
                        }
                        continue;
                    }
                };
                let (reading, names) = (live.clone(), names.clone());
                let read = move |log: &LogReader| {
                    let (frames, took) = timed(|| page(&reading, log, stream, &names, reach));
                    Ok((frames?, took))
                };
                match live.log.clone().soon(LONGEST_WAIT, read).await {
                    Ok((frames, took)) if !frames.is_empty() => {
                        return Answer { resume: Resume::Page(frames), took: asking + took };
                    }
                    Ok(_) => {}
                    Err(error) => return self.failed(&error).into(),
                }
                // A rollback came while it was read, or the stream was closed.
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            Resume::CannotContinue.into()
        }))
    }

    fn failed(self, error: &ReadError) -> Resume {
        match error {
            ReadError::Busy(_) => tracing::debug!(%error, "a replay had to be put off"),
            ReadError::Store(_) | ReadError::Broken(_) => {
                tracing::error!(%error, "a replay could not read the log");
            }
        }
        match self {
            Self::CatchingUp => Resume::CannotContinue,
            Self::Joining => Resume::Refused(log_unavailable()),
        }
    }
}

/// The frames that a reader lacks, or the first page of them; none if the stream is gone or went
/// back. On a blocking thread, all of it of one moment of the log.
fn page(
    live: &Live,
    log: &LogReader,
    stream: u64,
    names: &[TopicName],
    reach: Reach,
) -> Result<Vec<Frame>, StoreError> {
    // Locked for a frame at a time: the worker that pushes waits for this lock.
    fn with_stream<T>(
        live: &Live,
        stream: (u64, u64, u64),
        make: impl FnOnce(&mut TopicStream, &At) -> T,
    ) -> Option<T> {
        let mut topics = live.topics.lock();
        topics.with_stream(stream, live.now(), make)
    }
    let Reach { after, until, back, base } = reach;
    let stream = (stream, base, log.newest_epoch_change()?);
    // An earlier reader may have read it.
    let frame_events =
        match with_stream(live, stream, |own, _| own.page(&reach).ok_or(own.frame_events())) {
            None => return Ok(Vec::new()),
            Some(Ok(frames)) => return Ok(frames),
            Some(Err(frame_events)) => frame_events,
        };
    let mut frames = Vec::new();
    // Of each topic, the event before the next frame's first one.
    let mut before: HashMap<usize, u64> = HashMap::new();
    if back {
        for (place, name) in names.iter().enumerate() {
            let last = log.last_until(name, after)?.unwrap_or(0);
            let frame = with_stream(live, stream, |own, at| {
                own.position(place, Err(own.epoch_reason()), (last, None), after, at)
            });
            let Some(frame) = frame else { return Ok(Vec::new()) };
            frames.push(frame);
            before.insert(place, last);
        }
    }
    let span = Span { after, until, most: PAGE_EVENTS, most_bytes: PAGE_BYTES };
    let events = log.read_span(names, &span)?;
    let mut definitions = HashMap::new();
    let mut seen = after;
    for run in events.chunk_by(|one, next| one.topic == next.topic) {
        let Some(place) = names.iter().position(|name| **name == *run[0].topic) else { continue };
        for run in frames_of(run, frame_events, bytes) {
            let previous = match before.get(&place) {
                Some(previous) => *previous,
                None => log.last_until(&names[place], after)?.unwrap_or(0),
            };
            let mut items = Vec::with_capacity(run.len());
            for stored in run {
                items.push(item_of(live, &mut definitions, stored)?);
            }
            let last = run.last().map_or(seen, |stored| stored.sequence);
            let frame =
                with_stream(live, stream, |own, at| own.items(place, (seen, previous), items, at));
            let Some(frame) = frame else { return Ok(Vec::new()) };
            frames.push(frame);
            before.insert(place, last);
            seen = last;
        }
    }
    with_stream(live, stream, |own, _| own.keep_page(reach, frames.clone()));
    Ok(frames)
}

/// Of its line, and of the order's update with it.
fn bytes(stored: &Stored) -> usize {
    stored.body.len() + stored.update.as_ref().map_or(0, |update| update.len())
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
        Body::BookGap(gap) if gap.is_of_orders() => ItemBody::OfBook,
        Body::OrdersComplete(_) => ItemBody::OfBook,
        _ => return Err(unreadable("it is not an event of a log topic".to_owned())),
    };
    Ok(Item { sequence: stored.sequence, time: event.time, body })
}

#[cfg(test)]
mod tests {
    use super::super::stream::{FRAME_BYTES, FRAME_EVENTS};
    use super::*;

    #[test]
    fn a_frame_has_so_many_events_and_bytes_or_a_single_event() {
        let stored = |bytes: usize| Stored {
            sequence: 1,
            topic: "t".into(),
            body: "x".repeat(bytes).into(),
            received: 0,
            update: None,
        };
        let cut = |lengths: &[usize]| -> Vec<usize> {
            let run: Vec<_> = lengths.iter().copied().map(stored).collect();
            frames_of(&run, FRAME_EVENTS, bytes).map(<[_]>::len).collect()
        };
        assert!(cut(&[]).is_empty());
        assert_eq!(cut(&[1; FRAME_EVENTS + 1]), [FRAME_EVENTS, 1]);
        assert_eq!(cut(&[FRAME_BYTES / 2; 5]), [2, 2, 1]);
        assert_eq!(cut(&[10, FRAME_BYTES + 1, 10, 10]), [1, 1, 2]);
    }
}
