//! `/metrics`: what was counted, as OpenMetrics text. Names carry their unit; labels are bounded.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use spreadly_subscriptions::{Meters, Pace, Streams};

use crate::budgets::Accounts;
use crate::cache::CacheMeters;
use crate::descriptors;
use crate::ingest::feed_status::{FeedState, FeedStatuses};
use crate::live::{Encoders, Live};
use crate::pool::Pool;

/// What the page reports.
pub struct Everything {
    pub meters: Arc<Meters>,
    pub live: Arc<Live>,
    pub statuses: FeedStatuses,
    /// `None`: there is no cache.
    pub cache: Option<Arc<CacheMeters>>,
    pub streams: Arc<Streams>,
    /// Once the log is read.
    pub encoders: Arc<OnceLock<Arc<Encoders>>>,
    pub accounts: Arc<Accounts>,
    pub pool: Arc<Pool>,
}

impl fmt::Debug for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Everything")
    }
}

/// What renders the page.
pub fn text(everything: Everything) -> Box<dyn Fn() -> String + Send + Sync> {
    let mut registry = Registry::with_prefix("spreadly");
    registry.register_collector(Box::new(everything));
    Box::new(move || {
        let mut page = String::new();
        match prometheus_client::encoding::text::encode(&mut page, &registry) {
            Ok(()) => page,
            Err(error) => format!("# {error}\n"),
        }
    })
}

impl Collector for Everything {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let meters = &self.meters;
        let gauges = [
            ("websockets_open", "WebSockets and event streams open now", meters.sockets_open.get()),
            ("readers_open", "Operations that read a stream now", meters.readers_open.get()),
            ("response_streams_open", "Response streams open now", meters.streams_open.get()),
            (
                "stream_memory_bytes",
                "Bytes of rings, cached frames and documents of all response streams",
                self.streams.memory().used() as u64,
            ),
            (
                "stream_memory_limit_bytes",
                "How many of them there may be (limits.memory_bytes)",
                self.streams.memory().budget() as u64,
            ),
        ];
        for (name, help, value) in gauges {
            gauge(&mut encoder, name, help, value)?;
        }
        let encodings = self.live.snapshot_encodings.load(Ordering::Relaxed);
        let reorganisations = self.live.reorganisations.load(Ordering::Relaxed);
        let undone = self.live.events_undone.load(Ordering::Relaxed);
        let gaps = self.live.gaps.load(Ordering::Relaxed);
        let counters = [
            (
                "websockets_opened",
                "WebSockets and event streams opened",
                meters.sockets_opened.get(),
            ),
            ("messages_received", "Messages from clients", meters.messages_received.get()),
            ("frames_published", "Results encoded, once each", meters.frames_published.get()),
            ("frames_delivered", "Results handed to sockets", meters.frames_delivered.get()),
            ("sent_bytes", "Bytes written to WebSockets", meters.bytes_sent.get()),
            ("writes", "Vectored writes of results", meters.writes.get()),
            (
                "catch_ups",
                "Readers that the ring no longer had the next frame for",
                meters.catch_ups.get(),
            ),
            ("replayed_pages", "Pages of the log given to readers", meters.replayed_pages.get()),
            ("rings_shrunk", "Rings that gave way to others", meters.rings_shrunk.get()),
            ("silent_peers_dropped", "Peers silent for two pings", meters.dropped_silent.get()),
            ("snapshot_encodings", "Snapshots encoded, not shared", encodings),
            ("reorganisations", "Times that blocks of the chain were undone", reorganisations),
            ("events_undone", "Events that were undone with blocks", undone),
            ("source_gaps", "Times that events of a source were lost", gaps),
        ];
        for (name, help, value) in counters {
            counter(&mut encoder, name, help, &[vec![]], &[value])?;
        }
        let (codes, closes): (Vec<_>, Vec<_>) = meters
            .closes()
            .map(|(code, count)| (vec![("code", code.number().to_string())], count))
            .unzip();
        counter(&mut encoder, "closes", "Sockets closed by us, by code", &codes, &closes)?;
        self.encoding(&mut encoder)?;
        self.pool(&mut encoder)?;
        self.cache(&mut encoder)?;
        self.clients(&mut encoder)?;
        host(&mut encoder)?;
        self.feeds(&mut encoder)
    }
}

