//! The subscriptions, and the slot through which a response stream drives one: the resolver checks
//! its arguments and names the source; frames come later, one at a time, from the owner of
//! the slot. So async-graphql never waits and never runs a task of its own.

use std::sync::Arc;
use std::task::{Poll, Waker};

use async_graphql::{Context, ID, Result, Subscription as GraphqlSubscription};
use async_graphql_parser::types::Field;
use futures_util::future::ready;
use futures_util::stream::{BoxStream, Stream, StreamExt, poll_fn};
use parking_lot::Mutex;

use super::errors::{
    ErrorCode, checked_depth, checked_topic, fault, limit_exceeded, no_market, state,
};
use super::identity::{Audience, own};
use super::limits::QueryLimits;
use super::query::live;
use super::types::book::{BookDelta, BookFrame, BookHeartbeat, BookSnapshot};
use super::types::candle::{CandleFrame, Interval};
use super::types::event::EventFrame;
use super::types::feed::FeedStatus;
use super::types::head::BookSpeed;
use super::types::in_order::InOrder;
use super::types::offer::BestBidOfferFrame;
use super::types::order::OrderFrame;
use super::types::scalars::Cursor;
use super::types::ticker::TickerFrame;
use super::types::trade::TradeFrame;
use crate::live::{LiveFrame, Speed, TopicName};
use crate::market::candles;
use crate::market::definition::MarketId;
use crate::market::topic::Topic;

/// What a subscription's arguments ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    OrderBook {
        market: MarketId,
        depth: usize,
        speed: Speed,
    },
    BestBidOffer {
        markets: Vec<MarketId>,
    },
    Candles {
        market: MarketId,
        interval: candles::Interval,
    },
    Tickers {
        markets: Vec<MarketId>,
    },
    /// Topics of the log, sent event by event.
    Topics(Vec<TopicName>),
    FeedStatus,
}

/// Who shares the stream of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stated {
    Everyone,
    /// Everyone, unless this argument is given: then the account alone.
    EveryoneWithout(&'static str),
}

/// What each field states. The resolver of a field that everyone shares must not ask who the client
/// is: then the hub sends an error instead of the result.
const AUDIENCES: [(&str, Stated); 8] = [
    ("orderBook", Stated::Everyone),
    ("bestBidOffer", Stated::Everyone),
    ("trades", Stated::Everyone),
    ("candles", Stated::Everyone),
    ("tickers", Stated::Everyone),
    ("events", Stated::Everyone),
    ("orders", Stated::EveryoneWithout("account")),
    ("feedStatus", Stated::Everyone),
];

/// The audience of a root field; private to the account if the field states none.
pub fn audience(field: &Field) -> Audience {
    let name = field.name.node.as_str();
    match AUDIENCES.iter().find(|(known, _)| *known == name) {
        Some((_, Stated::Everyone)) => Audience::Everyone,
        Some((_, Stated::EveryoneWithout(argument))) if field.get_argument(argument).is_none() => {
            Audience::Everyone
        }
        Some((_, Stated::EveryoneWithout(_))) | None => Audience::Account,
    }
}

/// Between one response stream and the resolver that runs for it.
#[derive(Default)]
pub struct Slot(Mutex<SlotState>);

#[derive(Default)]
struct SlotState {
    spec: Option<SourceSpec>,
    frame: Option<LiveFrame>,
    /// async-graphql polls a root field again only after it was woken.
    waker: Option<Waker>,
}

impl Slot {
    /// What the resolver asked for, once it ran.
    pub fn take_spec(&self) -> Option<SourceSpec> {
        self.0.lock().spec.take()
    }

