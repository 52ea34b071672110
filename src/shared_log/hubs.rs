//! The hubs that share a log: the table `spreadly_hubs`. Each hub renews its row, and compares
//! itself with the others: they need the same release, the same settings of Kafka, and clocks that
//! agree. What differs is one warning for each change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_postgres::Object;
use parking_lot::Mutex;
use tokio_postgres::Row;

use super::leases::LeaseError;
use super::meters::PostgresMeters;
use crate::ingest::handle;
use crate::market::time::Micros;

/// Between two renewals of a hub's row.
pub(super) const RENEWAL: Duration = Duration::from_secs(2);
/// A hub that did not renew its row for so long is gone. A partition without a reader for so long
/// is not read.
const HUB_SILENCE: Duration = Duration::from_secs(10);
/// Then its row is deleted.
const KEPT: Duration = Duration::from_secs(60);
/// A clock that differs by more from the database's is reported; by less than half of it, no more.
const CLOCK_BOUND: Duration = Duration::from_secs(1);
/// Other hubs that a hub looks at.
const MOST_HUBS: i64 = 1_000;

const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// Of [`Agreed`].
pub const TOPICS: &str = "feeds.kafka.topics";

const RENEW: &str = "
    WITH silent AS (
        SELECT reader FROM spreadly_hubs
        WHERE seen < clock_timestamp() - make_interval(secs => $6) AND reader <> $1
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM spreadly_hubs USING silent WHERE spreadly_hubs.reader = silent.reader
    )
    INSERT INTO spreadly_hubs (reader, host, release, settings, clock_micros)
    VALUES ($1, $2, $3, $4::text::json, $5)
    ON CONFLICT (reader)
        DO UPDATE SET clock_micros = EXCLUDED.clock_micros, seen = clock_timestamp()
    RETURNING (date_part('epoch', clock_timestamp()) * 1000000)::bigint";
const OTHERS: &str = "
    SELECT reader, host, release, settings::text FROM spreadly_hubs
    WHERE reader <> $1 AND seen > clock_timestamp() - make_interval(secs => $2)
    ORDER BY seen DESC LIMIT $3";
/// Topics of which some partition has been read and has no reader now.
const UNREAD: &str = "
    SELECT DISTINCT substring(feed FROM '^kafka:(.*)/[0-9]+$') FROM spreadly_sources
    WHERE feed LIKE 'kafka:%' AND position IS NOT NULL
        AND renewed < clock_timestamp() - make_interval(secs => $1)";
const LEAVE: &str = "DELETE FROM spreadly_hubs WHERE reader = $1";

/// Settings that have to be the same on all hubs of a log, with their values.
pub type Agreed = BTreeMap<String, BTreeSet<String>>;

/// This hub among the others.
pub(super) struct Hubs {
    reader: i64,
    host: String,
    agreed: Agreed,
    meters: Arc<PostgresMeters>,
    known: Mutex<Known>,
}

/// What was found last.
#[derive(Default)]
struct Known {
    clock: Option<Clock>,
    is_clock_reported: bool,
    /// What is wrong, by what it is about.
    faults: BTreeMap<String, String>,
}

/// This machine's clock, compared with the database's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    ahead_micros: i64,
    /// The real difference is within so much of it.
    unsure_micros: i64,
}

/// Another hub, as it describes itself.
struct Other {
    reader: i64,
    host: String,
    release: String,
    agreed: Agreed,
}

impl Hubs {
    pub(super) fn new(
        reader: i64,
        host: String,
        agreed: Agreed,
        meters: Arc<PostgresMeters>,
    ) -> Self {
        Self { reader, host, agreed, meters, known: Mutex::default() }
    }

    /// Shows that this hub is there, and reports what has changed with the others.
    pub(super) async fn renew(&self, connection: &Object) -> Result<(), LeaseError> {
        let renew = connection.prepare_cached(RENEW).await?;
        let settings = handle::json(&self.agreed);
        let measured = self.known.lock().clock.map(|clock| clock.ahead_micros);
        let asked = handle::now();
        let row = connection
            .query_one(
                &renew,
                &[&self.reader, &self.host, &RELEASE, &settings, &measured, &KEPT.as_secs_f64()],
            )
            .await?;
        let clock = Clock::new(asked, row.try_get(0)?, handle::now());
        let others = connection.prepare_cached(OTHERS).await?;
        let silence = HUB_SILENCE.as_secs_f64();
        let others = connection.query(&others, &[&self.reader, &silence, &MOST_HUBS]).await?;
        let others = others.iter().map(Other::new).collect::<Result<Vec<_>, _>>()?;
        let unread = connection.prepare_cached(UNREAD).await?;
        let unread = connection.query(&unread, &[&silence]).await?;
        let unread = unread.iter().map(|row| row.try_get(0)).collect::<Result<Vec<_>, _>>()?;
        self.compare(clock, &others, unread);
        Ok(())
    }

