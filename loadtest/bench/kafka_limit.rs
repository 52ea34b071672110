//! The limit for a Kafka feed, for `kafka_feed.py`: a bare rdkafka consumer that parses each value
//! with serde_json and does nothing else. And the producer that fills the topic for both.
//!
//!     kafka_limit produce BROKERS TOPIC RECORDS RECORDS_PER_SECOND
//!     kafka_limit consume BROKERS TOPIC RECORDS
//!
//! `produce` sends changes of 100 markets, M0-USD to M99-USD, each market's to one partition; 0
//! records a second is as fast as it goes. `consume` reads from the start and prints seconds and
//! processor time.

use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};

const MARKETS: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["produce", brokers, topic, records, rate] => {
            produce(brokers, topic, records.parse()?, rate.parse()?)
        }
        ["consume", brokers, topic, records] => consume(brokers, topic, records.parse()?),
        _ => {
            Err("kafka_limit produce BROKERS TOPIC RECORDS RATE | consume BROKERS TOPIC RECORDS"
                .into())
        }
    }
}

fn partitions(client: &BaseConsumer, topic: &str) -> Result<i32, Box<dyn Error>> {
    let metadata = client.fetch_metadata(Some(topic), PATIENCE)?;
    match metadata.topics()[0].partitions().len() {
        0 => Err("the topic is only being made".into()),
        count => Ok(i32::try_from(count)?),
    }
}

fn consumer(brokers: &str) -> Result<BaseConsumer, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "limit")
        .set("enable.auto.commit", "false")
        // Asking for a topic makes it.
        .set("allow.auto.create.topics", "true")
        .create()
}

fn produce(brokers: &str, topic: &str, records: u64, rate: u64) -> Result<(), Box<dyn Error>> {
    let count = u64::from(partitions(&consumer(brokers)?, topic)?.unsigned_abs());
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "200000")
        .create()?;
    let began = Instant::now();
    for number in 0..records {
        if let Some(micros) = (number * 1_000_000).checked_div(rate) {
            let due = began + Duration::from_micros(micros);
            while Instant::now() < due {
                producer.poll(due.saturating_duration_since(Instant::now()));
            }
        }
        let market = number % MARKETS;
        let (price, size) = (100 + number % 17, 1 + number % 97);
        let value = format!(
            r#"{{"kind":"book.delta","market":"M{market}-USD","bids":[["{price}.0","{size}.00000000"]],"asks":[["{}.0","{size}.00000000"]],"time":"2026-01-01T00:00:00Z"}}"#,
            price + 100
        );
        let partition = i32::try_from(market % count)?;
        let mut record = BaseRecord::<(), _>::to(topic).partition(partition).payload(&value);
        while let Err((error, back)) = producer.send(record) {
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                    producer.poll(Duration::from_millis(10));
                    record = back;
                }
                other => return Err(other.into()),
            }
        }
    }
    producer.flush(PATIENCE)?;
    println!("{:.3}", began.elapsed().as_secs_f64());
    Ok(())
}

fn consume(brokers: &str, topic: &str, records: u64) -> Result<(), Box<dyn Error>> {
    let consumer = consumer(brokers)?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions(&consumer, topic)? {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut count, mut bytes) = (0, 0);
    let began = Instant::now();
    while count < records {
        let message = consumer.poll(PATIENCE).ok_or("the topic has fewer records")??;
        let value: serde_json::Value =
            serde_json::from_slice(message.payload().unwrap_or_default())?;
        bytes += usize::from(value.is_object());
        count += 1;
    }
    assert_eq!(bytes as u64, records, "each is an object");
    println!("{:.3} {:.3}", began.elapsed().as_secs_f64(), processor_seconds()?);
    Ok(())
}

/// User and system time of this process so far.
fn processor_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("no stat")?;
    let ticks: Result<Vec<u64>, _> =
        fields.split_ascii_whitespace().skip(11).take(2).map(str::parse).collect();
    // Linux counts a hundred a second on every architecture.
    Ok(ticks?.iter().sum::<u64>() as f64 / 100.0)
}