type Labels = Vec<(&'static str, String)>;

impl Everything {
    fn encoding(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(encoders) = self.encoders.get() else { return Ok(()) };
        let mut slowed_now = [0; 3];
        let (mut advanced, mut slowed, mut copied, mut nanos) = (0, 0, 0, 0);
        for (meters, merged) in encoders.workers() {
            slowed_now.iter_mut().zip(merged).for_each(|(sum, own)| *sum += own as u64);
            advanced += meters.advanced.load(Ordering::Relaxed);
            slowed += meters.slowed.load(Ordering::Relaxed);
            copied += meters.copied_again.load(Ordering::Relaxed);
            nanos += meters.nanos.load(Ordering::Relaxed);
        }
        let paces: Vec<Labels> = Pace::MERGING
            .iter()
            .map(|pace| vec![("pace_ms", pace.period().as_millis().to_string())])
            .collect();
        let help = "Response streams that are merged now, as they can't keep their own pace";
        gauges(encoder, "response_streams_slowed", help, &paces, &slowed_now)?;
        let counters = [
            ("streams_advanced", "Times that a response stream was brought up to date", advanced),
            ("streams_slowed", "Times that a response stream got a slower pace", slowed),
            (
                "state_copies",
                "Times that a worker's queue of events overflowed and it copied the state",
                copied,
            ),
            (
                "encoding_microseconds",
                "Processor time spent on resolving and encoding results",
                nanos / 1_000,
            ),
        ];
        for (name, help, value) in counters {
            counter(encoder, name, help, &[vec![]], &[value])?;
        }
        Ok(())
    }

    fn pool(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let meters = self.pool.meters();
        let queued = self.pool.queued() as u64;
        gauge(encoder, "pool_queued", "Jobs that wait for a thread of the pool", queued)?;
        let running = meters.running.load(Ordering::Relaxed);
        gauge(encoder, "pool_running", "Jobs that the pool runs now", running)?;
        let counters = [
            ("pool_jobs", "Jobs that the pool ran", &meters.jobs, 1),
            ("pool_wait_microseconds", "Time that jobs waited", &meters.waited_nanos, 1_000),
            ("pool_run_microseconds", "Time that jobs ran", &meters.run_nanos, 1_000),
        ];
        for (name, help, value, unit) in counters {
            let value = value.load(Ordering::Relaxed) / unit;
            counter(encoder, name, help, &[vec![]], &[value])?;
        }
        Ok(())
    }

    fn cache(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(cache) = &self.cache else { return Ok(()) };
        let up = u64::from(cache.up.load(Ordering::Relaxed));
        let help = "1 while the cache answers; while it does not it is left alone between tries";
        gauge(encoder, "cache_up", help, up)?;
        let counters = [
            ("cache_writes", "Values that the cache took", &cache.written),
            ("cache_writes_older", "Values it did not take, having a later one", &cache.older),
            ("cache_failures", "Questions to the cache that failed", &cache.failed),
            ("cache_states_restored", "States the start went on from", &cache.restored),
            ("cache_states_refused", "States the start would not go on from", &cache.refused),
        ];
        for (name, help, value) in counters {
            let value = value.load(Ordering::Relaxed);
            counter(encoder, name, help, &[vec![]], &[value])?;
        }
        Ok(())
    }

    fn clients(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let meters = self.accounts.meters();
        let known = self.accounts.len() as u64;
        gauge(encoder, "client_addresses", "Client addresses known now", known)?;
        let help = "Factor of all prices; above 1 while all clients together ask for too much";
        gauge(encoder, "price_factor", help, self.accounts.price_factor())?;
        let pauses = meters.accept_pauses.load(Ordering::Relaxed);
        let help = "Times that no connection was accepted, for want of file descriptors";
        counter(encoder, "accept_pauses", help, &[vec![]], &[pauses])?;
        let labelled =
            |label: &'static str, all: Vec<(&'static str, u64)>| -> (Vec<Labels>, Vec<u64>) {
                all.into_iter().map(|(name, count)| (vec![(label, name.to_owned())], count)).unzip()
            };
        let (labels, counts) = labelled("limit", meters.refusals().collect());
        let help = "Connections, sockets, streams and reads refused, by the limit that was reached";
        counter(encoder, "refused", help, &labels, &counts)?;
        let (labels, counts) = labelled("work", meters.rate_limits().collect());
        let help = "Requests and fields refused as their address was in debt, by kind of work";
        counter(encoder, "rate_limited", help, &labels, &counts)?;
        let (labels, counts) = labelled("work", meters.charges().collect());
        let help = "Microseconds charged to clients, by kind of work, as estimated";
        counter(encoder, "charged_microseconds", help, &labels, &counts)
    }

    fn feeds(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let feeds = self.statuses.snapshot();
        let labels: Vec<Labels> =
            feeds.iter().map(|feed| vec![("feed", feed.name.to_string())]).collect();
        let column = |of: fn(&crate::ingest::feed_status::FeedStatus) -> u64| -> Vec<u64> {
            feeds.iter().map(of).collect()
        };
        let events = column(|feed| feed.events_total);
        counter(encoder, "feed_events", "Events that entered the log", &labels, &events)?;
        let known = column(|feed| feed.known_total);
        counter(encoder, "feed_events_known", "Events whose id was known", &labels, &known)?;
        let refused = column(|feed| feed.refused_total);
        counter(encoder, "feed_events_refused", "Events that were refused", &labels, &refused)?;
        let cuts = column(|feed| feed.cuts_total);
        counter(encoder, "feed_cuts", "Times a feed was cut off its source", &labels, &cuts)?;
        let live = column(|feed| u64::from(feed.state == FeedState::Live));
        gauges(encoder, "feed_live", "1 while the feed is live", &labels, &live)?;
        let lag = column(|feed| feed.lag);
        let help = "Bytes, rows or records at the source that are not in the log yet";
        gauges(encoder, "feed_lag", help, &labels, &lag)
    }
}

