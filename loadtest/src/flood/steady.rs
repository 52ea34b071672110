//! The plain subscribers whose frames are timed: a few sockets on the attacked market and a few on
//! another, one shared document each. A thread of their own that does nothing else, so that what is
//! measured is the hub.

use super::markets::Timeline;
use super::phase::PHASES;
use super::socket::{Message, Socket, number_after};
use crate::run::client::string_after;
use crate::run::meters::Histogram;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::LocalSet;

/// Between a close or a refusal and the next attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Events this young at the end may still be on their way: not counted as missing.
const GRACE_MICROS: i64 = 500_000;

/// A market and how many sockets read it.
#[derive(Debug, Clone)]
pub struct Group {
    pub market: &'static str,
    pub sockets: usize,
    pub timeline: Arc<Timeline>,
}

/// What the sockets of a group saw of the events of one phase.
#[derive(Debug, Default)]
pub struct Seen {
    pub delays: Histogram,
    pub frames: u64,
    pub merged: u64,
    /// Frames that report any other state than LIVE.
    pub not_live: u64,
    /// Events that never came; they are among the delays, with their age at the end.
    pub missing: u64,
}

#[derive(Debug, Default, Clone, Serialize)]
pub struct Troubles {
    pub closes: BTreeMap<String, u64>,
    pub refusals: BTreeMap<String, u64>,
    pub errors: u64,
    pub first_error: Option<String>,
}

#[derive(Debug, Default)]
pub struct GroupSeen {
    pub phases: [Seen; PHASES.len()],
    /// The largest delay of the events of each second since 1970, in microseconds.
    pub seconds: BTreeMap<i64, u64>,
    pub troubles: Troubles,
}

pub struct Steady {
    /// Sockets that have had a frame.
    ready: Arc<AtomicUsize>,
    wanted: usize,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<Vec<GroupSeen>, String>>,
}

impl Steady {
    pub fn start(address: SocketAddr, groups: Vec<Group>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let ready = Arc::new(AtomicUsize::new(0));
        let wanted = groups.iter().map(|group| group.sockets).sum();
        let counted = Arc::clone(&ready);
        let thread = thread::spawn(move || subscribe(address, &groups, &counted, &stopped));
        Self { ready, wanted, stop, thread }
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) >= self.wanted
    }

    /// # Errors
    /// When the thread could not run.
    pub fn finish(self) -> Result<Vec<GroupSeen>, String> {
        let _ = self.stop.send(true);
        self.thread.join().map_err(|_| "the steady subscribers panicked".to_owned())?
    }
}

fn subscribe(
    address: SocketAddr,
    groups: &[Group],
    ready: &Arc<AtomicUsize>,
    stopped: &watch::Receiver<bool>,
) -> Result<Vec<GroupSeen>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, async {
        let mut all = Vec::with_capacity(groups.len());
        for group in groups {
            let sockets: Vec<_> = (0..group.sockets)
                .map(|_| {
                    let mut subscriber = Subscriber::new(group.clone(), Arc::clone(ready));
                    let mut stopped = stopped.clone();
                    tokio::task::spawn_local(async move {
                        tokio::select! {
                            () = subscriber.run(address) => {}
                            _ = stopped.wait_for(|stopped| *stopped) => {}
                        }
                        subscriber.finish()
                    })
                })
                .collect();
            all.push(sockets);
        }
        let mut seen = Vec::with_capacity(all.len());
        for sockets in all {
            let mut sum = GroupSeen::default();
            for socket in sockets {
                sum.add(socket.await.map_err(|error| error.to_string())?);
            }
            seen.push(sum);
        }
        Ok(seen)
    })
}

struct Subscriber {
    group: Group,
    ready: Arc<AtomicUsize>,
    seen: GroupSeen,
    /// How many events of the market are seen, once there was a first frame.
    reached: Option<usize>,
}

impl Subscriber {
    fn new(group: Group, ready: Arc<AtomicUsize>) -> Self {
        Self { group, ready, seen: GroupSeen::default(), reached: None }
    }

