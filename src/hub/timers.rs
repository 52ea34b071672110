//! What the hub does by the clock: feeds' health reaches the streams, idle streams go, rings give
//! way where memory is short.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spreadly_subscriptions::Streams;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::feed_log::FeedLog;
use crate::ingest::feed_status::{self, Cause, FeedId, FeedStatus, FeedStatuses, LastRefusal};
use crate::ingest::topic_sources::TopicSources;
use crate::live::{Encoders, FeedState, FeedStates, FeedView, Live, MOST_GAPS, RefusedEvent};
use crate::market::book_gap::BookGap;
use crate::store::LogFiles;

const HEARTBEAT: Duration = Duration::from_secs(1);
const SWEEP: Duration = Duration::from_secs(1);
/// Streams that are forgotten at once, and the pause between two such steps. Freeing their frames
/// takes some 10 us each, and other tasks of the runtime wait meanwhile. With both, 10,000 streams
/// are forgotten within 5 s.
const FORGOTTEN_AT_ONCE: usize = 8;
const SWEEP_PAUSE: Duration = Duration::from_millis(2);
/// How often rings are looked at: what may be encoded in between is well below a quarter of the
/// smallest useful budget.
const RESIZE: Duration = Duration::from_millis(250);
/// Counts in a feed's status change with every event; clients receive them at most this often.
const STATUS_PACE: Duration = Duration::from_millis(250);

pub fn start(
    encoders: &Arc<Encoders>,
    streams: &Arc<Streams>,
    statuses: &FeedStatuses,
    log: LogFiles,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) {
    // Of the state that queries read; the workers have a clock of their own.
    let beating = encoders.live().clone();
    tracker.spawn(every(HEARTBEAT, stop.clone(), move || beating.heartbeat()));
    tracker.spawn(sweep(streams.clone(), stop.clone()));
    let resizing = streams.clone();
    let resize = move || resizing.resize_rings(Instant::now());
    tracker.spawn(every(RESIZE, stop.clone(), resize));
    let refusing = statuses.clone();
    let log_refusals = move || refusing.log_refusals(std::time::Instant::now());
    tracker.spawn(every(HEARTBEAT, stop.clone(), log_refusals));
    tracker.spawn(follow_feeds(encoders.clone(), statuses.clone(), stop.clone()));
    let statuses = statuses.clone();
    tracker.spawn(every(HEARTBEAT, stop.clone(), move || watch_log(&log, &statuses)));
}

/// Halts all feeds while a file of the log is gone, also where nothing is written meanwhile.
fn watch_log(log: &LogFiles, statuses: &FeedStatuses) {
    match log.check() {
        Ok(()) => statuses.clear_all(Cause::LogFile),
        Err(error) => statuses.halt_all(Cause::LogFile, &error.to_string()),
    }
}

/// Forgets the streams that nobody reads any more.
async fn sweep(streams: Arc<Streams>, stop: CancellationToken) {
    let mut pause = SWEEP;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let others = streams.forget_idle(FORGOTTEN_AT_ONCE, Instant::now());
        pause = if others { SWEEP_PAUSE } else { SWEEP };
    }
}

async fn every(period: Duration, stop: CancellationToken, act: impl Fn()) {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        act();
    }
}

/// Says on every topic and in the state of the feeds that the hub is about to close its sockets.
pub fn shut_down(encoders: &Encoders, statuses: &FeedStatuses) {
    encoders.set_feed_states(FeedStates::all(FeedState::ShuttingDown));
    statuses.all_shutting_down();
    encoders.set_feeds(views(statuses.snapshot(), encoders.live()));
}