    /// So that others need not wait for this hub to become silent.
    pub(super) async fn leave(&self, connection: &Object) -> Result<(), LeaseError> {
        let leave = connection.prepare_cached(LEAVE).await?;
        connection.execute(&leave, &[&self.reader]).await?;
        Ok(())
    }

    fn compare(&self, clock: Clock, others: &[Other], unread: Vec<String>) {
        let mut faults = BTreeMap::new();
        let different = others.iter().filter_map(|other| {
            let differs = other.differs_from(RELEASE, &self.agreed)?;
            Some((format!("hub {}", other.reader), differs))
        });
        faults.extend(different);
        let different = faults.len();
        let is_named = |topic: &String| {
            let all = others.iter().map(|other| &other.agreed).chain([&self.agreed]);
            all.filter_map(|agreed| agreed.get(TOPICS)).any(|topics| topics.contains(topic))
        };
        // Of a topic that is named, the feed itself reports what is wrong.
        let unread: Vec<_> = unread.into_iter().filter(|topic| !is_named(topic)).collect();
        faults.extend(unread.iter().map(|topic| {
            let fault = format!(
                "no hub reads the topic {topic:?} of Kafka any more: add it to {TOPICS} of all \
                 hubs, or delete its rows of spreadly_sources"
            );
            (format!("topic {topic}"), fault)
        }));
        let meters = &self.meters;
        meters.hubs_live.store(others.len() as u64 + 1, Ordering::Relaxed);
        meters.hubs_different.store(different as u64, Ordering::Relaxed);
        meters.topics_unread.store(unread.len() as u64, Ordering::Relaxed);
        meters.clock_micros.store(clock.ahead_micros, Ordering::Relaxed);
        let mut known = self.known.lock();
        known.clock = Some(clock);
        known.is_clock_reported = clock.is_off(known.is_clock_reported);
        if known.is_clock_reported {
            let about = "clock".to_owned();
            // Its drift is no change.
            let before = known.faults.get(&about).cloned();
            faults.insert(about, before.unwrap_or_else(|| clock.fault()));
        }
        for (about, fault) in &faults {
            if known.faults.get(about) != Some(fault) {
                tracing::warn!("{fault}");
            }
        }
        if faults.is_empty() && !known.faults.is_empty() {
            tracing::info!("the hubs of this log agree again");
        }
        known.faults = faults;
    }
}

impl Clock {
    fn new(asked: Micros, answer: i64, answered: Micros) -> Self {
        let unsure_micros = (answered - asked) / 2;
        Self { ahead_micros: asked + unsure_micros - answer, unsure_micros }
    }

    /// Whether it differs too much.
    fn is_off(self, was_off: bool) -> bool {
        let bound = i64::try_from(CLOCK_BOUND.as_micros()).unwrap_or(i64::MAX);
        let bound = if was_off { bound / 2 } else { bound };
        self.ahead_micros.abs() - self.unsure_micros > bound
    }

    fn fault(self) -> String {
        let millis = self.ahead_micros.abs() / 1_000;
        let place = if self.ahead_micros > 0 { "ahead of" } else { "late against" };
        format!(
            "this machine's clock is {millis} ms {place} the database's: let both take the time \
             from one server (NTP)"
        )
    }
}

impl Other {
    fn new(row: &Row) -> Result<Self, LeaseError> {
        let settings: &str = row.try_get(3)?;
        Ok(Self {
            reader: row.try_get(0)?,
            host: row.try_get(1)?,
            release: row.try_get(2)?,
            // Those of another release may look otherwise: then they differ.
            agreed: serde_json::from_str(settings).unwrap_or_default(),
        })
    }

