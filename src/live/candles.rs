//! One market's candles and the streams that follow them. All of it runs under the board's lock,
//! which is what makes joining free of gaps. A frame has the current state of a candle, so what a
//! reader missed is every candle that was touched since.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use spreadly_subscriptions::{Cursor, Epoch, Frame, ResponseStream, Resume};

use super::feed_states::FeedStates;
use super::frame::{
    CandleFrame, Encode, FeedState, LiveFrame, SnapshotReason, candles_topic, is_same,
};
use super::pace::{QUIET_BEATS, Touched};
use super::reader_errors::bad_cursor;
use super::steps::most_stated;
use crate::market::candles::{Candle, Interval, SERIES_KEPT, Series};
use crate::market::definition::MarketDefinition;
use crate::market::effect::Applied;
use crate::market::epochs::{EpochChange, EpochHistory, ResumeFrom};
use crate::market::time::Micros;
use crate::store::MarketCandles;

/// Trades of a market that a client can resume after: 32 KiB, and at ten trades a second some
/// minutes, which is longer than a reconnect takes.
const TRADES_KEPT: usize = 4_096;

/// Candles that the clock closed and that a stream has not pushed yet: a clock that leaps closes
/// many, and a stream without readers is not advanced.
const MOST_ROLLED: usize = 8;

/// The time and state of the hub at one moment.
#[derive(Clone)]
pub(super) struct Moment {
    pub(super) now: Micros,
    pub(super) states: FeedStates,
}

pub(super) struct CandleBoard {
    definition: Arc<MarketDefinition>,
    epochs: EpochHistory,
    /// In the order of [`Interval::ALL`].
    series: Vec<Series>,
    /// Sequences of the newest trades, oldest first: a power cut may have taken the one a client
    /// saw last, and the candles that it changed must be sent again.
    trades: VecDeque<u64>,
    /// The trade before those, or what began the epoch.
    floor: u64,
    /// Of the newest trade, or of what began the epoch.
    sequence: u64,
    event_time: Option<Micros>,
    /// The newest trade's candles, with the sequence of the trade before it.
    newest: Option<(u64, Vec<Candle>)>,
    streams: BTreeMap<u64, CandleStream>,
    /// Those that push each change.
    raw: BTreeSet<u64>,
}

struct CandleStream {
    stream: Arc<ResponseStream>,
    interval: Interval,
    /// Candles of the frame that a resumed reader gets.
    most_missed: usize,
    encode: Encode,
    /// Of the last frame in the ring.
    last: u64,
    epoch: Epoch,
    state: FeedState,
    /// As readers were sent it.
    definition: Arc<MarketDefinition>,
    /// What the clock closed since.
    rolled: Vec<Candle>,
    quiet_beats: u8,
    /// Encoded for an earlier joiner or reader since the last push: after which sequence, and why
    /// all candles were stated.
    started: Option<(u64, Option<SnapshotReason>, Frame)>,
}

impl CandleBoard {
    pub(super) fn new(definition: Arc<MarketDefinition>, epochs: EpochHistory) -> Self {
        let since = epochs.since();
        Self {
            definition,
            epochs,
            series: Interval::ALL.map(|interval| Series::new(interval, SERIES_KEPT)).into(),
            trades: VecDeque::new(),
            floor: since,
            sequence: since,
            event_time: None,
            newest: None,
            streams: BTreeMap::new(),
            raw: BTreeSet::new(),
        }
    }

    /// The candles without the streams, for another copy of the state.
    pub(super) fn copy(&self) -> Self {
        Self {
            definition: self.definition.clone(),
            epochs: self.epochs.clone(),
            series: self.series.clone(),
            trades: self.trades.clone(),
            floor: self.floor,
            sequence: self.sequence,
            event_time: self.event_time,
            newest: None,
            streams: BTreeMap::new(),
            raw: BTreeSet::new(),
        }
    }

    /// Replaces the candles by those of another copy; the streams stay.
    pub(super) fn adopt(&mut self, copy: Self) {
        let (streams, raw) = (std::mem::take(&mut self.streams), std::mem::take(&mut self.raw));
        *self = Self { streams, raw, ..copy };
    }

