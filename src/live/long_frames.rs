//! Frames of a book that take long to encode. Under the market's lock their levels are only taken;
//! the pool encodes them, and their readers wait for that.
//!
//! A reader gets such a frame with the place in the ring that follows it, as of the moment when the
//! levels were taken. What was pushed meanwhile comes from there. If the ring does not reach back
//! by then, the reader asks again, like any that was too slow.

use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use spreadly_subscriptions::{Frame, ResponseStream};

use super::Live;
use super::book_stream::{BookStream, Now};
use super::drafts::{Draft, Drafter, LongFrames, Made, Reply, Wanted};
use super::markets::Market;
use super::reader_errors::gone;
use crate::pool::timed;

/// What makes the replies of a stream of this market.
pub(super) fn drafter(long: Arc<LongFrames>, live: &Arc<Live>, market: &Arc<Market>) -> Drafter {
    let source = DraftSource { live: Arc::downgrade(live), market: Arc::downgrade(market) };
    Drafter {
        most_levels: long.most_levels(),
        make: Box::new(move |stream, wanted| {
            make(long.clone(), source.clone(), stream, wanted).boxed()
        }),
    }
}

/// The book that a draft is made of. It may be gone before its turn comes.
#[derive(Clone)]
struct DraftSource {
    live: Weak<Live>,
    market: Weak<Market>,
}

impl DraftSource {
    fn with<T>(&self, stream: u64, act: impl FnOnce(&mut BookStream, &Now<'_>) -> T) -> Option<T> {
        let (live, market) = (self.live.upgrade()?, self.market.upgrade()?);
        let mut state = market.state.lock();
        state.with(&live, stream, act)
    }
}

/// Makes a reply. Nothing is taken before the pool has a place for it, so a reply that waits is
/// small.
async fn make(
    long: Arc<LongFrames>,
    source: DraftSource,
    stream: Weak<ResponseStream>,
    wanted: Wanted,
) -> Made {
    let Some((id, is_shared)) =
        stream.upgrade().map(|stream| (stream.id(), stream.readership().shared))
    else {
        return Reply::CannotContinue.into();
    };
    // What several addresses read is no work of the one that opened it.
    let line = if is_shared { long.pool.common() } else { &long.line };
    let Ok(place) = long.pool.enter(line).await else { return Reply::CannotContinue.into() };
    let (draft, taking) = timed(|| source.with(id, |own, now| own.draft(now, wanted)));
    let draft = match draft {
        Some(Ok(draft)) => draft,
        Some(Err(reply)) => return reply.into(),
        None => return Reply::CannotContinue.into(),
    };
    let Draft { frame, wanted, previous, sequence, restated, next, notice } = draft;
    let encoding = long.clone();
    let encoded = place.run(move || {
        timed(|| {
            let mut encode = (encoding.encoder)()?;
            Some(Frame::new(previous, sequence, encode(frame.make())))
        })
    });
    let (frame, encoding) = match encoded.await {
        Ok((_, (Some(frame), took))) => (frame, took),
        Ok((_, (None, _))) => return Reply::Refused(gone()).into(),
        Err(_) => return Reply::CannotContinue.into(),
    };
    source.with(id, |own, _| own.keep(wanted, restated, &frame));
    let reply = Reply::Frames { frames: std::iter::once(frame).chain(notice).collect(), next };
    Made { reply, took: taking + encoding }
}