    /// What an operator has to do about it.
    fn differs_from(&self, release: &str, agreed: &Agreed) -> Option<String> {
        let host = &self.host;
        let mut all = Vec::new();
        if self.release != release {
            all.push(format!(
                "the hub on {host} is of release {} and this one of {release}: run one release on \
                 all hubs of a log",
                self.release
            ));
        }
        let keys: BTreeSet<_> = self.agreed.keys().chain(agreed.keys()).collect();
        let keys = keys.into_iter().filter(|key| self.agreed.get(*key) != agreed.get(*key));
        let keys: Vec<_> = keys.map(String::as_str).collect();
        if !keys.is_empty() {
            all.push(format!(
                "the hub on {host} has another value of {}: give all hubs of a log the same",
                keys.join(", ")
            ));
        }
        (!all.is_empty()).then(|| all.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(topics: &[&str]) -> Agreed {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        [(TOPICS.to_owned(), topics), ("feeds.kafka.brokers".to_owned(), BTreeSet::new())].into()
    }

    fn other(reader: i64, release: &str, topics: &[&str]) -> Other {
        let (host, release) = ("there".to_owned(), release.to_owned());
        Other { reader, host, release, agreed: agreed(topics) }
    }

    const RIGHT: Clock = Clock { ahead_micros: 0, unsure_micros: 0 };

    #[test]
    fn hubs_of_one_release_and_with_equal_settings_do_not_differ() {
        let own = agreed(&["a", "b"]);
        assert_eq!(other(1, "1.0.0", &["b", "a"]).differs_from("1.0.0", &own), None);
        let text = other(1, "0.9.0", &["a"]).differs_from("1.0.0", &own).unwrap();
        let release = "the hub on there is of release 0.9.0 and this one of 1.0.0: run one release";
        assert!(text.starts_with(release), "{text}");
        let settings = "; the hub on there has another value of feeds.kafka.topics: give all";
        assert!(text.contains(settings), "{text}");
        // One that has no Kafka at all.
        let without = Other { agreed: Agreed::new(), ..other(1, "1.0.0", &[]) };
        let text = without.differs_from("1.0.0", &own).unwrap();
        assert!(text.contains("feeds.kafka.brokers, feeds.kafka.topics"), "{text}");
    }

    #[test]
    fn a_clock_is_off_once_it_surely_differs_by_more_than_the_bound() {
        let clock = Clock::new(5_000_000, 1_000_000, 5_400_000);
        assert_eq!(clock, Clock { ahead_micros: 4_200_000, unsure_micros: 200_000 });
        assert!(clock.fault().contains("4200 ms ahead of"), "{}", clock.fault());
        let late = Clock::new(1_000_000, 5_000_000, 1_000_000);
        assert!(late.fault().contains("4000 ms late against"), "{}", late.fault());
        let by = |ahead_micros, unsure_micros| Clock { ahead_micros, unsure_micros };
        assert!(!by(1_000_000, 0).is_off(false) && by(1_000_001, 0).is_off(false));
        assert!(by(-1_000_001, 0).is_off(false) && !by(-1_000_001, 1).is_off(false));
        // It has to come well within the bound before it is right again.
        assert!(by(500_001, 0).is_off(true) && !by(500_000, 0).is_off(true));
    }

    #[test]
    fn what_is_wrong_is_counted_and_kept_until_it_is_right_again() {
        let meters = Arc::<PostgresMeters>::default();
        let hubs = Hubs::new(0, "here".to_owned(), agreed(&["a"]), meters.clone());
        let counts = || {
            let all = [&meters.hubs_live, &meters.hubs_different, &meters.topics_unread];
            all.map(|count| count.load(Ordering::Relaxed))
        };
        let faults = || hubs.known.lock().faults.clone();
        hubs.compare(RIGHT, &[other(1, RELEASE, &["a"])], vec!["a".to_owned()]);
        assert_eq!((counts(), faults().len()), ([2, 0, 0], 0));
        // Another one reads `b`, so only `c` is read by nobody.
        let others = [other(1, RELEASE, &["a", "b"]), other(2, "old", &["a"])];
        let unread = vec!["b".to_owned(), "c".to_owned()];
        let off = Clock { ahead_micros: -2_000_000, unsure_micros: 0 };
        hubs.compare(off, &others, unread);
        assert_eq!(counts(), [3, 2, 1]);
        assert_eq!(meters.clock_micros.load(Ordering::Relaxed), -2_000_000);
        let first = faults();
        assert!(first["topic c"].starts_with("no hub reads the topic \"c\" of Kafka any more"));
        assert_eq!(first.keys().collect::<Vec<_>>(), ["clock", "hub 1", "hub 2", "topic c"]);
        // A clock that drifts on is no further change.
        let drifted = Clock { ahead_micros: -2_100_000, unsure_micros: 0 };
        hubs.compare(drifted, &others, vec!["c".to_owned()]);
        assert_eq!(faults(), first);
        hubs.compare(RIGHT, &[], vec![]);
        assert_eq!((counts(), faults().len()), ([1, 0, 0], 0));
    }
}
