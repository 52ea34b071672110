//! One market's candles and the streams that follow them. All of it runs under the board's lock,
//! which is what makes joining free of gaps. A candle is told as it is now, so what a reader missed
//! is every candle that was touched since.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use spreadly_subscriptions::{Cursor, Frame, ResponseStream, Start};

use super::book_stream::{QUIET_BEATS, bad_cursor};
use super::frame::{CandleFrame, Encode, FeedState, LiveFrame, SnapshotReason, candles_topic};
use crate::market::candles::{Candle, Interval, SERIES_KEPT, Series};
use crate::market::event::{Applied, MarketDefinition, Micros};
use crate::market::numbering::{Numbering, Standing, Undoing};
use crate::store::MarketCandles;

/// Trades of a market that a client can resume behind: 32 KiB, and at ten trades a second some
/// minutes, which is longer than a reconnect takes.
const TRADES_KEPT: usize = 4_096;

/// The hub as it is at this moment.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Micros,
    pub(super) state: FeedState,
}

pub(super) struct CandleBoard {
    definition: Arc<MarketDefinition>,
    numbering: Numbering,
    /// In the order of [`Interval::ALL`].
    series: Vec<Series>,
    /// Sequences of the newest trades, oldest first: a power cut may have taken the one a client
    /// saw last, and what it left in a candle then has to be told again.
    trades: VecDeque<u64>,
    /// The trade before those, or what began the epoch.
    floor: u64,
    /// Of the newest trade, or of what began the epoch.
    sequence: u64,
    event_time: Option<Micros>,
    streams: BTreeMap<u64, CandleStream>,
}

struct CandleStream {
    stream: Arc<ResponseStream>,
    interval: Interval,
    encode: Encode,
    /// Of the last frame in the ring.
    last: u64,
    quiet_beats: u8,
    /// Encoded for an earlier joiner or reader since the last push: after which sequence, and why
    /// it was stated anew.
    started: Option<(u64, Option<SnapshotReason>, Frame)>,
}

impl CandleBoard {
    pub(super) fn new(definition: Arc<MarketDefinition>, numbering: Numbering) -> Self {
        let since = numbering.since();
        Self {
            definition,
            numbering,
            series: Interval::ALL.map(|interval| Series::new(interval, SERIES_KEPT)).into(),
            trades: VecDeque::new(),
            floor: since,
            sequence: since,
            event_time: None,
            streams: BTreeMap::new(),
        }
    }

    /// Its decimals can't change once there are trades.
    pub(super) fn define(&mut self, definition: &Arc<MarketDefinition>) {
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
        // Nobody resumes from within an earlier epoch.
        self.floor = floor.max(self.numbering.since());
        self.trades.retain(|trade| *trade > self.floor);
        self.sequence = self.trades.back().copied().unwrap_or(self.floor);
        self.event_time = event_time;
        for (interval, candles, floor) in &known.series {
            if let Some(series) = self.series.iter_mut().find(|one| one.interval() == *interval) {
                series.restore(candles.clone(), *floor, self.sequence, moment.now);
            }
        }
    }

    /// Takes what is left once blocks were undone, and tells everyone anew.
    pub(super) fn reorganise(
        &mut self,
        undoing: Undoing,
        known: &MarketCandles,
        event_time: Option<Micros>,
        moment: &Moment,
    ) {
        self.numbering.undo(undoing);
        let reason = SnapshotReason::of_epoch(&self.numbering);
        self.restore(known, event_time, moment);
        self.each(|board, own| {
            let candles = board.series(own.interval).present(moment.now);
            own.push(board.frame(own, None, Some(reason), 0, candles, moment));
        });
    }

    /// Takes a trade that stands in the log.
    pub(super) fn trade(&mut self, event: &Applied, moment: &Moment) {
        if event.sequence <= self.sequence {
            return;
        }
        self.sequence = event.sequence;
        self.event_time = event.time;
        self.trades.push_back(event.sequence);
        if self.trades.len() > TRADES_KEPT {
            self.floor = self.trades.pop_front().unwrap_or(self.floor);
        }
        for (series, candle) in self.series.iter_mut().zip(&event.candles) {
            series.put(candle.clone());
        }
        self.each(|board, own| {
            let place = Interval::ALL.iter().position(|interval| *interval == own.interval);
            let Some(candle) = place.and_then(|place| event.candles.get(place)) else { return };
            let candles = board.series(own.interval).touched(candle, moment.now);
            own.push(board.frame(own, Some(own.last), None, 1, candles, moment));
        });
    }

    /// Called each second: tells what the clock has closed, and quiet streams that they live.
    pub(super) fn beat(&mut self, moment: &Moment) {
        let newest = self.sequence;
        let rolled: Vec<_> =
            self.series.iter_mut().map(|series| series.roll(newest, moment.now)).collect();
        self.each(|board, own| {
            own.quiet_beats += 1;
            let place = Interval::ALL.iter().position(|interval| *interval == own.interval);
            let candles = place.map(|place| rolled[place].clone()).unwrap_or_default();
            if own.quiet_beats >= QUIET_BEATS || !candles.is_empty() {
                own.push(board.frame(own, Some(own.last), None, 0, candles, moment));
            }
        });
    }