    async fn run(&mut self, address: SocketAddr) {
        loop {
            match Socket::open(address, None, None).await {
                Ok(mut socket) => {
                    let end = self.read(&mut socket).await;
                    *self.seen.troubles.closes.entry(end).or_default() += 1;
                }
                Err(reason) => *self.seen.troubles.refusals.entry(reason).or_default() += 1,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Returns how the socket ended.
    async fn read(&mut self, socket: &mut Socket) -> String {
        let subscribe = serde_json::json!({"id": "1", "type": "subscribe",
            "payload": {"query": query(self.group.market)}})
        .to_string();
        loop {
            let mut wanted = false;
            let mut failed = false;
            let turn = socket.turn(|message| match message.kind {
                b"next" => self.frame(&message),
                b"connection_ack" => wanted = true,
                b"error" | b"complete" => {
                    failed = true;
                    self.error(&message);
                }
                _ => {}
            });
            if let Err(end) = turn.await {
                return end;
            }
            if failed {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            if wanted || failed {
                socket.send(&subscribe);
            }
        }
    }

    fn error(&mut self, message: &Message) {
        // Before its first book a market may be unknown.
        if self.reached.is_some() {
            self.seen.troubles.errors += 1;
            let text = || String::from_utf8_lossy(message.text).into_owned();
            self.seen.troubles.first_error.get_or_insert_with(text);
        }
    }

    fn frame(&mut self, message: &Message) {
        let now = Timestamp::now().as_microsecond();
        let Some(time) = event_time(message.text) else {
            return;
        };
        let timeline = Arc::clone(&self.group.timeline);
        let events = timeline.events();
        let upto = events.partition_point(|event| event.time <= time);
        let Some(from) = self.reached else {
            self.reached = Some(upto);
            self.ready.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let phase = events.get(upto.wrapping_sub(1)).map_or(0, |event| event.phase.index());
        let seen = &mut self.seen.phases[phase];
        seen.frames += 1;
        let merged = number_after(message.text, b"\"mergedEvents\":", message.text.len());
        seen.merged += u64::from(merged.is_some_and(|events| events > 1));
        let state = string_after(message.text, b"\"state\":\"");
        seen.not_live += u64::from(state.is_some_and(|state| state != b"LIVE"));
        for event in events.get(from..upto).unwrap_or_default() {
            let delay = u64::try_from(now - event.time).unwrap_or(0);
            self.seen.phases[event.phase.index()].delays.record(delay);
            let slowest = self.seen.seconds.entry(event.time / 1_000_000).or_default();
            *slowest = delay.max(*slowest);
        }
        self.reached = Some(from.max(upto));
    }

    /// What didn't come is as late as it is old.
    fn finish(mut self) -> GroupSeen {
        let now = Timestamp::now().as_microsecond();
        let timeline = Arc::clone(&self.group.timeline);
        let events = timeline.events();
        for event in events.get(self.reached.unwrap_or(0)..).unwrap_or_default() {
            if now - event.time > GRACE_MICROS {
                let seen = &mut self.seen.phases[event.phase.index()];
                seen.missing += 1;
                seen.delays.record(u64::try_from(now - event.time).unwrap_or(0));
            }
        }
        self.seen
    }
}

impl GroupSeen {
    fn add(&mut self, other: Self) {
        for (sum, one) in self.phases.iter_mut().zip(&other.phases) {
            sum.delays.add(&one.delays);
            sum.frames += one.frames;
            sum.merged += one.merged;
            sum.not_live += one.not_live;
            sum.missing += one.missing;
        }
        for (second, delay) in other.seconds {
            let slowest = self.seconds.entry(second).or_default();
            *slowest = delay.max(*slowest);
        }
        let troubles = &mut self.troubles;
        for (code, count) in other.troubles.closes {
            *troubles.closes.entry(code).or_default() += count;
        }
        for (reason, count) in other.troubles.refusals {
            *troubles.refusals.entry(reason).or_default() += count;
        }
        troubles.errors += other.troubles.errors;
        troubles.first_error = troubles.first_error.take().or(other.troubles.first_error);
    }
}

fn query(market: &str) -> String {
    format!(
        "subscription {{ orderBook(market: \"{market}\") {{ __typename eventTime sequence \
         ... on BookSnapshot {{ reason bids {{ price size }} asks {{ price size }} }} \
         ... on BookDelta {{ mergedEvents prevSequence \
         bids {{ price size }} asks {{ price size }} }} \
         ... on BookHeartbeat {{ state lastEventAgeMs }} }} }}"
    )
}

fn event_time(text: &[u8]) -> Option<i64> {
    let time = std::str::from_utf8(string_after(text, b"\"eventTime\":\"")?).ok()?;
    Some(time.parse::<Timestamp>().ok()?.as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flood::markets::Written;
    use crate::flood::phase::Phase;

    fn frame(subscriber: &mut Subscriber, micros: i64, more: &str) {
        let time = Timestamp::from_microsecond(micros).unwrap();
        let text = format!("{{\"eventTime\":\"{time}\",{more}}}");
        subscriber.frame(&Message { kind: b"next", id: b"1", text: text.as_bytes() });
    }

    #[test]
    fn a_frame_counts_every_event_it_brings_in_that_events_phase() {
        let timeline = Arc::new(Timeline::default());
        let phases = [Phase::Warm, Phase::Before, Phase::Before, Phase::During, Phase::During];
        timeline.events().extend((1..).zip(phases).map(|(time, phase)| Written { time, phase }));
        let group = Group { market: "A-B", sockets: 1, timeline };
        let mut subscriber = Subscriber::new(group, Arc::default());
        frame(&mut subscriber, 1, "");
        frame(&mut subscriber, 4, "\"mergedEvents\":3");
        // Repeats the position: brings no event.
        frame(&mut subscriber, 4, "\"state\":\"STALE\"");
        let seen = subscriber.finish();
        let samples = |phase: Phase| seen.phases[phase.index()].delays.samples;
        assert_eq!((samples(Phase::Warm), samples(Phase::Before)), (0, 2));
        let during = &seen.phases[Phase::During.index()];
        // The fourth came; the fifth never did, and counts as late as it is old.
        assert_eq!((during.delays.samples, during.missing), (2, 1));
        assert_eq!((during.frames, during.merged, during.not_live), (2, 1, 1));
        assert_eq!(seen.seconds.keys().collect::<Vec<_>>(), [&0]);
    }
}