/// What the process and its host have left, where they say it.
fn host(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let limit = descriptors::limit();
    gauge(encoder, "file_descriptors_limit", "File descriptors the process may have", limit)?;
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        let open = (open.count() as u64).saturating_sub(1);
        gauge(encoder, "file_descriptors_open", "File descriptors the process has open", open)?;
    }
    let Ok(netstat) = std::fs::read_to_string("/proc/net/netstat") else { return Ok(()) };
    for (field, name, help) in [
        (
            "ListenOverflows",
            "host_listen_overflows",
            "Connections of the host that found a backlog full",
        ),
        ("ListenDrops", "host_listen_drops", "SYNs of the host that were dropped"),
    ] {
        if let Some(count) = extended(&netstat, field) {
            counter(encoder, name, help, &[vec![]], &[count])?;
        }
    }
    Ok(())
}

/// A field of the kernel's `TcpExt`: a line of names, then a line of numbers.
fn extended(netstat: &str, field: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|name| name == field)?;
    numbers.split_whitespace().nth(place)?.parse().ok()
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[Labels],
    values: &[u64],
) -> fmt::Result {
    let gauge = |value: &u64| ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX));
    series(encoder, name, help, MetricType::Gauge, labels, values.iter().map(gauge))
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    gauges(encoder, name, help, &[Labels::new()], &[value])
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[Labels],
    values: &[u64],
) -> fmt::Result {
    let counter = |value: &u64| ConstCounter::new(*value);
    series(encoder, name, help, MetricType::Counter, labels, values.iter().map(counter))
}

/// A value for each set of labels; one without labels is alone.
fn series(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    labels: &[Labels],
    values: impl Iterator<Item = impl EncodeMetric>,
) -> fmt::Result {
    family(encoder, name, help, kind, |mut family| {
        for (labels, value) in labels.iter().zip(values) {
            if labels.is_empty() {
                return value.encode(family);
            }
            value.encode(family.encode_family(labels)?)?;
        }
        Ok(())
    })
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    fill: impl FnOnce(prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    fill(encoder.encode_descriptor(name, help, None, kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_kernels_counters_is_found_by_its_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 333\n\
                       IpExt: ListenDrops\nIpExt: 4\n";
        assert_eq!(extended(netstat, "ListenOverflows"), Some(22));
        assert_eq!(extended(netstat, "ListenDrops"), Some(333));
        assert_eq!(extended(netstat, "Nothing"), None);
    }
}
