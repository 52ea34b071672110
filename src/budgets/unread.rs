//! Bytes that an address asked for and has not read yet: replies over HTTP, and answers to clients
//! that resume or lag. One count for each address, and one for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use spreadly_subscriptions::{Answer, Resume};

use super::account::{AccountLimits, ClientAccount};
use super::meters::ExceededLimit;

/// A reply of so many bytes is sent however many others are on their way.
const SMALL_REPLY_BYTES: usize = 16 << 10;

/// Answers of an address that are made at a time, for clients that resume or lag: pages of the log,
/// long snapshots. Each may have some MiB, and waits until these fit beside unread ones.
pub(super) const MOST_ANSWERS: usize = 4;

/// How often an answer that waits for room looks for it.
const ROOM_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes of a reply or an answer that its address has not read; given back when dropped.
pub struct UnreadPlace {
    account: Arc<ClientAccount>,
    bytes: usize,
}

impl Drop for UnreadPlace {
    fn drop(&mut self) {
        self.account.unread_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.account.shared.unread_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A reply over HTTP does not fit beside those that were not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadReplies {
    /// The limit's name in the configuration.
    pub name: &'static str,
    /// Bytes.
    pub limit: usize,
    /// Bytes that were not read yet, of the address or of all.
    pub current: usize,
}

/// A frame's bytes, counted until the last copy is dropped.
struct CountedBytes {
    bytes: Bytes,
    _place: Arc<UnreadPlace>,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes do not fit beside those that were not read yet.
struct NoRoom {
    /// Bytes that all addresses may still hold.
    free: usize,
    /// Bytes that the address has not read.
    unread: usize,
}

impl ClientAccount {
    /// Counts a reply over HTTP in until it has left, or says how many bytes of others have not.
    /// One reply of any size may be on its way, and small ones always, as mutations have such. An
    /// address may hold no more than what all of them leave free, so each has a share.
    ///
    /// # Errors
    /// The limit that the reply exceeds.
    pub fn enter_reply(self: &Arc<Self>, bytes: usize) -> Result<UnreadPlace, UnreadReplies> {
        let NoRoom { free, unread } = match self.enter_unread(bytes, bytes <= SMALL_REPLY_BYTES) {
            Ok(place) => return Ok(place),
            Err(no_room) => no_room,
        };
        let AccountLimits { reply_bytes_per_address, reply_bytes, .. } = self.shared.limits;
        let (reason, limit, current) = match free < reply_bytes_per_address {
            true => (ExceededLimit::ReplyBytes, reply_bytes, reply_bytes - free),
            false => (ExceededLimit::ReplyBytesPerAddress, reply_bytes_per_address, unread),
        };
        self.meters().refuse(reason);
        Err(UnreadReplies { name: reason.name(), limit, current })
    }

    /// Counts bytes in where they fit beside others, or where they `always` do.
    fn enter_unread(self: &Arc<Self>, bytes: usize, always: bool) -> Result<UnreadPlace, NoRoom> {
        let AccountLimits { reply_bytes_per_address, reply_bytes, .. } = self.shared.limits;
        let free = reply_bytes.saturating_sub(self.shared.unread_bytes.load(Ordering::Relaxed));
        let limit = reply_bytes_per_address.min(free);
        let fits = |unread| self.exempt || always || unread == 0 || unread + bytes <= limit;
        self.unread_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unread| {
                fits(unread).then_some(unread + bytes)
            })
            .map_err(|unread| NoRoom { free, unread })?;
        self.shared.unread_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(UnreadPlace { account: self.clone(), bytes })
    }

    /// Awaits an answer of a stream's source. Few answers of an address are made at a time. Each
    /// waits until its bytes fit beside those that the address has not read. The caller limits the
    /// wait.
    ///
    /// An answer that has begun is made to its end, and the address pays what it took beyond
    /// `prepaid` nanoseconds. So one that nobody waits for any more is not free.
    pub async fn answer_in_turn(
        self: Arc<Self>,
        answer: BoxFuture<'static, Answer>,
        prepaid: Arc<AtomicU64>,
    ) -> Answer {
        let Ok(making) = self.answers.clone().acquire_owned().await else {
            return Resume::CannotContinue.into();
        };
        let payer = self.clone();
        let made = tokio::spawn(async move {
            let answer = answer.await;
            payer.charge_beyond(answer.took, &prepaid);
            (answer, making)
        });
        let Ok((mut answer, _making)) = made.await else {
            return Resume::CannotContinue.into();
        };
        let (Resume::Frames { frames, .. } | Resume::Page(frames)) = &mut answer.resume else {
            return answer;
        };
        let bytes = frames.iter().map(|frame| frame.tail.len()).sum();
        let place = loop {
            match self.enter_unread(bytes, false) {
                Ok(place) => break Arc::new(place),
                Err(_) => tokio::time::sleep(ROOM_POLL_INTERVAL).await,
            }
        };
        for frame in frames {
            let bytes = std::mem::take(&mut frame.tail);
            frame.tail = Bytes::from_owner(CountedBytes { bytes, _place: place.clone() });
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use spreadly_subscriptions::Frame;
    use tokio::time::{Instant, timeout};

    use super::super::pressure::HubShare;
    use super::super::table::Accounts;
    use super::*;

    fn page(bytes: usize, took: Duration) -> BoxFuture<'static, Answer> {
        let frames = (1..=2).map(|one| Frame::new(one - 1, one, vec![b'x'; bytes / 2 - 1]));
        std::future::ready(Answer { resume: Resume::Page(frames.collect()), took }).boxed()
    }

    fn frames(answer: Answer) -> Vec<Frame> {
        match answer.resume {
            Resume::Page(frames) => frames,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_addresses_together_hold_no_more_unread_replies_than_their_limit_and_share_it() {
        const REPLY: usize = 100 << 10;
        let limits = AccountLimits {
            reply_bytes_per_address: 10 * REPLY,
            reply_bytes: 40 * REPLY,
            ..AccountLimits::default()
        };
        let accounts = Accounts::new(limits, HubShare::of_shards(1));
        let all: Vec<_> = (0..20).map(|last| accounts.of([203, 0, 113, last].into())).collect();
        let mut held = Vec::new();
        for _ in 0..10 {
            for account in &all {
                held.extend(account.enter_reply(REPLY));
            }
        }
        assert!(held.len() <= 40, "{}", held.len());
        let fewest = all.iter().map(|one| one.unread_bytes.load(Ordering::Relaxed)).min();
        assert!(fewest >= Some(REPLY), "each has one at least: {fewest:?}");
        let refused = all[0].enter_reply(REPLY).err().unwrap();
        assert_eq!((refused.name, refused.limit), ("reply_bytes", 40 * REPLY));
        assert_eq!(refused.current, held.len() * REPLY);
        assert!(all[0].enter_reply(SMALL_REPLY_BYTES).is_ok());
        let late = accounts.of([203, 0, 113, 200].into());
        assert!(late.enter_reply(REPLY).is_ok(), "the first one of an address");
        drop(held);
        let of_one = (0..20).map_while(|_| all[0].enter_reply(REPLY).ok()).collect::<Vec<_>>();
        assert_eq!(of_one.len(), 10, "its own limit again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_until_the_ones_that_its_address_has_not_read_leave_room() {
        let limits = AccountLimits { reply_bytes_per_address: 1_000, ..AccountLimits::default() };
        let accounts = Accounts::new(limits, HubShare::of_shards(1));
        let account = accounts.of([203, 0, 113, 7].into());
        let answer =
            |bytes| account.clone().answer_in_turn(page(bytes, Duration::ZERO), Arc::default());
        let large = frames(answer(5_000).await);
        assert_eq!(large[1].tail.len(), 2_500, "one of any size");
        let soon = Duration::from_secs(60);
        assert!(timeout(soon, answer(10)).await.is_err());
        let neighbour = accounts.of([203, 0, 113, 8].into());
        let theirs = neighbour.clone().answer_in_turn(page(10, Duration::ZERO), Arc::default());
        assert_eq!(frames(theirs.await).len(), 2);
        // Its last frame holds the place.
        let (first, last) = (large[0].tail.clone(), large[1].tail.clone());
        drop((large, first));
        assert!(timeout(soon, answer(10)).await.is_err());
        let began = Instant::now();
        let (made, ()) = tokio::join!(answer(600), async { drop(last) });
        assert!(began.elapsed() <= ROOM_POLL_INTERVAL);
        let two = [frames(made), frames(answer(400).await)];
        assert!(timeout(soon, answer(2)).await.is_err());
        drop(two);
        assert_eq!(account.shared.unread_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_so_many_answers_made_at_a_time() {
        let accounts = Accounts::new(AccountLimits::default(), HubShare::of_shards(1));
        let account = accounts.of([203, 0, 113, 7].into());
        let begun = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let end = Arc::new(tokio::sync::Notify::new());
        let all = (0..MOST_ANSWERS * 3).map(|_| {
            let (begun, end) = (begun.clone(), end.clone());
            let awaited = async move {
                begun.fetch_add(1, Ordering::Relaxed);
                end.notified().await;
                page(10, Duration::ZERO).await
            };
            account.clone().answer_in_turn(awaited.boxed(), Arc::default())
        });
        let all = futures_util::future::join_all(all);
        assert!(timeout(Duration::from_secs(1), all).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), MOST_ANSWERS);
        let next = || account.clone().answer_in_turn(page(10, Duration::ZERO), Arc::default());
        // Those that have begun are made to their end, though nobody waits for them.
        assert!(timeout(Duration::from_secs(1), next()).await.is_err());
        end.notify_waiters();
        assert_eq!(frames(next().await).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_waits_for_any_more_is_charged() {
        let limits = AccountLimits { cost_measured: true, ..AccountLimits::default() };
        let accounts = Accounts::new(limits, HubShare::of_shards(1));
        let account = accounts.of([203, 0, 113, 7].into());
        let charged = || {
            let charges = account.shared.meters.charges();
            charges.into_iter().find(|(work, _)| *work == "measured").map(|(_, micros)| micros)
        };
        let took = Duration::from_millis(7);
        let slow = async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            page(10, took).await
        };
        let prepaid = Arc::new(AtomicU64::new(2_000_000));
        let answer = account.clone().answer_in_turn(slow.boxed(), prepaid);
        assert!(timeout(Duration::from_millis(1), answer).await.is_err());
        assert_eq!(charged(), Some(0));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(charged(), Some(5_000));
    }
}
