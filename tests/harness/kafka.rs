//! A real Apache Kafka (KRaft, one node) in a folder of its own, on ports the kernel chose; it ends
//! with the test. Its jars lie in the cache, where `make setup` puts them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, Producer as _};
use tempfile::TempDir;

use super::ReservedPort;

/// A JVM on a loaded machine.
const START_PATIENCE: Duration = Duration::from_secs(90);
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Who may use a broker's [`Kafka::secured`] address.
pub const USER: &str = "hub";
pub const PASSWORD: &str = "a secret of the test";

pub struct Kafka {
    folder: TempDir,
    port: ReservedPort,
    /// Of the address with TLS and SASL.
    secured: ReservedPort,
    /// Of the broker's own controller.
    controller: ReservedPort,
    broker: Option<Child>,
}

/// All jars, as `java -cp` takes them.
fn jars() -> String {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let jars = cache.join("spreadly/kafka/libs");
    assert!(jars.exists(), "{} is missing: run `make setup`", jars.display());
    format!("{}/*", jars.display())
}

fn java(class: &str) -> Command {
    let mut command = Command::new("java");
    command.args(["-cp", &jars(), class]);
    command
}

impl Kafka {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [port, secured, controller] = std::array::from_fn(|_| ReservedPort::new());
        make_certificate(folder.path());
        let settings = format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
                 SASL_SSL://127.0.0.1:{secured}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secured}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,\
                 SASL_SSL:SASL_SSL\n\
             ssl.keystore.type=PKCS12\nssl.keystore.location={0}/keys\n\
             ssl.keystore.password={PASSWORD}\nsasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             controller.listener.names=CONTROLLER\nlog.dirs={0}/data\n\
             offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n\
             message.max.bytes=4000000\nauto.create.topics.enable=false\n\
             log.retention.check.interval.ms=500\nlog.segment.delete.delay.ms=0\n\
             log.initial.task.delay.ms=500\nlog.cleaner.backoff.ms=200\n",
            folder.path().display()
        );
        let file = folder.path().join("server.properties");
        std::fs::write(&file, settings).unwrap();
        let mut format = java("kafka.tools.StorageTool");
        let user = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
        format.args(["format", "-t", &cluster_id(folder.path()), "--add-scram", &user, "-c"]);
        format.arg(&file);
        let formatted = format.output().expect("java runs");
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
        let mut own = Self { folder, port, secured, controller, broker: None };
        own.launch();
        own
    }

    fn spawn(&self, settings: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"));
        let log = log.unwrap();
        let mut broker = Command::new("java");
        broker
            .args([
                "-Xmx512m",
                "-Xms256m",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                &jars(),
                "kafka.Kafka",
            ])
            .arg(self.folder.path().join(settings))
            .current_dir(self.folder.path())
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log));
        broker.spawn().unwrap()
    }

    fn launch(&mut self) {
        self.broker = Some(self.spawn("server.properties"));
        let began = Instant::now();
        let asking: BaseProducer = self.client().create().unwrap();
        while asking.client().fetch_metadata(None, Duration::from_secs(1)).is_err() {
            assert!(began.elapsed() < START_PATIENCE, "Kafka does not start:\n{}", self.log());
            std::thread::sleep(BETWEEN_TRIES);
        }
    }

    /// A second broker of the cluster, without a controller. Back once it takes part.
    pub fn start_second(&self) -> SecondBroker {
        let (port, controller, folder) = (ReservedPort::new(), &self.controller, &self.folder);
        let settings = format!(
            "process.roles=broker\nnode.id=2\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={}/second\n",
            folder.path().display()
        );
        let file = folder.path().join(SecondBroker::SETTINGS);
        std::fs::write(&file, settings).unwrap();
        let mut format = java("kafka.tools.StorageTool");
        format.args(["format", "-t", &cluster_id(folder.path()), "-c"]).arg(&file);
        let formatted = format.output().expect("java runs");
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
        let process = self.spawn(SecondBroker::SETTINGS);
        let own = SecondBroker { process, _port: port };
        self.until_brokers(2);
        own
    }

    fn until_brokers(&self, count: usize) {
        let began = Instant::now();
        let asking: BaseProducer = self.client().create().unwrap();
        let there = || {
            let metadata = asking.client().fetch_metadata(None, Duration::from_secs(1));
            metadata.is_ok_and(|metadata| metadata.brokers().len() == count)
        };
        while !there() {
            assert!(began.elapsed() < START_PATIENCE, "no {count} brokers:\n{}", self.log());
            std::thread::sleep(BETWEEN_TRIES);
        }
    }

    /// A topic whose partition 0 is at the first broker alone, and 1 at the second one.
    pub async fn make_spread_topic(&self, name: &str) {
        let topic = NewTopic::new(name, 2, TopicReplication::Variable(&[&[1], &[2]]));
        let made = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made[0].is_ok(), "{made:?}");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The same broker for clients with TLS who say who they are by SCRAM-SHA-512.
    pub fn secured(&self) -> String {
        format!("127.0.0.1:{}", self.secured)
    }

    /// The certificate that the broker is known by.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// What every client of a test begins with.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers());
        client.set("reconnect.backoff.max.ms", "200");
        client
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    pub async fn make_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let began = Instant::now();
        loop {
            let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
            for (key, value) in settings {
                topic = topic.set(key, value);
            }
            let made = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
            match &made[0] {
                Ok(_) => break,
                // One that was just removed may still be there for a moment.
                Err(error) => assert!(began.elapsed() < START_PATIENCE, "{error:?}"),
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        let (consumer, name): (BaseConsumer, _) =
            (self.client().create().unwrap(), name.to_owned());
        // Until then the broker may still take records for the topic of this name that was removed.
        let is_new = move || {
            for partition in 0..partitions {
                while consumer.fetch_watermarks(&name, partition, START_PATIENCE) != Ok((0, 0)) {
                    assert!(began.elapsed() < START_PATIENCE, "{name}/{partition} is not empty");
                    std::thread::sleep(BETWEEN_TRIES);
                }
            }
        };
        tokio::task::spawn_blocking(is_new).await.unwrap();
    }

    pub async fn remove_topic(&self, name: &str) {
        let removed = self.admin().delete_topics(&[name], &AdminOptions::new()).await.unwrap();
        removed.into_iter().for_each(|one| drop(one.unwrap()));
    }

    pub fn kill9(&mut self) {
        let mut broker = self.broker.take().expect("it runs");
        broker.kill().unwrap();
        broker.wait().unwrap();
    }

    /// Started again once it was killed, while others go on.
    pub async fn restarted(mut self) -> Self {
        let again = move || {
            self.launch();
            self
        };
        tokio::task::spawn_blocking(again).await.unwrap()
    }

    /// Stops the process, or lets it go on.
    pub fn signal(&self, signal: &str) {
        let id = self.broker.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

/// See [`Kafka::start_second`].
pub struct SecondBroker {
    process: Child,
    _port: ReservedPort,
}

impl SecondBroker {
    const SETTINGS: &str = "second.properties";

    pub fn kill9(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn restart(&mut self, kafka: &Kafka) {
        self.process = kafka.spawn(Self::SETTINGS);
    }
}

impl Drop for SecondBroker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Of the broker, and signed by itself.
fn make_certificate(folder: &Path) {
    let keytool = |words: &[&str]| {
        let mut command = Command::new("keytool");
        command.args(words).args(["-alias", "broker", "-storetype", "PKCS12"]);
        command.args(["-storepass", PASSWORD, "-keystore"]).arg(folder.join("keys"));
        let done = command.output().expect("keytool is a part of Java");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        done.stdout
    };
    keytool(&["-genkeypair", "-keyalg", "EC", "-dname", "CN=broker", "-ext", "san=ip:127.0.0.1"]);
    std::fs::write(folder.join("certificate.pem"), keytool(&["-exportcert", "-rfc"])).unwrap();
}

/// 16 bytes as Kafka writes them; of the folder's name, which is random.
fn cluster_id(folder: &Path) -> String {
    let name: String = folder.to_string_lossy().chars().rev().take(6).collect();
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name}");
    format!("Spreadly{name}AAAAAAAA")
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            let _ = broker.kill();
            let _ = broker.wait();
        }
    }
}