/// Sends the state of the feeds to the streams.
async fn follow_feeds(encoders: Arc<Encoders>, statuses: FeedStatuses, stop: CancellationToken) {
    let (mut changes, mut log) = (statuses.changes(), FeedLog::default());
    let mut computed = None;
    loop {
        changes.mark_unchanged();
        let feeds = statuses.snapshot();
        log.look(&feeds);
        // The drain's own word stays the last.
        if encoders.live().feed_states().others() != FeedState::ShuttingDown {
            let of = (health(&feeds), statuses.sources().changes());
            if computed.as_ref() != Some(&of) {
                encoders.set_feed_states(states(&feeds, statuses.sources()));
                computed = Some(of);
            }
        }
        encoders.set_feeds(views(feeds, encoders.live()));
        // The look itself may have changed what the next one finds.
        let now = statuses.sources().changes();
        let is_due = computed.as_ref().is_some_and(|(_, seen)| *seen != now);
        let pause = async {
            tokio::time::sleep(STATUS_PACE).await;
            if is_due { Ok(()) } else { changes.changed().await }
        };
        match stop.run_until_cancelled(pause).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// What decides the states of topics.
type Health = Vec<(feed_status::FeedState, [BTreeMap<Arc<str>, String>; 2])>;

fn health(feeds: &[FeedStatus]) -> Health {
    let sources = |feed: &FeedStatus| [feed.source_faults.clone(), feed.stale_sources.clone()];
    feeds.iter().map(|feed| (feed.state, sources(feed))).collect()
}

/// A topic has the worst state of its sources. A topic without a known source may be of any feed.
fn states(feeds: &[FeedStatus], sources: &TopicSources) -> FeedStates {
    let worst = feeds.iter().map(|feed| feed.state).max().unwrap_or_default();
    match worst {
        feed_status::FeedState::Live if !sources.misses_any() => FeedStates::default(),
        worst => {
            let known = sources.states(feeds).into_iter();
            let known = known.map(|(topic, state)| (topic, state.into())).collect();
            FeedStates::new(known, worst.into())
        }
    }
}

impl From<feed_status::FeedState> for FeedState {
    fn from(state: feed_status::FeedState) -> Self {
        match state {
            feed_status::FeedState::Live => Self::Live,
            feed_status::FeedState::Stale => Self::Stale,
            feed_status::FeedState::Halted => Self::Halted,
            feed_status::FeedState::ShuttingDown => Self::ShuttingDown,
        }
    }
}

fn views(feeds: Vec<FeedStatus>, live: &Live) -> Vec<FeedView> {
    let gaps = live.book_gaps();
    feeds.into_iter().map(|feed| view(feed, &gaps)).collect()
}

fn view(feed: FeedStatus, gaps: &[Arc<BookGap>]) -> FeedView {
    let is_own = |gap: &&Arc<BookGap>| gap.source.as_deref().is_none_or(|own| own == &*feed.name);
    FeedView {
        gaps: gaps.iter().filter(is_own).take(MOST_GAPS).cloned().collect(),
        name: feed.name.to_string(),
        kind: format!("{:?}", feed.kind).to_uppercase(),
        state: feed.state.into(),
        reason: feed.reason,
        events_total: feed.events_total,
        known_total: feed.known_total,
        refused_total: feed.refused_total,
        last_refusal: feed.last_refusal.as_ref().map(refused),
        refusals: feed.refusals.newest_first().map(refused).collect(),
        last_event_time: feed.last_event_micros,
        lag: Some(feed.lag),
    }
}

fn refused(refusal: &LastRefusal) -> RefusedEvent {
    RefusedEvent {
        source: refusal.place.source.to_string(),
        place: refusal.place.at.to_string(),
        reason: refusal.reason.to_string(),
    }
}

/// Calls a feed stale that should never be silent for `after`, and live when it speaks again.
pub async fn watch_for_silence(
    statuses: FeedStatuses,
    feed: FeedId,
    after: Duration,
    stop: CancellationToken,
) {
    let mut seen = None;
    let mut since = Instant::now();
    let mut silent = false;
    let mut interval = tokio::time::interval((after / 4).clamp(STATUS_PACE, HEARTBEAT));
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let Some(status) = statuses.get(feed) else { return };
        if status.last_event_micros != seen {
            seen = status.last_event_micros;
            since = Instant::now();
        }
        if silent != (since.elapsed() >= after) {
            silent = !silent;
            let reason = format!("no event for {} ms (stale_after_ms)", after.as_millis());
            statuses.stale(feed, silent.then_some(reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use spreadly_subscriptions::Epoch;

    use super::*;
    use crate::ingest::feed_status::FeedKind;
    use crate::live::Live;
    use crate::market::book_gap::Missed;
    use crate::store::LogReaders;

    #[test]
    fn a_status_names_a_hundred_books_with_gaps_of_its_own_feed() {
        let statuses = FeedStatuses::new();
        statuses.register("files", FeedKind::Files);
        let gap = |number: usize, source: Option<&str>| {
            let (market, source) = (number.to_string().into(), source.map(Box::from));
            let reason = "a fault".into();
            Arc::new(BookGap { market, missed: Missed::Levels, height: None, source, reason })
        };
        let named = |gaps: &[_]| {
            let status = statuses.snapshot().remove(0);
            view(status, gaps).gaps.len()
        };
        assert_eq!(named(&[gap(1, Some("files")), gap(2, Some("kafka")), gap(3, None)]), 2);
        let many: Vec<_> = (0..=MOST_GAPS).map(|number| gap(number, None)).collect();
        assert_eq!(named(&many), MOST_GAPS);
    }

    #[test]
    fn followers_of_the_feeds_see_the_shutdown_before_the_tasks_of_the_feeds_end() {
        let log = LogReaders::new("nowhere".as_ref(), 1);
        let live = Arc::new(Live::new(Epoch(7), Box::new(|| 0), 16, log));
        let encoders = Encoders::new(live.clone(), 1, 100_000);
        let statuses = FeedStatuses::new();
        statuses.register("files", FeedKind::Files);
        statuses.register("simulator", FeedKind::Simulator);
        encoders.set_feeds(views(statuses.snapshot(), &live));
        shut_down(&encoders, &statuses);
        let states: Vec<_> = live.feeds().into_iter().map(|feed| feed.state).collect();
        assert_eq!(states, [FeedState::ShuttingDown; 2]);
        assert_eq!(live.feed_states(), FeedStates::all(FeedState::ShuttingDown));
    }
}
