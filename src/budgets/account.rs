//! One client address: what it holds open, and what it may still cost.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spreadly_subscriptions::bucket::{Bucket, Flow};
use spreadly_subscriptions::{Budget, EXEMPT, GraphqlError, Priority, Rank, millis};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::meters::{ClientMeters, ExceededLimit};
use super::pressure::Pressure;
use super::prices::Work;
use super::streams::StreamCounts;
use super::unread::MOST_ANSWERS;
use crate::pool::{Line, timed};

/// How long a read of the log waits for another one of its own address: longer than most of them
/// take, so that a page with several lists in one query has them all, and shorter than anyone
/// waits.
const LOG_READER_WAIT: Duration = Duration::from_millis(500);

/// The longest wait of work that can't be refused: below what stock clients wait for an answer.
const MOST_TURN_WAIT: Duration = Duration::from_secs(5);

/// What one address may hold and cost; the names are those of the configuration.
#[derive(Clone, Debug)]
pub struct AccountLimits {
    /// TCP connections of the public port that are no WebSockets, or not yet.
    pub connections_per_address: usize,
    /// WebSockets and event streams.
    pub sockets_per_address: usize,
    pub streams_per_socket: usize,
    pub streams_per_address: usize,
    pub log_readers_per_address: usize,
    /// Bytes of replies over HTTP that were not taken yet.
    pub reply_bytes_per_address: usize,
    /// The same for all addresses together.
    pub reply_bytes: usize,
    /// Microseconds of processor time a second.
    pub cost_rate: u32,
    /// Microseconds of processor time that an address can save up.
    pub cost_burst: u32,
    /// Whether work that takes longer than its price is charged what it took.
    pub cost_measured: bool,
    /// Loopback is counted and never refused by any of these.
    pub exempt_loopback: bool,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self {
            connections_per_address: 128,
            sockets_per_address: 100,
            streams_per_socket: 256,
            streams_per_address: 4_096,
            log_readers_per_address: 2,
            reply_bytes_per_address: 16 << 20,
            reply_bytes: 256 << 20,
            cost_rate: 50_000,
            cost_burst: 1_000_000,
            cost_measured: true,
            exempt_loopback: true,
        }
    }
}

impl AccountLimits {
    /// Sockets begin as connections, and as many as may be open may come at once.
    pub fn connections(&self) -> usize {
        self.connections_per_address.max(self.sockets_per_address)
    }
}

/// What all accounts share.
pub(super) struct Shared {
    pub limits: AccountLimits,
    pub meters: Arc<ClientMeters>,
    pub pressure: Pressure,
    /// Of all accounts.
    pub unread_bytes: AtomicUsize,
}

impl Shared {
    pub(super) fn flow(&self) -> Flow {
        Flow { rate: self.limits.cost_rate, burst: self.limits.cost_burst }
    }
}

/// An address that has spent this part of its burst has its turns after others.
const LOW_PRIORITY_PART: u64 = 8;

/// Sockets of an address that are written to with those of others; further ones are written to
/// after them.
const FIRST_SOCKETS: usize = 4;

thread_local! {
    /// Nanoseconds that this thread charged, to any account.
    static CHARGED: Cell<u64> = const { Cell::new(0) };
}

/// See the module's text. Shared by all connections of its address.
pub struct ClientAccount {
    /// Unique in this process; an address that was forgotten gets another one.
    id: u64,
    pub(super) shared: Arc<Shared>,
    pub(super) exempt: bool,
    bucket: Mutex<Bucket>,
    connections: AtomicUsize,
    sockets: AtomicUsize,
    pub(super) unread_bytes: AtomicUsize,
    streams: Arc<StreamCounts>,
    log_readers: Arc<Semaphore>,
    /// Of answers that are made now.
    pub(super) answers: Arc<Semaphore>,
    line: Arc<Line>,
}

/// What an address has open; given back when dropped.
pub struct ConnectionPlace {
    account: Arc<ClientAccount>,
    count: fn(&ClientAccount) -> &AtomicUsize,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        (self.count)(&self.account).fetch_sub(1, Ordering::Relaxed);
    }
}

/// An address has spent what it may for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimited {
    /// `limits.cost_rate`.
    pub rate: u32,
    pub retry_after: Duration,
}

