//! How the brokers are reached, and what the library says of its connections to them: a broker that
//! is gone or refuses us is no error to it, it tries for ever.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use secrecy::ExposeSecret as _;

use super::KafkaConfig;

/// Between two tries of librdkafka to reach a broker.
const FIRST_RECONNECT_MS: &str = "20";
const LONGEST_RECONNECT_MS: &str = "1000";

/// Of what it says at the end of a session, and how long it may be quiet meanwhile.
const MOST_SAID: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(20);

pub(super) type Consumer = StreamConsumer<Connections>;

/// Remembers the last thing that was wrong with a connection.
#[derive(Default)]
pub(super) struct Connections(Mutex<Option<String>>);

impl Connections {
    pub(super) fn heard(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

impl ClientContext for Connections {
    fn log(&self, _: RDKafkaLogLevel, topic: &str, message: &str) {
        // What matters of it comes as an error too.
        tracing::debug!(topic, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        // That nobody answers says less than why.
        let general = [RDKafkaErrorCode::PartitionEOF, RDKafkaErrorCode::AllBrokersDown];
        if error.rdkafka_error_code().is_some_and(|code| general.contains(&code)) {
            return;
        }
        // How long it took differs each time, and is no other reason.
        let reason = reason.split_once(" (after ").map_or(reason, |(reason, _)| reason);
        *self.0.lock() = Some(reason.to_owned());
    }
}

impl ConsumerContext for Connections {}

/// What every client of the brokers begins with.
pub(super) fn client(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    for (key, value) in &config.settings {
        client.set(key, value.expose_secret());
    }
    client
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "spreadly")
        .set("reconnect.backoff.ms", FIRST_RECONNECT_MS)
        .set("reconnect.backoff.max.ms", LONGEST_RECONNECT_MS);
    client
}

/// Reaches for the brokers; that they answer is seen by the first question.
pub(super) fn connect(config: &KafkaConfig) -> Result<Consumer, KafkaError> {
    let mut client = client(config);
    client
        // librdkafka wants one; nothing is ever committed under it and nobody joins it.
        .set("group.id", "spreadly")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        // Where to go on is ours to decide.
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false");
    client.create_with_context(Connections::default())
}

/// Lets the library say what it has to say: it does while it is asked for records. What it may give
/// by the way is lost, so only at the end.
pub(super) async fn listen(consumer: &Consumer) {
    for _ in 0..MOST_SAID {
        if tokio::time::timeout(PAUSE, consumer.recv()).await.is_err() {
            return;
        }
    }
}

/// Which topics are compacted, as far as the brokers say: a client that may read a topic is not
/// always allowed to ask.
pub(super) async fn compacted(config: &KafkaConfig) -> HashMap<String, bool> {
    let asked = async {
        let admin: AdminClient<Connections> =
            client(config).create_with_context(Connections::default())?;
        let topics: Vec<_> =
            config.topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(config.deadline));
        admin.describe_configs(&topics, &options).await
    };
    let answers = asked.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "whether topics are compacted is not known");
        Vec::new()
    });
    let policy = |(topic, answer): (&String, _)| {
        let answer: ConfigResource = Result::ok(answer)?;
        let policy = answer.get("cleanup.policy")?.value.as_ref()?;
        Some((topic.clone(), policy.contains("compact")))
    };
    // One for each, in their order.
    config.topics.iter().zip(answers).filter_map(policy).collect()
}
