//! Records of a Kafka topic `events`: messages without ids, numbered within their partition, each
//! partition's under a topic of its own.

use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use tokio::task::JoinHandle;

use super::Kafka;

const DEADLINE: Duration = Duration::from_secs(120);

/// The generic topic of a partition's records.
pub fn topic_of(partition: i32) -> String {
    format!("p{partition}")
}

pub fn message(partition: i32, number: u64) -> String {
    json!({"kind": "message", "topic": topic_of(partition), "data": number}).to_string()
}

pub fn producer(kafka: &Kafka) -> FutureProducer {
    let mut client = kafka.client();
    // So that a broker that is killed neither loses nor doubles what was acknowledged.
    client.set("enable.idempotence", "true").set("message.timeout.ms", "120000");
    client.create().unwrap()
}

pub async fn send(producer: &FutureProducer, topic: &str, partition: i32, value: &[u8]) {
    let record = FutureRecord::<(), _>::to(topic).partition(partition).payload(value);
    producer.send(record, DEADLINE).await.unwrap();
}

/// Writes `numbers` into each partition, some thousand a second, in order whatever the broker does.
pub fn storm(
    producer: &FutureProducer,
    partitions: i32,
    numbers: std::ops::Range<u64>,
) -> Vec<JoinHandle<()>> {
    let one = |partition| {
        let (producer, numbers) = (producer.clone(), numbers.clone());
        tokio::spawn(async move {
            let mut waiting = Vec::new();
            for number in numbers {
                let line = message(partition, number);
                let record =
                    FutureRecord::<(), _>::to("events").partition(partition).payload(&line);
                waiting.push(producer.send_result(record).map_err(|(error, _)| error).unwrap());
                if waiting.len() == 100 {
                    for one in waiting.drain(..) {
                        one.await.unwrap().unwrap();
                    }
                    // So that it lasts over what is killed meanwhile.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            for one in waiting {
                one.await.unwrap().unwrap();
            }
        })
    };
    (0..partitions).map(one).collect()
}
