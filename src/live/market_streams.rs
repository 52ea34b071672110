//! Streams that follow a value of several markets, such as the best bid and offer. One lock for all
//! of it: a stream spans markets, and its ring needs rising sequences.
//!
//! A frame states the whole value of one market, so nothing has to be merged for a slow reader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};
use spreadly_subscriptions::{Epoch, Frame, ResponseStream, Resume};

use super::feed_states::FeedStates;
use super::frame::{Encode, FeedState, LiveFrame, SnapshotReason, is_same};
use super::pace::{QUIET_BEATS, Touched};
use super::start_from::StartFrom;
use super::stated_frames::StatedFrames;
use super::steps::Step;
use crate::market::definition::{MarketDefinition, MarketId};
use crate::market::epochs::{EpochChange, EpochHistory};
use crate::market::time::Micros;

/// What streams follow of each market.
pub(super) trait MarketValue: Clone + Default {
    /// Of the event that last changed it.
    fn sequence(&self) -> u64;

    /// Raises the sequence to where an epoch began.
    fn set_sequence(&mut self, sequence: u64);

    /// Of the feeds that it is made of.
    fn feed_state(states: &FeedStates, market: &str) -> FeedState;

    fn frame(entry: &MarketEntry<Self>, link: FrameLink) -> LiveFrame;
}

/// How a frame follows the one before.
#[derive(Clone, Copy)]
pub(super) struct FrameLink {
    /// Sequence of the frame before; `None` where the value is stated for a reason.
    pub(super) previous: Option<u64>,
    pub(super) merged_events: u64,
    pub(super) reason: Option<SnapshotReason>,
    /// Nothing changed: the frame is a heartbeat.
    pub(super) is_heartbeat: bool,
    pub(super) state: FeedState,
    pub(super) now: Micros,
}

/// A market with its value.
#[derive(Clone)]
pub(super) struct MarketEntry<T> {
    pub(super) definition: Arc<MarketDefinition>,
    pub(super) epochs: EpochHistory,
    pub(super) value: T,
    /// The market's book missed an event: what is made of it is not up to date.
    has_gap: bool,
    feed_state: FeedState,
    /// Counts the changes by events, and those by the clock.
    events: u64,
    rolls: u64,
    /// Streams that follow it and push each change.
    raw: BTreeSet<u64>,
}

impl<T> MarketEntry<T> {
    /// Whether the value is up to date.
    fn state(&self) -> FeedState {
        match self.feed_state {
            FeedState::Live if self.has_gap => FeedState::Stale,
            state => state,
        }
    }
}

impl<T: MarketValue> MarketEntry<T> {
    fn pushed(&self) -> Pushed {
        Pushed {
            quiet_beats: 0,
            stated: StatedFrames::default(),
            epoch: self.epochs.epoch(),
            sequence: self.value.sequence(),
            events: self.events,
            rolls: self.rolls,
            state: self.state(),
            definition: self.definition.clone(),
        }
    }
}

pub(super) struct MarketStreams<T> {
    states: FeedStates,
    /// Of the last event of the log that changed any value.
    sequence: u64,
    markets: HashMap<MarketId, MarketEntry<T>>,
    streams: BTreeMap<u64, MarketStream>,
}

struct MarketStream {
    stream: Arc<ResponseStream>,
    encode: Encode,
    /// Of the last frame in the ring: a sequence of the log, over all markets.
    last: u64,
    markets: BTreeMap<MarketId, Pushed>,
}

/// What a stream has pushed of a market.
struct Pushed {
    quiet_beats: u8,
    /// The current value, encoded for earlier readers.
    stated: StatedFrames,
    epoch: Epoch,
    sequence: u64,
    events: u64,
    rolls: u64,
    state: FeedState,
    definition: Arc<MarketDefinition>,
}

impl Pushed {
    /// Whether the value changed since.
    fn is_old<T>(&self, entry: &MarketEntry<T>) -> bool {
        (self.events, self.rolls) != (entry.events, entry.rolls)
    }

    /// Whether a frame is due, though the value may be as it was.
    fn is_due<T>(&self, entry: &MarketEntry<T>) -> bool {
        self.is_old(entry)
            || self.quiet_beats >= QUIET_BEATS
            || self.state != entry.state()
            || self.epoch != entry.epochs.epoch()
            || !is_same(&self.definition, &entry.definition)
    }
}

