//! From an applied event to the sockets, with the hub's schema and the engine. The sockets take all
//! bytes at once and keep none, so the system's share is not counted.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use gungraun::prelude::*;
use serde_json::json;
use spreadly::budgets::{AccountLimits, Accounts, ClientAccount, HubShare};
use spreadly::graphql::{
    Caller, GraphqlExecutor, HubView, MutationPort, Principal, QueryLimits, WriteError,
};
use spreadly::live::{Encoders, Live};
use spreadly::market::definition::{MarketDefinition, MarketStatus};
use spreadly::market::effect::{Applied, Effect};
use spreadly::market::levels::LevelChange;
use spreadly::pool::Pool;
use spreadly::store::LogReaders;
use spreadly_subscriptions::{
    Dialect, Epoch, Execution, Executor as _, Limits, Meters, Opening, Rank, Request,
    ResponseStream, Resume, Shard, Socket, StreamLimits, StreamPermit, Streams,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use crate::book;

const MARKET: &str = "ERG-USD";
/// Turns of the runtime after which something is wrong.
const MOST_TURNS: usize = 100_000;
/// Turns without a write after which none is under way.
const QUIET_TURNS: usize = 100;

fn query(depth: usize) -> String {
    format!(
        r#"subscription {{ orderBook(market: "{MARKET}", depth: {depth}) {{
            __typename epoch sequence cursor checksum
            ... on BookSnapshot {{ reason bids {{ price size }} asks {{ price size }} }}
            ... on BookDelta {{ prevSequence bids {{ price size }} asks {{ price size }} }}
            ... on BookHeartbeat {{ state }} }} }}"#
    )
}

/// A hub with one market, whose book is deep.
pub struct Hub {
    live: Arc<Live>,
    executor: Arc<GraphqlExecutor>,
    meters: Arc<Meters>,
    account: Arc<ClientAccount>,
}

impl Hub {
    fn new() -> Self {
        let log = LogReaders::new("nowhere".as_ref(), 1);
        let live = Arc::new(Live::new(Epoch(7), Box::new(|| 1_700_000_000_000_000), 32_768, log));
        live.define(Arc::new(MarketDefinition {
            market: MARKET.into(),
            base: "ERG".into(),
            quote: "USD".into(),
            price_decimals: 4,
            size_decimals: 2,
            tick_size: "0.0001".into(),
            lot_size: "0.01".into(),
            min_size: "0.01".into(),
            status: MarketStatus::Active,
            time: None,
        }));
        let levels = book::whole();
        live.apply(&[applied(1, Effect::Replace { market: MARKET.into(), levels })]);
        let meters = Arc::new(Meters::default());
        let streams = Arc::new(Streams::new(StreamLimits::default(), meters.clone()));
        let view = HubView { started: 0, sockets: Box::new(|| 0), operations: Box::new(|| 0) };
        let executor = GraphqlExecutor::new(
            Arc::new(Encoders::new(live.clone(), 0, 0)),
            streams,
            Pool::start(1).expect("a thread"),
            view,
            QueryLimits::default(),
            MutationPort::new(|_| async { Err(WriteError::Closed) }),
            Principal::default(),
        );
        let accounts = Accounts::new(AccountLimits::default(), HubShare::of_shards(1));
        let account = accounts.of([127, 0, 0, 1].into());
        Self { live, executor: Arc::new(executor), meters, account }
    }

    fn change(&self, sequence: u64, levels: Vec<LevelChange>) {
        self.live.apply(&[applied(sequence, Effect::Change { market: MARKET.into(), levels })]);
    }
}

fn applied(sequence: u64, effect: Effect) -> Applied {
    Applied { sequence, time: None, effect, candles: Vec::new() }
}

/// A stream that nobody has joined yet.
pub struct Opened {
    hub: Hub,
    stream: Arc<ResponseStream>,
    _permit: Option<Box<dyn StreamPermit>>,
}

impl Opened {
    fn new(depth: usize) -> Self {
        let hub = Hub::new();
        let caller = Caller::new(Principal::default(), hub.account.clone());
        let request = Request {
            query: query(depth),
            operation_name: None,
            variables: None,
            extensions: None,
        };
        let Execution::Stream { stream, permit, .. } = hub.executor.execute(request, &caller)
        else {
            panic!("no stream");
        };
        Self { hub, stream, _permit: permit }
    }