    /// Hands over the frame that the next poll resolves.
    pub fn put(&self, frame: LiveFrame) {
        let waker = {
            let mut state = self.0.lock();
            state.frame = Some(frame);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn frames(self: &Arc<Self>, spec: SourceSpec) -> impl Stream<Item = LiveFrame> + use<> {
        let slot = self.clone();
        slot.0.lock().spec = Some(spec);
        poll_fn(move |context| {
            let mut state = slot.0.lock();
            match state.frame.take() {
                Some(frame) => Poll::Ready(Some(frame)),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

/// Operations that follow data as it changes.
pub struct Subscription;

/// Operations that follow data as it changes.
#[GraphqlSubscription]
impl Subscription {
    /// A market's order book. The first frame is a snapshot, or the changes after `after`.
    async fn order_book(
        &self,
        ctx: &Context<'_>,
        market: ID,
        #[graphql(
            default_with = "Some(25)",
            desc = "Largest number of levels on each side, from 1 to the hub's limit (5,000)."
        )]
        depth: Option<i32>,
        #[graphql(
            default_with = "Some(BookSpeed::Raw)",
            desc = "How often the hub sends changes."
        )]
        speed: Option<BookSpeed>,
        #[graphql(desc = "Resume after the frame of this cursor.")] after: Option<Cursor>,
    ) -> Result<Frames<BookFrame>> {
        // Read from the request before it came here: it must not be part of the stream.
        drop(after);
        let depth = checked_depth(depth, state::<QueryLimits>(ctx)?)?;
        let speed = speed.unwrap_or(BookSpeed::Raw).into();
        let spec = SourceSpec::OrderBook { market: known(ctx, &market)?, depth, speed };
        frames(ctx, spec, |frame| match frame {
            LiveFrame::Snapshot(frame) => Some(BookFrame::Snapshot(BookSnapshot(frame))),
            LiveFrame::Delta(frame) => Some(BookFrame::Delta(BookDelta(frame))),
            LiveFrame::Heartbeat(frame) => Some(BookFrame::Heartbeat(BookHeartbeat(frame))),
            LiveFrame::Offer(_)
            | LiveFrame::Candles(_)
            | LiveFrame::Ticker(_)
            | LiveFrame::Feed(_)
            | LiveFrame::Log(_) => None,
        })
    }

    /// The best bid and offer of some markets: the current ones, then each change.
    async fn best_bid_offer(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Ids of markets, from 1 to the hub's limit (100).")] markets: Vec<ID>,
    ) -> Result<Frames<BestBidOfferFrame>> {
        let known = known_markets(ctx, &markets)?;
        let spec = SourceSpec::BestBidOffer { markets: known };
        frames(ctx, spec, |frame| match frame {
            LiveFrame::Offer(offer) => Some(BestBidOfferFrame(offer)),
            _ => None,
        })
    }

    /// A market's candles: the newest one, or all that changed after `after`. Then each candle that
    /// a trade changes or the clock closes.
    async fn candles(
        &self,
        ctx: &Context<'_>,
        market: ID,
        #[graphql(desc = "The length of a candle.")] interval: Interval,
        #[graphql(desc = "Resume after the frame of this cursor.")] after: Option<Cursor>,
    ) -> Result<Frames<CandleFrame>> {
        // Read from the request before it came here: it must not be part of the stream.
        drop(after);
        let spec = SourceSpec::Candles { market: known(ctx, &market)?, interval: interval.into() };
        frames(ctx, spec, |frame| match frame {
            LiveFrame::Candles(frame) => Some(CandleFrame(frame)),
            _ => None,
        })
    }

    /// The tickers of some markets: the current ones, then each change.
    async fn tickers(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "Ids of markets, from 1 to the hub's limit (100). Absent or null: all markets \
                    that are defined now, if these are not more."
        )]
        markets: Option<Vec<ID>>,
    ) -> Result<Frames<TickerFrame>> {
        let markets = match markets {
            Some(markets) => markets,
            None => {
                let definitions = live(ctx)?.definitions();
                definitions.iter().map(|one| ID(one.market.to_string())).collect()
            }
        };
        let spec = SourceSpec::Tickers { markets: known_markets(ctx, &markets)? };
        frames(ctx, spec, |frame| match frame {
            LiveFrame::Ticker(frame) => Some(TickerFrame(*frame)),
            _ => None,
        })
    }

    /// The trades of some markets, without gaps. With `after`, the missed trades come first,
    /// several in a frame. The first frame of each market gives its position.
    async fn trades(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Ids of markets, from 1 to the hub's limit (100).")] markets: Vec<ID>,
        #[graphql(desc = "Resume after the frame of this cursor. The markets must be the same.")]
        after: Option<Cursor>,
    ) -> Result<Frames<TradeFrame>> {
        // Read from the request before it came here: it must not be part of the stream.
        drop(after);
        let known = known_markets(ctx, &markets)?;
        let topics = known.iter().map(|market| Topic::Trades(market).name()).collect();
        frames(ctx, SourceSpec::Topics(topics), |frame| match frame {
            LiveFrame::Log(frame) => Some(TradeFrame(frame)),
            _ => None,
        })
    }

    /// The events of a generic topic, without gaps. With `after`, the missed events come first,
    /// several in a frame. The first frame gives the topic's position.
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "1 to 128 characters. The topic may be without events.")] topic: String,
        #[graphql(desc = "Resume after the frame of this cursor.")] after: Option<Cursor>,
    ) -> Result<Frames<EventFrame>> {
        drop(after);
        let spec = SourceSpec::Topics(vec![checked_topic(&topic)?]);
        frames(ctx, spec, |frame| match frame {
            LiveFrame::Log(frame) => Some(EventFrame(frame)),
            _ => None,
        })
    }

    /// Events of orders, without gaps. With `after`, the missed events come first, several in a
    /// frame. The first frame gives the position. Name a market, an account or both.
    async fn orders(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The orders of this market.")] market: Option<ID>,
        #[graphql(desc = "The orders of this account. Only the client's own account is allowed.")]
        account: Option<ID>,
        #[graphql(
            desc = "Resume after the frame of this cursor. `market` and `account` must be the same."
        )]
        after: Option<Cursor>,
    ) -> Result<Frames<OrderFrame>> {
        drop(after);
        let account = account.map(|account| own(ctx, &account)).transpose()?;
        let market = market.map(|market| known(ctx, &market)).transpose()?;
        if market.is_none() && account.is_none() {
            return Err(fault(ErrorCode::ValidationFailed, "name a market, an account or both"));
        }
        let topic = Topic::Orders { market: market.as_deref(), account: account.as_deref() }.name();
        frames(ctx, SourceSpec::Topics(vec![topic]), |frame| match frame {
            LiveFrame::Log(frame) => Some(OrderFrame(frame)),
            _ => None,
        })
    }

    /// The state of each feed: all current states, then each change, and each state again every few
    /// seconds.
    async fn feed_status(&self, ctx: &Context<'_>) -> Result<Frames<FeedStatus>> {
        frames(ctx, SourceSpec::FeedStatus, |frame| match frame {
            LiveFrame::Feed(view) => Some(FeedStatus::from(view)),
            _ => None,
        })
    }
}