impl RateLimited {
    /// As the client receives it.
    pub fn error(self) -> GraphqlError {
        let Self { rate, retry_after } = self;
        let message = format!(
            "limit cost_rate is {rate} microseconds of work a second for your address: \
             try again in {} ms",
            millis(retry_after)
        );
        GraphqlError::rate_limited("cost_rate", rate, retry_after, message)
    }
}

/// Of the next account.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl ClientAccount {
    /// The owner of a socket's response streams: its address, whose sockets share a budget. Of an
    /// exempt address each socket is an owner by itself, as a proxy brings many clients.
    pub fn socket_owner(&self) -> u64 {
        if self.exempt { NEXT_ID.fetch_add(1, Ordering::Relaxed) | EXEMPT } else { self.id }
    }

    /// When a fan-out writes to a socket of this address that was just counted in.
    pub fn socket_rank(&self) -> Rank {
        let many = self.sockets.load(Ordering::Relaxed) > FIRST_SOCKETS;
        if many && !self.exempt { Rank::Last } else { Rank::First }
    }

    pub(super) fn new(shared: Arc<Shared>, exempt: bool, now: Instant) -> Self {
        let limits = &shared.limits;
        let bounded = |limit: usize| if exempt { usize::MAX } else { limit };
        let streams = bounded(limits.streams_per_address);
        let readers = bounded(limits.log_readers_per_address).min(Semaphore::MAX_PERMITS);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            exempt,
            bucket: Mutex::new(Bucket::new(shared.flow(), now)),
            connections: AtomicUsize::new(0),
            sockets: AtomicUsize::new(0),
            unread_bytes: AtomicUsize::new(0),
            streams: StreamCounts::new(streams, ExceededLimit::StreamsPerAddress, None),
            log_readers: Arc::new(Semaphore::new(readers)),
            answers: Arc::new(Semaphore::new(bounded(MOST_ANSWERS).min(Semaphore::MAX_PERMITS))),
            line: if exempt { Line::exempt() } else { Line::limited() },
            shared,
        }
    }

    /// Lets work begin, and charges it: refused while the address is in debt.
    pub fn admit(&self, work: Work, count: usize) -> Result<(), RateLimited> {
        self.admit_at(work, count, Instant::now())
    }

    pub(super) fn admit_at(
        &self,
        work: Work,
        count: usize,
        now: Instant,
    ) -> Result<(), RateLimited> {
        if let Some(retry_after) = self.debt(now) {
            self.shared.meters.rate_limit(work);
            return Err(RateLimited { rate: self.shared.limits.cost_rate, retry_after });
        }
        self.spend_at(work, count, now);
        Ok(())
    }

    /// How long until the address has paid what it owes; `None` where it owes nothing or need not
    /// pay.
    fn debt(&self, now: Instant) -> Option<Duration> {
        if self.exempt {
            return None;
        }
        self.bucket.lock().wait(self.shared.flow(), now)
    }

    pub fn is_in_debt(&self) -> bool {
        self.debt(Instant::now()).is_some()
    }

    /// Charges work that was let begin: what it is turns out on the way.
    pub fn spend(&self, work: Work, count: usize) {
        self.spend_at(work, count, Instant::now());
    }

    /// Does work of this address, and charges what it took beyond what was charged meanwhile.
    pub fn measure<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.shared.limits.cost_measured {
            return work();
        }
        let charged = CHARGED.get();
        let (done, took) = timed(work);
        let charged = CHARGED.get().wrapping_sub(charged);
        self.charge_beyond(took, &AtomicU64::new(charged));
        done
    }

    /// Charges the processor time that work took beyond what was charged for it: `prepaid`
    /// nanoseconds, of which the rest stays.
    pub fn charge_beyond(&self, took: Duration, prepaid: &AtomicU64) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let rest = |prepaid: u64| Some(prepaid.saturating_sub(took));
        let paid = prepaid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        let paid = paid.unwrap_or_default().min(took);
        if self.shared.limits.cost_measured && took > paid {
            self.spend(Work::Measured, usize::try_from(took - paid).unwrap_or(usize::MAX));
        }
    }

    pub(super) fn spend_at(&self, work: Work, count: usize, now: Instant) {
        let nanos = work.nanos().saturating_mul(count as u64);
        CHARGED.set(CHARGED.get().wrapping_add(nanos));
        self.shared.meters.charge(work, nanos);
        // What the operator's own tools cost makes nothing dearer for clients.
        if !self.exempt && nanos > 0 {
            let (flow, mut bucket) = (self.shared.flow(), self.bucket.lock());
            // What an address gets beyond its rate is no demand that others compete with.
            let factor = match bucket.wait(flow, now) {
                Some(_) => self.shared.pressure.factor(now),
                None => self.shared.pressure.spend(nanos, now),
            };
            bucket.spend(nanos.saturating_mul(factor), flow, now);
        }
    }

    /// Charges a message of so many bytes, whatever it says.
    pub fn charge_message(&self, bytes: usize) -> Budget {
        let now = Instant::now();
        self.spend_at(Work::Message, 1, now);
        self.spend_at(Work::Kib, bytes >> 10, now);
        self.debt(now).map_or(Budget::Within, |_| Budget::Exceeded)
    }

    /// Of the turns of its connections: low where it has spent a good part of what it can save up.
    pub fn priority(&self) -> Priority {
        if self.exempt {
            return Priority::High;
        }
        let flow = self.shared.flow();
        let spent = self.bucket.lock().spent_nanos(flow, Instant::now());
        if spent > u64::from(flow.burst) * 1_000 / LOW_PRIORITY_PART {
            Priority::Low
        } else {
            Priority::High
        }
    }

    /// Charges work that can't be refused, as its client would have to begin again: it waits
    /// instead, while the address is in debt, but never for so long that it were given up.
    pub fn turn(&self, work: Work) -> Option<Duration> {
        self.turn_at(work, Instant::now())
    }

    fn turn_at(&self, work: Work, now: Instant) -> Option<Duration> {
        let wait = self.debt(now);
        self.spend_at(work, 1, now);
        wait.map(|wait| wait.min(MOST_TURN_WAIT))
    }

    /// Counts a TCP connection in, or says how many there are.
    pub fn enter_connection(self: &Arc<Self>) -> Result<ConnectionPlace, usize> {
        let limit = self.shared.limits.connections();
        let fits = |current| current < limit;
        self.enter(|account| &account.connections, fits, ExceededLimit::ConnectionsPerAddress)
    }

    /// Counts a WebSocket or an event stream in, or says how many there are.
    pub fn enter_socket(self: &Arc<Self>) -> Result<ConnectionPlace, usize> {
        let limit = self.shared.limits.sockets_per_address;
        let fits = |current| current < limit;
        self.enter(|account| &account.sockets, fits, ExceededLimit::SocketsPerAddress)
    }

    /// Counts something in where it fits beside what is there, or says how much that is.
    fn enter(
        self: &Arc<Self>,
        count: fn(&Self) -> &AtomicUsize,
        fits: impl Fn(usize) -> bool,
        refusal: ExceededLimit,
    ) -> Result<ConnectionPlace, usize> {
        let counter = count(self);
        let entered = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |current| {
            (self.exempt || fits(current)).then_some(current + 1)
        });
        match entered {
            Ok(_) => Ok(ConnectionPlace { account: self.clone(), count }),
            Err(current) => {
                self.shared.meters.refuse(refusal);
                Err(current)
            }
        }
    }

    /// The streams of a socket of this address, none yet.
    pub fn socket_streams(&self) -> Arc<StreamCounts> {
        let limit = self.shared.limits.streams_per_socket;
        let most = if self.exempt { usize::MAX } else { limit };
        StreamCounts::new(most, ExceededLimit::StreamsPerSocket, Some(self.streams.clone()))
    }

    /// A place among the readers of the log of this address, in turn; the error is how many there
    /// are. To be held until the read is done, also when its client is gone by then.
    pub async fn log_reader(&self) -> Result<OwnedSemaphorePermit, usize> {
        self.log_reader_within(LOG_READER_WAIT).await
    }

    async fn log_reader_within(&self, wait: Duration) -> Result<OwnedSemaphorePermit, usize> {
        let waiting = self.log_readers.clone().acquire_owned();
        match tokio::time::timeout(wait, waiting).await {
            Ok(Ok(place)) => Ok(place),
            _ => {
                self.shared.meters.refuse(ExceededLimit::LogReadersPerAddress);
                Err(self.shared.limits.log_readers_per_address)
            }
        }
    }

    /// In which its work waits for the pool.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// For a refusal that is found elsewhere.
    pub fn meters(&self) -> &ClientMeters {
        &self.shared.meters
    }

    /// TCP connections open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Forgetting it changes nothing: it holds nothing and has spent nothing.
    pub(super) fn is_idle(self: &Arc<Self>, now: Instant) -> bool {
        Arc::strong_count(self) == 1
            && self.streams.is_empty()
            && self.bucket.lock().is_full(self.shared.flow(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pressure::HubShare;
    use super::super::table::Accounts;
    use super::*;
    use crate::pool::thread_time;

    fn account(limits: AccountLimits, address: &str) -> Arc<ClientAccount> {
        Accounts::new(limits, HubShare::of_shards(1)).of(address.parse().unwrap())
    }

    #[test]
    fn an_address_in_debt_is_refused_until_it_is_paid_and_its_neighbour_is_not() {
        let limits =
            AccountLimits { cost_rate: 1_000, cost_burst: 200, ..AccountLimits::default() };
        let accounts = Accounts::new(limits, HubShare::of_shards(1));
        let account = accounts.of("203.0.113.7".parse().unwrap());
        let now = Instant::now() + Duration::from_secs(1);
        for _ in 0..10 {
            account.admit_at(Work::Request, 1, now).unwrap();
        }
        let refused = account.admit_at(Work::Request, 1, now).unwrap_err();
        assert_eq!(refused, RateLimited { rate: 1_000, retry_after: Duration::from_millis(1) });
        let neighbour = accounts.of("203.0.113.8".parse().unwrap());
        neighbour.admit_at(Work::Request, 1, now).unwrap();
        // What is found out later puts it into debt.
        account.spend_at(Work::Row, 1_000, now);
        let refused = account.admit_at(Work::Request, 1, now).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_millis(2_001));
        account.admit_at(Work::Request, 1, now + refused.retry_after).unwrap();
        let counted: Vec<_> = accounts.meters().rate_limits().filter(|one| one.1 > 0).collect();
        assert_eq!(counted, [("request", 2)]);
    }

    #[test]
    fn an_address_in_debt_makes_nothing_dearer_for_others() {
        let limits = AccountLimits { cost_burst: 100_000, ..AccountLimits::default() };
        let accounts = Accounts::new(limits, HubShare::of_shards(1));
        let now = Instant::now() + Duration::from_secs(1);
        let greedy = accounts.of("203.0.113.7".parse().unwrap());
        let factor = || greedy.shared.pressure.factor(now);
        (0..1_000).for_each(|_| greedy.spend_at(Work::Stream, 100, now));
        assert!(greedy.debt(now).is_some());
        assert_eq!(factor(), 1);
        // A hundred addresses that owe nothing yet do.
        for last in 8..108 {
            accounts.of([203, 0, 113, last].into()).spend_at(Work::Stream, 100, now);
        }
        assert!(factor() > 1);
    }

    #[test]
    fn sockets_of_an_address_that_has_many_are_of_the_last_rank() {
        for (address, last) in [("203.0.113.7", Rank::Last), ("127.0.0.1", Rank::First)] {
            let account = account(AccountLimits::default(), address);
            let enter = |_| (account.enter_socket().unwrap(), account.socket_rank());
            let (mut places, ranks): (Vec<_>, Vec<_>) = (0..=FIRST_SOCKETS).map(enter).unzip();
            let expected = [vec![Rank::First; FIRST_SOCKETS], vec![last]].concat();
            assert_eq!(ranks, expected, "{address}");
            places.truncate(FIRST_SOCKETS - 1);
            let _place = account.enter_socket().unwrap();
            assert_eq!(account.socket_rank(), Rank::First, "{address}");
        }
    }

    #[test]
    fn a_page_of_the_log_waits_while_its_address_is_in_debt_and_is_never_refused() {
        let limits =
            AccountLimits { cost_rate: 1_000, cost_burst: 300, ..AccountLimits::default() };
        let account = account(limits, "203.0.113.7");
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(account.turn_at(Work::Page, now), None);
        assert_eq!(account.turn_at(Work::Page, now), Some(Duration::from_millis(1)));
        assert_eq!(account.turn_at(Work::Page, now), Some(Duration::from_millis(301)));
        for _ in 0..100 {
            account.turn_at(Work::Page, now);
        }
        assert_eq!(account.turn_at(Work::Page, now), Some(MOST_TURN_WAIT));
    }

    #[test]
    fn work_that_takes_longer_than_its_price_is_charged_what_it_took() {
        let charged = |limits: AccountLimits, spent: Work| {
            let accounts = Accounts::new(limits, HubShare::of_shards(1));
            let account = accounts.of([203, 0, 113, 7].into());
            let busy = || {
                let began = thread_time();
                account.spend(spent, 1);
                while thread_time() - began < Duration::from_millis(20) {}
            };
            // What is measured inside of it is charged once.
            account.measure(|| account.measure(busy));
            account.meters().charges().map(|(_, micros)| micros).sum::<u64>()
        };
        let measured = charged(AccountLimits::default(), Work::Request);
        assert!((20_000..100_000).contains(&measured), "{measured}");
        let priced = AccountLimits { cost_measured: false, ..AccountLimits::default() };
        assert_eq!(charged(priced, Work::Request), 20);
        // Its price is above what it took.
        let once = charged(AccountLimits::default(), Work::Topic);
        assert!((20_000..100_000).contains(&once), "{once}");
    }

    #[test]
    fn loopback_is_charged_and_never_refused() {
        let limits = AccountLimits {
            sockets_per_address: 1,
            cost_rate: 1,
            cost_burst: 1,
            ..AccountLimits::default()
        };
        let account = account(limits, "127.0.0.1");
        let _places: Vec<_> = (0..3).map(|_| account.enter_socket().ok().unwrap()).collect();
        for _ in 0..100 {
            account.admit(Work::Topic, 1).unwrap();
        }
        let charged = account.meters().charges().find(|one| one.0 == "topic");
        assert_eq!(charged, Some(("topic", 1_000_000)));
    }

    #[test]
    fn a_closed_socket_gives_its_place_back() {
        let limits = AccountLimits { sockets_per_address: 2, ..AccountLimits::default() };
        let account = account(limits, "203.0.113.7");
        let first = account.enter_socket().ok().unwrap();
        let _second = account.enter_socket().ok().unwrap();
        assert_eq!(account.enter_socket().err(), Some(2));
        drop(first);
        assert!(account.enter_socket().is_ok());
        let refused: Vec<_> = account.meters().refusals().filter(|one| one.1 > 0).collect();
        assert_eq!(refused, [("sockets_per_address", 1)]);
    }

    #[tokio::test]
    async fn a_reader_of_the_log_too_many_waits_for_its_own_address_alone_and_is_then_refused() {
        let accounts = Accounts::new(AccountLimits::default(), HubShare::of_shards(1));
        let account = accounts.of("203.0.113.7".parse().unwrap());
        let first = account.log_reader().await.unwrap();
        let _second = account.log_reader().await.unwrap();
        assert_eq!(account.log_reader_within(Duration::ZERO).await.err(), Some(2));
        let neighbour = accounts.of("203.0.113.8".parse().unwrap());
        assert!(neighbour.log_reader_within(Duration::ZERO).await.is_ok());
        let third = account.log_reader_within(Duration::from_secs(60));
        let (third, ()) = tokio::join!(third, async { drop(first) });
        assert!(third.is_ok());
        let refused: Vec<_> = account.meters().refusals().filter(|one| one.1 > 0).collect();
        assert_eq!(refused, [("log_readers_per_address", 1)]);
    }

    #[test]
    fn a_page_that_opens_256_subscriptions_of_its_own_at_once_is_within_the_burst() {
        let account = account(AccountLimits::default(), "203.0.113.7");
        let now = Instant::now();
        for _ in 0..256 {
            account.admit_at(Work::Request, 1, now).unwrap();
            account.spend_at(Work::DocumentToken, 60, now);
            account.spend_at(Work::Stream, 1, now);
            account.spend_at(Work::Field, 15, now);
            account.spend_at(Work::LevelField, 25 * 2 * 4, now);
        }
    }

    #[test]
    fn an_office_whose_100_sockets_come_back_at_once_is_within_the_burst() {
        let account = account(AccountLimits::default(), "203.0.113.7");
        let now = Instant::now();
        for _ in 0..100 * 20 {
            account.admit_at(Work::Request, 1, now).unwrap();
        }
        assert_eq!(account.admit_at(Work::Request, 1, now), Ok(()));
    }

    #[test]
    fn a_bot_that_asks_for_a_small_book_50_times_a_second_is_never_refused() {
        let account = account(AccountLimits::default(), "203.0.113.7");
        let start = Instant::now();
        for query in 0..50 * 600u32 {
            let now = start + Duration::from_millis(20) * query;
            account.admit_at(Work::Request, 1, now).unwrap();
            account.spend_at(Work::Field, 10, now);
            account.spend_at(Work::LevelField, 25 * 2 * 2, now);
            account.spend_at(Work::Kib, 3, now);
        }
    }
}