    /// Its decimals can't change once there are trades.
    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>, touched: &mut Touched) {
        if !is_same(&self.definition, definition) {
            touched.extend(&self.raw);
        }
        self.definition = definition.clone();
    }

    pub(super) fn restore(
        &mut self,
        known: &MarketCandles,
        event_time: Option<Micros>,
        moment: &Moment,
    ) {
        self.trades = known.trades.iter().copied().collect();
        let floor = if known.more_trades { self.trades.pop_front().unwrap_or(0) } else { 0 };
        // No client resumes from within an earlier epoch.
        self.floor = floor.max(self.epochs.since());
        self.trades.retain(|trade| *trade > self.floor);
        self.sequence = self.trades.back().copied().unwrap_or(self.floor);
        self.event_time = event_time;
        for (interval, candles, floor) in &known.series {
            if let Some(series) = self.series.iter_mut().find(|one| one.interval() == *interval) {
                series.restore(candles.clone(), *floor, self.sequence, moment.now);
            }
        }
    }

    /// Takes what is left after a rollback: every stream states it.
    pub(super) fn roll_back(
        &mut self,
        change: EpochChange,
        known: &MarketCandles,
        event_time: Option<Micros>,
        moment: &Moment,
        touched: &mut Touched,
    ) {
        if self.epochs.since() >= change.at {
            return;
        }
        self.epochs.begin(change);
        self.restore(known, event_time, moment);
        self.newest = None;
        touched.extend(self.streams.keys());
    }

    /// Takes a trade of the log.
    pub(super) fn trade(&mut self, event: &Applied, touched: &mut Touched) {
        if event.sequence <= self.sequence {
            return;
        }
        self.newest = Some((self.sequence, event.candles.clone()));
        self.sequence = event.sequence;
        self.event_time = event.time;
        self.trades.push_back(event.sequence);
        if self.trades.len() > TRADES_KEPT {
            self.floor = self.trades.pop_front().unwrap_or(self.floor);
        }
        for (series, candle) in self.series.iter_mut().zip(&event.candles) {
            series.put(candle.clone());
        }
        touched.extend(&self.raw);
    }

    /// Called each second: touches the streams of intervals in which the clock has closed a candle.
    pub(super) fn roll(&mut self, now: Micros, touched: &mut Touched) {
        let newest = self.sequence;
        for series in &mut self.series {
            let rolled = series.roll(newest, now);
            if rolled.is_empty() {
                continue;
            }
            let interval = series.interval();
            for (id, own) in self.streams.iter_mut().filter(|(_, own)| own.interval == interval) {
                own.rolled.extend(rolled.iter().cloned());
                let most = own.rolled.len().saturating_sub(MOST_ROLLED);
                own.rolled.drain(..most);
                if self.raw.contains(id) {
                    touched.push(*id);
                }
            }
        }
    }

    /// Pushes what changed since the stream's last frame.
    pub(super) fn advance(&mut self, stream: u64, moment: &Moment) {
        let Some(mut own) = self.streams.remove(&stream) else { return };
        let rolled = std::mem::take(&mut own.rolled);
        if own.epoch != self.epochs.epoch() {
            let reason = SnapshotReason::of_epoch(&self.epochs);
            self.restate(&mut own, reason, moment);
        } else if own.last != self.sequence {
            match self.unpushed(&own, moment) {
                Some((candles, events)) => {
                    own.push(self.frame(&own, Some(own.last), None, events, candles, moment));
                }
                None => self.restate(&mut own, SnapshotReason::Lagged, moment),
            }
        } else if !rolled.is_empty()
            || own.state != self.state(&moment.states)
            || !is_same(&own.definition, &self.definition)
        {
            own.push(self.frame(&own, Some(own.last), None, 0, rolled, moment));
        }
        self.streams.insert(stream, own);
    }

    /// The candles that a stream has to push, and how many trades these are of: of one trade its
    /// own candle.
    fn unpushed(&self, own: &CandleStream, moment: &Moment) -> Option<(Vec<Candle>, u64)> {
        let place = Interval::ALL.iter().position(|interval| *interval == own.interval)?;
        let newest = self.newest.as_ref().filter(|(previous, _)| *previous == own.last);
        match newest.and_then(|(_, candles)| candles.get(place)) {
            Some(candle) => Some((self.series(own.interval).touched(candle, moment.now), 1)),
            None => self.missed(own, own.last, moment),
        }
    }

    fn restate(&self, own: &mut CandleStream, reason: SnapshotReason, moment: &Moment) {
        let candles = self.series(own.interval).present(moment.now);
        own.push(self.frame(own, None, Some(reason), 0, candles, moment));
    }

    /// Called each second: a stream that was quiet for long pushes a heartbeat.
    pub(super) fn beat(&mut self, stream: u64, moment: &Moment) {
        self.advance(stream, moment);
        let Some(mut own) = self.streams.remove(&stream) else { return };
        own.quiet_beats += 1;
        if own.quiet_beats >= QUIET_BEATS {
            own.push(self.frame(&own, Some(own.last), None, 0, Vec::new(), moment));
        }
        self.streams.insert(stream, own);
    }

    /// Whether a stream pushes each change.
    pub(super) fn set_raw(&mut self, stream: u64, raw: bool) {
        match raw {
            true => self.raw.insert(stream),
            false => self.raw.remove(&stream),
        };
    }

    /// Those that follow the candles.
    pub(super) fn streams(&self) -> impl Iterator<Item = &u64> {
        self.streams.keys()
    }

    fn state(&self, states: &FeedStates) -> FeedState {
        states.of_trades(&self.definition.market)
    }

    fn series(&self, interval: Interval) -> &Series {
        // There is one of each.
        self.series.iter().find(|one| one.interval() == interval).unwrap_or(&self.series[0])
    }

    fn frame(
        &self,
        own: &CandleStream,
        previous: Option<u64>,
        reason: Option<SnapshotReason>,
        merged_events: u64,
        candles: Vec<Candle>,
        moment: &Moment,
    ) -> CandleFrame {
        CandleFrame {
            definition: self.definition.clone(),
            interval: own.interval,
            epoch: self.epochs.epoch(),
            sequence: self.sequence,
            previous,
            reason,
            merged_events,
            candles,
            event_time: self.event_time,
            publish_time: moment.now,
            slowed_to: None,
            state: self.state(&moment.states),
        }
    }

    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        (interval, fields): (Interval, usize),
        states: &FeedStates,
        encode: Encode,
    ) {
        let own = CandleStream {
            stream: stream.clone(),
            interval,
            most_missed: most_stated(fields),
            encode,
            last: self.sequence,
            epoch: self.epochs.epoch(),
            state: self.state(states),
            definition: self.definition.clone(),
            rolled: Vec::new(),
            quiet_beats: 0,
            started: None,
        };
        self.streams.insert(stream.id(), own);
        self.raw.insert(stream.id());
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.streams.remove(&stream.id());
        self.raw.remove(&stream.id());
    }

    pub(super) fn join(
        &mut self,
        stream: &ResponseStream,
        after: Option<&str>,
        moment: &Moment,
    ) -> Resume {
        // So that the ring's next frames follow the stated ones.
        self.advance(stream.id(), moment);
        let Some(after) = after else {
            return self.start(stream, None, SnapshotReason::Initial, moment);
        };
        let Some(own) = self.streams.get(&stream.id()) else { return Resume::CannotContinue };
        let topic = candles_topic(&self.definition.market, own.interval);
        let position = match Cursor::decode(after).and_then(|cursor| cursor.only(topic)) {
            Ok(position) => position,
            Err(fault) => return Resume::Refused(bad_cursor(fault)),
        };
        let (seen, otherwise) = match self.epochs.resume(&position, self.sequence) {
            ResumeFrom::After(seen) => (Some(seen), SnapshotReason::ResumeTooOld),
            ResumeFrom::RolledBack { .. } => (None, SnapshotReason::of_epoch(&self.epochs)),
            ResumeFrom::Start => (None, SnapshotReason::EpochChange),
        };
        self.start(stream, seen, otherwise, moment)
    }

    pub(super) fn catch_up(
        &mut self,
        stream: &ResponseStream,
        seen: u64,
        moment: &Moment,
    ) -> Resume {
        self.advance(stream.id(), moment);
        let otherwise = SnapshotReason::of_lag(seen, &self.epochs);
        self.start(stream, Some(seen), otherwise, moment)
    }

    /// The candles that a reader of a stream lacks which saw everything up to `seen`, and how many
    /// trades changed them. `None` if that isn't known any more, or if they are too many for a
    /// frame.
    fn missed(&self, own: &CandleStream, seen: u64, moment: &Moment) -> Option<(Vec<Candle>, u64)> {
        let place = self.trades.partition_point(|trade| *trade <= seen);
        let is_known = seen == self.floor || (place > 0 && self.trades[place - 1] == seen);
        let candles = self.series(own.interval).changes_since(seen, moment.now)?;
        let is_short = candles.len() <= own.most_missed;
        (is_known && is_short).then(|| (candles, (self.trades.len() - place) as u64))
    }

    /// Continues after what was seen, with one frame that merges what followed. States the candles
    /// where nothing was seen, or where what followed can't be stated.
    fn start(
        &mut self,
        stream: &ResponseStream,
        seen: Option<u64>,
        otherwise: SnapshotReason,
        moment: &Moment,
    ) -> Resume {
        let Some(mut own) = self.streams.remove(&stream.id()) else {
            return Resume::CannotContinue;
        };
        let missed = seen.and_then(|seen| Some((seen, self.missed(&own, seen, moment)?)));
        let (seen, reason) = match &missed {
            Some((seen, _)) => (*seen, None),
            None => (own.last, Some(otherwise)),
        };
        let cached =
            own.started.as_ref().filter(|(after, why, _)| (*after, *why) == (seen, reason));
        let frame = match cached {
            Some((_, _, frame)) => frame.clone(),
            None => {
                let next = match missed {
                    Some((_, (candles, events))) => {
                        self.frame(&own, Some(seen), None, events, candles, moment)
                    }
                    None => {
                        let candles = self.series(own.interval).present(moment.now);
                        self.frame(&own, None, reason, 0, candles, moment)
                    }
                };
                let frame = Frame::new(seen, own.last, (own.encode)(LiveFrame::Candles(next)));
                own.started = Some((seen, reason, frame.clone()));
                frame
            }
        };
        let next = own.stream.next_index();
        self.streams.insert(stream.id(), own);
        Resume::Frames { frames: vec![frame], next }
    }
}

impl CandleStream {
    fn push(&mut self, frame: CandleFrame) {
        let sequence = frame.sequence;
        (self.epoch, self.state) = (frame.epoch, frame.state);
        self.definition = frame.definition.clone();
        let bytes = (self.encode)(LiveFrame::Candles(frame));
        self.stream.push(Frame::new(self.last, sequence, bytes));
        self.last = sequence;
        self.quiet_beats = 0;
        self.started = None;
    }
}