    /// Tells every stream the feeds' state at once.
    pub(super) fn announce(&mut self, moment: &Moment) {
        self.each(|board, own| {
            own.push(board.frame(own, Some(own.last), None, 0, Vec::new(), moment));
        });
    }

    fn each(&mut self, act: impl Fn(&Self, &mut CandleStream)) {
        let mut streams = std::mem::take(&mut self.streams);
        streams.values_mut().for_each(|own| act(self, own));
        self.streams = streams;
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
            epoch: self.numbering.epoch(),
            sequence: self.sequence,
            previous,
            reason,
            merged_events,
            candles,
            event_time: self.event_time,
            publish_time: moment.now,
            state: moment.state,
        }
    }

    pub(super) fn attach(
        &mut self,
        stream: &Arc<ResponseStream>,
        interval: Interval,
        encode: Encode,
    ) {
        let own = CandleStream {
            stream: stream.clone(),
            interval,
            encode,
            last: self.sequence,
            quiet_beats: 0,
            started: None,
        };
        self.streams.insert(stream.id(), own);
    }

    pub(super) fn detach(&mut self, stream: &ResponseStream) {
        self.streams.remove(&stream.id());
    }

    pub(super) fn join(
        &mut self,
        stream: &ResponseStream,
        after: Option<&str>,
        moment: &Moment,
    ) -> Start {
        let Some(after) = after else {
            return self.start(stream, None, SnapshotReason::Initial, moment);
        };
        let Some(own) = self.streams.get(&stream.id()) else { return Start::TooSlow };
        let topic = candles_topic(&self.definition.market, own.interval);
        let position = match Cursor::decode(after).and_then(|cursor| cursor.only(topic)) {
            Ok(position) => position,
            Err(fault) => return Start::Refused(bad_cursor(fault)),
        };
        let (seen, otherwise) = match self.numbering.standing(&position) {
            Standing::Now if position.sequence <= self.sequence => {
                (Some(position.sequence), SnapshotReason::ResumeTooOld)
            }
            Standing::Earlier { .. } => (None, SnapshotReason::of_epoch(&self.numbering)),
            // A sequence of the same epoch that the log has not reached: the log lost its end.
            Standing::Now | Standing::Unknown => (None, SnapshotReason::EpochChange),
        };
        self.start(stream, seen, otherwise, moment)
    }

    pub(super) fn catch_up(
        &mut self,
        stream: &ResponseStream,
        seen: u64,
        moment: &Moment,
    ) -> Start {
        let otherwise = SnapshotReason::of_lag(seen, &self.numbering);
        self.start(stream, Some(seen), otherwise, moment)
    }

    /// The candles that a reader who saw everything up to `seen` has to be told, and how many
    /// trades that stands for.
    fn missed(&self, interval: Interval, seen: u64, moment: &Moment) -> Option<(Vec<Candle>, u64)> {
        let behind = self.trades.partition_point(|trade| *trade <= seen);
        let stood = seen == self.floor || (behind > 0 && self.trades[behind - 1] == seen);
        let candles = self.series(interval).changes_since(seen, moment.now)?;
        stood.then(|| (candles, (self.trades.len() - behind) as u64))
    }

    /// Goes on behind what was seen, by one frame that merges what followed; where nothing was or
    /// that isn't known any more, states where the candles are.
    fn start(
        &mut self,
        stream: &ResponseStream,
        seen: Option<u64>,
        otherwise: SnapshotReason,
        moment: &Moment,
    ) -> Start {
        let Some(mut own) = self.streams.remove(&stream.id()) else { return Start::TooSlow };
        let missed = seen.and_then(|seen| Some((seen, self.missed(own.interval, seen, moment)?)));
        let (seen, reason) = match &missed {
            Some((seen, _)) => (*seen, None),
            None => (own.last, Some(otherwise)),
        };
        let cached =
            own.started.as_ref().filter(|(after, why, _)| (*after, *why) == (seen, reason));
        let frame = match cached {
            Some((_, _, frame)) => frame.clone(),
            None => {
                let told = match missed {
                    Some((_, (candles, events))) => {
                        self.frame(&own, Some(seen), None, events, candles, moment)
                    }
                    None => {
                        let candles = self.series(own.interval).present(moment.now);
                        self.frame(&own, None, reason, 0, candles, moment)
                    }
                };
                let frame = Frame::new(seen, own.last, (own.encode)(LiveFrame::Candles(told)));
                own.started = Some((seen, reason, frame.clone()));
                frame
            }
        };
        let next = own.stream.next_index();
        self.streams.insert(stream.id(), own);
        Start::Frames { frames: vec![frame], next }
    }
}

impl CandleStream {
    fn push(&mut self, frame: CandleFrame) {
        let sequence = frame.sequence;
        let bytes = (self.encode)(LiveFrame::Candles(frame));
        self.stream.push(Frame::new(self.last, sequence, bytes));
        self.last = sequence;
        self.quiet_beats = 0;
        self.started = None;
    }
}