impl<T: MarketValue> MarketStreams<T> {
    pub(super) fn new() -> Self {
        Self {
            states: FeedStates::default(),
            sequence: 0,
            markets: HashMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Defines a market with this history of epochs, or redefines it.
    pub(super) fn define(
        &mut self,
        definition: &Arc<MarketDefinition>,
        epochs: &EpochHistory,
        touched: &mut Touched,
    ) {
        let entry = self.markets.entry(definition.market.clone()).or_insert_with(|| MarketEntry {
            definition: definition.clone(),
            epochs: epochs.clone(),
            value: T::default(),
            has_gap: false,
            feed_state: T::feed_state(&self.states, &definition.market),
            events: 0,
            rolls: 0,
            raw: BTreeSet::new(),
        });
        if !is_same(&entry.definition, definition) {
            touched.extend(&entry.raw);
        }
        entry.definition = definition.clone();
        for stream in self.streams.values_mut() {
            if let Some(pushed) = stream.markets.get_mut(&definition.market) {
                pushed.stated.clear();
            }
        }
    }

    /// A market's entry without its streams, for another copy of the state.
    pub(super) fn copy(&self, market: &str) -> Option<MarketEntry<T>> {
        let entry = self.markets.get(market)?.clone();
        Some(MarketEntry { raw: BTreeSet::new(), ..entry })
    }

    /// Replaces a market's entry by one of another copy. The streams that follow it stay.
    pub(super) fn adopt(&mut self, entry: MarketEntry<T>) {
        let id = entry.definition.market.clone();
        self.sequence = self.sequence.max(entry.value.sequence());
        let before = self.markets.remove(&id);
        let raw = before.map(|before| before.raw).unwrap_or_default();
        // The other copy may know other states of the feeds.
        let feed_state = T::feed_state(&self.states, &id);
        self.markets.insert(id, MarketEntry { raw, feed_state, ..entry });
    }

    pub(super) fn forget(&mut self, market: &str) {
        self.markets.remove(market);
    }

    pub(super) fn entry(&self, market: &str) -> Option<&MarketEntry<T>> {
        self.markets.get(market)
    }

    /// Lets an event change a value; `change` says whether it did. Streams that push each change
    /// are touched.
    pub(super) fn change(
        &mut self,
        market: &str,
        touched: &mut Touched,
        change: impl FnOnce(&mut T) -> bool,
    ) -> bool {
        let Some(entry) = self.markets.get_mut(market) else { return false };
        if !change(&mut entry.value) {
            return false;
        }
        entry.events += 1;
        touched.extend(&entry.raw);
        self.sequence = self.sequence.max(entry.value.sequence());
        true
    }

    /// Lets the clock change each value; `roll` says whether it did.
    pub(super) fn roll_all(&mut self, touched: &mut Touched, roll: impl Fn(&mut T) -> bool) {
        for entry in self.markets.values_mut() {
            if roll(&mut entry.value) {
                entry.rolls += 1;
                touched.extend(&entry.raw);
            }
        }
    }

    /// Puts a value back from the store. No stream follows it yet.
    pub(super) fn put_back(&mut self, market: &str, set: impl FnOnce(&mut T)) {
        let Some(entry) = self.markets.get_mut(market) else { return };
        set(&mut entry.value);
        self.sequence = self.sequence.max(entry.value.sequence());
    }

    /// Raises the sequence of a market that was read from the log to where its epoch began.
    pub(super) fn raise_to_epoch(&mut self, market: &str) {
        let Some(entry) = self.markets.get_mut(market) else { return };
        let sequence = entry.value.sequence().max(entry.epochs.since());
        entry.value.set_sequence(sequence);
        self.sequence = self.sequence.max(sequence);
    }

    /// Takes what is left of a market after a rollback. Its streams state the value that `set`
    /// leaves.
    pub(super) fn begin_epoch(
        &mut self,
        market: &str,
        change: EpochChange,
        touched: &mut Touched,
        set: impl FnOnce(&mut T),
    ) {
        let Some(entry) = self.markets.get_mut(market) else { return };
        if entry.epochs.since() >= change.at {
            return;
        }
        entry.epochs.begin(change);
        entry.events += 1;
        touched.extend(&entry.raw);
        set(&mut entry.value);
        self.raise_to_epoch(market);
    }

    pub(super) fn set_states(&mut self, states: FeedStates, touched: &mut Touched) {
        for (market, entry) in &mut self.markets {
            entry.feed_state = T::feed_state(&states, market);
        }
        self.states = states;
        for stream in self.streams.values_mut() {
            stream.markets.values_mut().for_each(|pushed| pushed.stated.clear());
        }
        touched.extend(self.streams.keys());
    }

    /// Sets whether a market's book missed an event.
    pub(super) fn set_gap(&mut self, market: &str, has_gap: bool, touched: &mut Touched) {
        let Some(entry) = self.markets.get_mut(market) else { return };
        if std::mem::replace(&mut entry.has_gap, has_gap) == has_gap {
            return;
        }
        touched.extend(&entry.raw);
        for stream in self.streams.values_mut() {
            if let Some(pushed) = stream.markets.get_mut(market) {
                pushed.stated.clear();
            }
        }
    }

    /// Pushes what changed since the stream's last frames and the heartbeats that are due, at most
    /// one frame for each market. False if more are left than belong to this step.
    pub(super) fn advance(&mut self, stream: u64, now: Micros, step: &mut Step) -> bool {
        let Some(own) = self.streams.get_mut(&stream) else { return true };
        let mut due: Vec<(u64, &MarketId)> = Vec::new();
        for (market, pushed) in &own.markets {
            let Some(entry) = self.markets.get(market) else { continue };
            if pushed.is_due(entry) {
                due.push((entry.value.sequence(), market));
            }
        }
        if due.is_empty() {
            return true;
        }
        due.sort_unstable();
        let due: Vec<_> = due.into_iter().map(|(_, market)| market.clone()).collect();
        for market in &due {
            if !step.goes_on() {
                return false;
            }
            own.push(market, &self.markets[market], now);
        }
        true
    }

    /// Called each second. Whether a market was quiet for long: then the stream is to be advanced.
    pub(super) fn beat(&mut self, stream: u64) -> bool {
        let Some(own) = self.streams.get_mut(&stream) else { return false };
        let mut is_due = false;
        for pushed in own.markets.values_mut() {
            pushed.quiet_beats = pushed.quiet_beats.saturating_add(1);
            is_due |= pushed.quiet_beats >= QUIET_BEATS;
        }
        is_due
    }

    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        markets: &[MarketId],
        encode: Encode,
    ) {
        let id = stream.id();
        let mut pushed = BTreeMap::new();
        for market in markets {
            let Some(entry) = self.markets.get_mut(market) else { continue };
            entry.raw.insert(id);
            pushed.insert(market.clone(), entry.pushed());
        }
        let stream = stream.clone();
        let own = MarketStream { stream, encode, last: self.sequence, markets: pushed };
        self.streams.insert(id, own);
    }

    /// Sets whether a stream pushes each change.
    pub(super) fn set_raw(&mut self, stream: u64, raw: bool) {
        let Some(own) = self.streams.get(&stream) else { return };
        for market in own.markets.keys() {
            if let Some(entry) = self.markets.get_mut(market) {
                match raw {
                    true => entry.raw.insert(stream),
                    false => entry.raw.remove(&stream),
                };
            }
        }
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.set_raw(stream.id(), false);
        self.streams.remove(&stream.id());
    }

    /// The markets that a stream follows; `None` if the stream is gone.
    pub(super) fn markets_of(&self, stream: u64) -> Option<impl Iterator<Item = &MarketId>> {
        self.streams.get(&stream).map(|own| own.markets.keys())
    }

    /// Where a reader starts: the value of each market, stated or after what the reader has. What
    /// follows in the ring follows these frames. `None` if it takes a further step.
    pub(super) fn start(
        &mut self,
        stream: u64,
        from: &StartFrom,
        now: Micros,
        step: &mut Step,
    ) -> Option<Resume> {
        if !self.advance(stream, now, step) {
            return None;
        }
        let Some(own) = self.streams.get_mut(&stream) else { return Some(Resume::CannotContinue) };
        let (sequence, encode) = (own.last, &mut own.encode);
        let link = FrameLink {
            previous: None,
            merged_events: 0,
            reason: None,
            is_heartbeat: false,
            state: FeedState::Live,
            now,
        };
        let mut frames = Vec::with_capacity(own.markets.len());
        for (market, pushed) in &mut own.markets {
            let Some(entry) = self.markets.get(market) else { continue };
            let link = FrameLink { state: entry.state(), ..link };
            let mut tail =
                |link| Frame::new(sequence, sequence, encode(T::frame(entry, link))).tail;
            let tail = match from.after(entry) {
                Ok(seen) => tail(FrameLink { previous: Some(seen), ..link }),
                // It may have been encoded at an earlier place of the ring, before another market
                // changed.
                Err(reason) => {
                    let make = || tail(FrameLink { reason: Some(reason), ..link });
                    pushed.stated.get(Some(reason), sequence, step, make)?.tail
                }
            };
            frames.push(Frame { previous: sequence, sequence, tail });
        }
        let next = own.stream.next_index();
        Some(match frames.is_empty() {
            true => Resume::Ring { seen: sequence, next },
            false => Resume::Frames { frames, next },
        })
    }
}

impl MarketStream {
    /// Pushes a market's value: after what was pushed of it, or stated where an epoch began.
    fn push<T: MarketValue>(&mut self, market: &MarketId, entry: &MarketEntry<T>, now: Micros) {
        let Some(pushed) = self.markets.get_mut(market) else { return };
        let same_epoch = pushed.epoch == entry.epochs.epoch();
        let link = FrameLink {
            previous: same_epoch.then_some(pushed.sequence),
            merged_events: if same_epoch { entry.events - pushed.events } else { 0 },
            reason: (!same_epoch).then(|| SnapshotReason::of_epoch(&entry.epochs)),
            is_heartbeat: !pushed.is_old(entry),
            state: entry.state(),
            now,
        };
        *pushed = entry.pushed();
        let bytes = (self.encode)(T::frame(entry, link));
        // Over all markets of the stream, so that its numbers rise.
        let sequence = self.last.max(entry.value.sequence());
        self.stream.push(Frame::new(self.last, sequence, bytes));
        self.last = sequence;
    }
}