    /// A frame was encoded for the stream before, so all that a stream keeps is there.
    fn in_use(depth: usize) -> Self {
        let opened = Self::new(depth);
        assert!(matches!(opened.stream.source().join(&opened.stream, None), Resume::Frames { .. }));
        opened.hub.change(2, book::event(1));
        opened
    }
}

#[library_benchmark]
#[bench::depth_25(Opened::new(25))]
#[bench::depth_250(Opened::new(250))]
fn encode_snapshot(opened: Opened) -> (Opened, Resume) {
    let joined = opened.stream.source().join(&opened.stream, None);
    assert!(matches!(joined, Resume::Frames { .. }));
    (opened, joined)
}

// The book, its checksum, its offer and its ticker change too.
#[library_benchmark]
#[bench::depth_25(Opened::in_use(25), book::event(2))]
fn apply_and_encode_delta(opened: Opened, event: Vec<LevelChange>) -> Opened {
    let before = opened.stream.next_index();
    opened.hub.change(3, event);
    assert_eq!(opened.stream.next_index(), before + 1);
    opened
}

/// A socket that never is full. Its client says nothing after its first bytes.
struct Sink {
    /// Writes to all sockets.
    writes: Rc<Cell<usize>>,
}

impl AsyncRead for Sink {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(self.write_now(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket for Sink {
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes.set(self.writes.get() + 1);
        Ok(bytes.len())
    }
}

/// A masked text frame with the mask 0.
fn text(message: &str) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a short message").to_be_bytes();
    let head = [0x81, 0x80 | 126, length[0], length[1], 0, 0, 0, 0];
    [&head, message.as_bytes()].concat()
}

/// Sockets that follow one stream, and a frame that is in its ring and was written to none of them.
pub struct Crowd {
    // Dropped first, as its tasks use all others.
    local: LocalSet,
    runtime: Runtime,
    hub: Hub,
    sockets: usize,
    writes: Rc<Cell<usize>>,
}

impl Crowd {
    fn new(sockets: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        let (local, hub, writes) = (LocalSet::new(), Hub::new(), Rc::new(Cell::new(0)));
        let crowd = Self { local, runtime, hub, sockets, writes };
        let Hub { executor, meters, account, .. } = &crowd.hub;
        let payload = json!({"query": query(25)});
        let subscribe = json!({"type": "subscribe", "id": "1", "payload": payload}).to_string();
        let early = [text(r#"{"type":"connection_init"}"#), text(&subscribe)].concat();
        crowd.local.block_on(&crowd.runtime, async {
            let shard = Shard::new(executor.clone(), Limits::default(), meters.clone());
            tokio::task::spawn_local(shard.clone().run(None));
            for _ in 0..sockets {
                let opening = Opening::Accept(Dialect::TransportWs);
                let sink = Sink { writes: crowd.writes.clone() };
                shard.adopt(sink, opening, &early, account.clone(), Rank::First, None);
            }
        });
        // The acks and the snapshots.
        let mut quiet = 0;
        crowd.run_until(|| {
            quiet = if crowd.writes.take() == 0 { quiet + 1 } else { 0 };
            quiet > QUIET_TURNS && meters.readers_open.get() == sockets as u64
        });
        crowd.hub.change(2, book::event(1));
        crowd.deliver();
        crowd.hub.change(3, book::event(2));
        crowd
    }

    /// Runs until each socket got the frame.
    fn deliver(&self) {
        self.run_until(|| self.writes.get() == self.sockets);
        self.writes.set(0);
    }

    fn run_until(&self, mut done: impl FnMut() -> bool) {
        self.local.block_on(&self.runtime, async {
            for _ in 0..MOST_TURNS {
                if done() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            panic!("{} writes to {} sockets", self.writes.get(), self.sockets);
        });
    }
}

#[library_benchmark]
#[bench::sockets_1(Crowd::new(1))]
#[bench::sockets_100(Crowd::new(100))]
#[bench::sockets_1000(Crowd::new(1_000))]
fn fan_out(crowd: Crowd) -> Crowd {
    crowd.deliver();
    crowd
}

library_benchmark_group!(
    name = hub_group,
    benchmarks = [encode_snapshot, apply_and_encode_delta, fan_out]
);