/// The frames of one subscription.
type Frames<T> = BoxStream<'static, InOrder<T>>;

/// Names the source, and takes from it what this subscription sends.
fn frames<T: Send + 'static>(
    ctx: &Context<'_>,
    spec: SourceSpec,
    select: fn(LiveFrame) -> Option<T>,
) -> Result<Frames<T>> {
    let frames = state::<Arc<Slot>>(ctx)?.frames(spec);
    Ok(frames.filter_map(move |frame| ready(select(frame).map(InOrder))).boxed())
}

fn known(ctx: &Context<'_>, market: &str) -> Result<MarketId> {
    match live(ctx)?.definition(market) {
        Some(definition) => Ok(definition.market.clone()),
        None => Err(no_market(market)),
    }
}

fn known_markets(ctx: &Context<'_>, markets: &[ID]) -> Result<Vec<MarketId>> {
    let limit = state::<QueryLimits>(ctx)?.markets_per_subscription;
    if markets.is_empty() {
        return Err(fault(ErrorCode::ValidationFailed, "name at least one market"));
    }
    if markets.len() > limit {
        return Err(limit_exceeded("markets_per_subscription", limit, markets.len()));
    }
    let mut known: Vec<_> = markets.iter().map(|id| known(ctx, id)).collect::<Result<_>>()?;
    known.sort_unstable();
    known.dedup();
    Ok(known)
}

#[cfg(test)]
mod tests {
    use async_graphql_parser::parse_schema;
    use async_graphql_parser::types::{TypeKind, TypeSystemDefinition};

    use super::*;

    #[test]
    fn each_subscription_of_the_schema_states_its_audience() {
        let schema = parse_schema(crate::graphql::sdl()).unwrap();
        let mut fields = Vec::new();
        for definition in schema.definitions {
            let TypeSystemDefinition::Type(definition) = definition else { continue };
            if definition.node.name.node == "Subscription"
                && let TypeKind::Object(object) = definition.node.kind
            {
                fields.extend(object.fields.into_iter().map(|field| field.node));
            }
        }
        for (name, stated) in AUDIENCES {
            let field = fields.iter().find(|field| field.name.node == name);
            let field = field.unwrap_or_else(|| panic!("{name} is no field of Subscription"));
            if let Stated::EveryoneWithout(argument) = stated {
                let known = field.arguments.iter().any(|known| known.node.name.node == argument);
                assert!(known, "{argument} is no argument of {name}");
            }
        }
        fields.retain(|field| !AUDIENCES.iter().any(|(name, _)| field.name.node == *name));
        let missing: Vec<_> = fields.iter().map(|field| field.name.node.as_str()).collect();
        assert!(missing.is_empty(), "these state no audience, so they are private: {missing:?}");
    }
}
