//! Rules between keys: what each value allows alone, but not together. Each fault names both keys.

use super::sections::feeds::{KafkaFeedConfig, PostgresFeedConfig};
use super::sections::store::Log;
use super::table::Table;
use super::{AdminConfig, Limits, ServerConfig};

/// Fields of a level in a subscription that selects all of them: price, size and orders, of bids
/// and asks, of snapshot and delta.
const FIELDS_OF_A_LEVEL: usize = 12;
/// What a market costs in a subscribe that names it: an id of 64 with quotes and comma, and its
/// position in the cursor.
const BYTES_OF_A_MARKET: usize = 100;

/// A shared log is read by the feed of its database: the feed has the log's URL, and no other.
pub(super) fn shared_log(
    table: &mut Table<'_>,
    log: Log,
    mut feed: PostgresFeedConfig,
) -> Option<PostgresFeedConfig> {
    if let Log::Shared(log) = log {
        if !feed.url.is_empty() && feed.url != log {
            let problem = "store.url is another database, whose table `events` is read already: \
                           leave this one out";
            table.fault("feeds.postgres.url", None, problem.to_owned());
        }
        feed.url = log;
    }
    Some(feed).filter(|feed| !feed.url.is_empty())
}

/// What belongs to Kafka is written to a topic that is read from it.
pub(super) fn kafka(table: &mut Table<'_>, kafka: KafkaFeedConfig) -> Option<KafkaFeedConfig> {
    const TOPICS: &str = "feeds.kafka.own_topics";
    const MARKETS: &str = "feeds.kafka.own_markets";
    const PRODUCE_TO: &str = "feeds.kafka.produce_to";
    if let Some(owned) = &kafka.owned {
        let named = [(TOPICS, &owned.topics), (MARKETS, &owned.markets)];
        let names = named.into_iter().find(|(_, names)| !names.is_empty()).map(|(key, _)| key);
        let to = &owned.produce_to;
        let fault = match names {
            None => {
                let problem = format!("neither {TOPICS} nor {MARKETS} names what is written there");
                Some((PRODUCE_TO, problem))
            }
            Some(key) if kafka.brokers.is_empty() => {
                Some((key, "feeds.kafka.brokers is not set: say where Kafka is".to_owned()))
            }
            Some(key) if to.is_empty() => {
                let problem = format!(
                    "{PRODUCE_TO} is not set: say which topic of Kafka mutations write it to"
                );
                Some((key, problem))
            }
            Some(_) if !kafka.topics.contains(to) => {
                let problem =
                    "it must be one of feeds.kafka.topics, as the hub reads back what it writes";
                Some((PRODUCE_TO, problem.to_owned()))
            }
            Some(_) => None,
        };
        if let Some((key, problem)) = fault {
            let given = (key == PRODUCE_TO).then(|| format!("{to:?}"));
            table.fault(key, given, problem);
        }
    }
    if kafka.brokers.is_empty() {
        return None;
    }
    if kafka.topics.is_empty() {
        let problem = "it names none, but feeds.kafka.brokers is set: say what to read";
        table.fault("feeds.kafka.topics", None, problem.to_owned());
    }
    Some(kafka)
}

/// A header says whose a connection is, so not everybody may send one.
pub(super) fn proxies(table: &mut Table<'_>, server: &ServerConfig) {
    if server.proxy_protocol && server.trusted_proxies.is_empty() {
        let problem = "server.trusted_proxies is empty: say which proxies send the header";
        table.fault("server.proxy_protocol", Some("true".to_owned()), problem.to_owned());
    }
}

/// A connection that may be idle may use the time that it has for headers.
pub(super) fn idle(table: &mut Table<'_>, server: &ServerConfig) {
    if server.idle_timeout < server.header_timeout {
        let least = server.header_timeout.as_millis();
        let problem = format!("it may not be below server.header_timeout_ms, which is {least}");
        let given = server.idle_timeout.as_millis().to_string();
        table.fault("server.idle_timeout_ms", Some(given), problem);
    }
}

/// Port 0 asks the kernel for a free one, so two of them never meet.
pub(super) fn ports(table: &mut Table<'_>, server: &ServerConfig, admin: &AdminConfig) {
    if admin.listen == server.listen && admin.listen.port() != 0 {
        table.fault(
            "admin.listen",
            Some(format!("{:?}", admin.listen.to_string())),
            "it must differ from server.listen".to_owned(),
        );
    }
}

/// What one limit allows, no other may take away.
pub(super) fn limits(table: &mut Table<'_>, limits: &Limits) {
    let operations = ("limits.operations_per_socket", limits.operations_per_socket);
    let burst = ("limits.subscribe_burst", limits.subscribe_burst as usize);
    let markets = ("limits.markets_per_subscription", limits.markets_per_subscription);
    let mut at_least =
        |(key, number): (&'static str, usize), (other, times): (&str, usize), each| {
            let least = times * each;
            if number < least {
                let of = match each {
                    1 => format!("{other}, which is {times}"),
                    _ => format!("{least}: {each} for each of {other}, which is {times}"),
                };
                table.fault(key, Some(number.to_string()), format!("it may not be below {of}"));
            }
        };
    // What a client had open before a cut it opens again at once.
    at_least(burst, operations, 1);
    at_least(burst, ("limits.subscribe_rate", limits.subscribe_rate as usize), 1);
    // Nothing that one socket may hold open is more than the whole hub may have.
    at_least(("limits.streams", limits.streams), operations, 1);
    at_least(
        ("limits.reply_bytes", limits.reply_bytes),
        ("limits.reply_bytes_per_address", limits.reply_bytes_per_address),
        1,
    );
    at_least(
        ("limits.query_list_fields", limits.query_list_fields),
        ("limits.book_depth", limits.book_depth),
        FIELDS_OF_A_LEVEL,
    );
    at_least(("limits.message_bytes", limits.message_bytes), markets, BYTES_OF_A_MARKET);
    let mut at_most = |(key, number): (&'static str, usize), (other, most): (&str, usize)| {
        if number > most {
            let problem = format!("it may not exceed {other}, which is {most}");
            table.fault(key, Some(number.to_string()), problem);
        }
    };
    let before_ack = ("limits.message_bytes_before_ack", limits.message_bytes_before_ack);
    at_most(before_ack, ("limits.message_bytes", limits.message_bytes));
    let pending = ("limits.pending_operations_per_socket", limits.pending_operations_per_socket);
    at_most(pending, operations);
}
