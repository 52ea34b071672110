//! What a configuration may say, and which faults the rest is.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::*;

const DEFAULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/spreadly.toml");

fn read(
    toml: &str,
    env: &[(&str, &str)],
    flags: Overrides,
) -> Result<(Config, Vec<Row>), Vec<String>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    super::load(Some(file.path()), env, flags).map_err(|faults| {
        let path = file.path().display().to_string();
        faults.iter().map(|fault| fault.to_string().replace(&path, "FILE")).collect()
    })
}

fn load(toml: &str, env: &[(&str, &str)], flags: Overrides) -> Result<Config, Vec<String>> {
    read(toml, env, flags).map(|(config, _)| config)
}

fn defaults() -> Config {
    load("", &[], Overrides::default()).unwrap()
}

/// All texts in which a configuration appears.
fn shown(toml: &str) -> [String; 2] {
    let (config, rows) = read(toml, &[], Overrides::default()).unwrap();
    [reference::effective(&rows), format!("{config:?}")]
}

fn faults(toml: &str, env: &[(&str, &str)]) -> Vec<String> {
    load(toml, env, Overrides::default()).unwrap_err()
}

#[test]
fn the_documented_file_is_the_default() {
    let text = std::fs::read_to_string(DEFAULTS).unwrap();
    assert_eq!(text, documented_file(), "make reference writes it");
    let (config, rows) = read(&text, &[], Overrides::default()).unwrap();
    assert_eq!((config, rows), (defaults(), default_rows()));
}

#[test]
fn each_row_says_what_an_operator_asks() {
    for row in default_rows() {
        let Row { name, range, does, notes, reason, unit, .. } = &row;
        assert!(!range.is_empty(), "{name}");
        assert!(does.ends_with('.') && (notes.is_empty() || notes.ends_with('.')), "{name}");
        assert!(reason.is_empty() || reason.ends_with('.'), "{name}");
        let is_number = matches!(row.default, value::Value::Whole(_));
        assert_eq!(is_number, !unit.is_empty(), "{name}: {unit}");
    }
}

/// Every key at a value that is not its default.
const CHANGED: &str = r#"
server.listen = "[::]:80"
server.origins = ["https://app.example"]
server.trusted_proxies = ["10.0.0.0/8"]
server.address_header = "forwarded"
server.proxy_protocol = true
server.shards = 3
server.ping_interval_ms = 1001
server.drain_delay_ms = 5
server.drain_ms = 1
server.send_buffer_bytes = 8192
server.header_timeout_ms = 1002
server.idle_timeout_ms = 76000
server.header_bytes = 8193
server.body_timeout_ms = 1003
server.http_status = "draft"
admin.listen = "127.0.0.1:81"
store.url = "postgres://hub@one:1,two:2/exchange?target_session_attrs=read-write"
store.replica = "elsewhere.db"
store.connections = 5
store.connection_wait_ms = 106
store.host = "here"
store.synchronous = "full"
cache.url = "redis-cluster://one:1?node=two:2"
cache.deadline_ms = 101
cache.interval_ms = 102
limits.message_bytes = 20_001
limits.message_bytes_before_ack = 20_000
limits.operations_per_socket = 9
limits.pending_operations_per_socket = 8
limits.subscribe_rate = 7
limits.subscribe_burst = 11
limits.sockets_per_address = 6
limits.connections_per_address = 9
limits.streams_per_socket = 10
limits.streams_per_address = 12
limits.log_readers_per_address = 3
limits.reply_bytes_per_address = 70000
limits.reply_bytes = 70001
limits.cost_rate = 13
limits.cost_burst = 14
limits.stream_cost_rate = 16
limits.reserved_descriptors = 15
limits.cost_measured = false
limits.exempt_loopback = false
identity.development_account = "9g"
limits.init_timeout_ms = 101
limits.query_depth = 5
limits.query_complexity = 4
limits.query_aliases = 3
limits.query_tokens = 20
limits.query_list_fields = 1_000
limits.markets_per_subscription = 2
limits.book_depth = 10
limits.writer_stall_ms = 102
limits.ring_bytes_per_stream = 70_000
limits.stream_linger_ms = 103
limits.streams = 10
limits.memory_bytes = 104
limits.journal_touches_per_market = 16
log.format = "json"
log.filter = "warn"
[feeds.files]
path = "inbox"
mode = "poll"
poll_interval_ms = 11
stale_after_ms = 5000
required = false
[feeds.postgres]
required = false
url = "postgres://hub@one:1,two:2/exchange?target_session_attrs=read-write"
poll_interval_ms = 12
doorbell = "off"
schema = "hub"
deadline_ms = 104
[feeds.kafka]
required = false
brokers = "one:9092,two:9092"
topics = ["events"]
own_topics = ["news", "*"]
own_markets = ["ERG-USD"]
produce_to = "events"
deadline_ms = 105
settings = ["security.protocol=ssl"]
"#;

#[test]
fn settings_of_kafka_are_passed_on_but_for_ours_and_none_that_may_be_secret_is_shown() {
    let written = r#"feeds.kafka.brokers = "b:1"
feeds.kafka.topics = ["one", "two", "one"]
feeds.kafka.settings = ["sasl.mechanism=PLAIN", "sasl.password=hunter2"]"#;
    let config = load(written, &[], Overrides::default()).unwrap();
    let kafka = config.feeds.kafka.as_ref().unwrap();
    assert_eq!(kafka.topics, ["one", "two"]);
    let KafkaSetting { name, value } = &kafka.settings[1];
    assert_eq!((&**name, value.expose_secret()), ("sasl.password", "hunter2"));
    for shown in shown(written) {
        assert!(shown.contains("sasl.mechanism") && !shown.contains("hunter2"), "{shown}");
    }
    for ours in ["group.id=x", "enable.auto.commit=true", "no setting"] {
        let found = faults(&format!("feeds.kafka.settings = [\"a=hunter2\", {ours:?}]"), &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(!found[0].contains("hunter2"), "{found:?}");
    }
    let variable = ("SPREADLY__FEEDS__KAFKA__SETTINGS", "sasl.password=hunter2:x, group.id=y");
    let fault = faults("", &[variable]);
    assert!(fault.len() == 1 && !fault[0].contains("hunter2"), "{fault:?}");
    assert_eq!(
        faults("feeds.kafka.brokers = \"b:1\"", &[]),
        ["default: feeds.kafka.topics: it names none, but feeds.kafka.brokers is set: say what \
          to read"]
    );
}

#[test]
fn what_kafka_owns_is_written_to_a_topic_that_is_read() {
    let read = "feeds.kafka.brokers = \"b:1\"\nfeeds.kafka.topics = [\"one\", \"two\"]\n";
    let both = "feeds.kafka.own_topics = [\"a b\"]\nfeeds.kafka.own_markets = [\"*\"]\n";
    let fine = format!("{read}{both}feeds.kafka.produce_to = \"two\"");
    let owned = load(&fine, &[], Overrides::default()).unwrap().feeds.kafka.unwrap().owned;
    let expected = KafkaOwnedConfig {
        topics: vec!["a b".to_owned()],
        markets: vec!["*".to_owned()],
        produce_to: "two".to_owned(),
    };
    assert_eq!(owned, Some(expected));
    let found = [
        (
            format!("{read}{both}feeds.kafka.produce_to = \"three\""),
            "FILE:5: feeds.kafka.produce_to: given \"three\", but it must be one of \
             feeds.kafka.topics, as the hub reads back what it writes",
        ),
        (
            format!("{read}{both}"),
            "FILE:3: feeds.kafka.own_topics: feeds.kafka.produce_to is not set: say which topic of \
             Kafka mutations write it to",
        ),
        (
            format!("{read}feeds.kafka.produce_to = \"one\""),
            "FILE:3: feeds.kafka.produce_to: given \"one\", but neither feeds.kafka.own_topics nor \
             feeds.kafka.own_markets names what is written there",
        ),
        (
            "feeds.kafka.own_markets = [\"A-B\"]\nfeeds.kafka.produce_to = \"one\"".to_owned(),
            "FILE:1: feeds.kafka.own_markets: feeds.kafka.brokers is not set: say where Kafka is",
        ),
        (
            format!("{fine}\nfeeds.kafka.own_markets = [\"A/B\"]").replacen(both, "", 1),
            "FILE:4: feeds.kafka.own_markets: given [\"A/B\"], but \"A/B\" must be 1 to 64 of A-Z \
             a-z 0-9 . _ - and begin with a letter or digit, or be \"*\" for all",
        ),
    ];
    for (written, fault) in found {
        assert_eq!(faults(&written, &[])[0], fault);
    }
}

#[test]
fn a_password_of_the_database_is_shown_nowhere() {
    let secret = "postgres://hub:hunter2@db/exchange";
    let written = format!("feeds.postgres.url = {secret:?}");
    let config = load(&written, &[], Overrides::default()).unwrap();
    let url = config.feeds.postgres.unwrap().url;
    assert_eq!(url.secret().expose_secret(), secret);
    for shown in shown(&written) {
        assert!(shown.contains("postgres://hub@db/exchange"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let faulty = [
        "mysql://u:hunter2@h/d",
        "postgres://u:hunter2@h:port/d",
        "postgres://u:hunter2@h/d?sslmode=require",
    ];
    for url in faulty {
        let found = faults(&format!("feeds.postgres.url = {url:?}"), &[]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("feeds.postgres.url") && !found[0].contains("hunter2"),
            "{found:?}"
        );
    }
}

#[test]
fn a_password_of_the_cache_is_shown_nowhere() {
    let secret = "redis-sentinel://hub:hunter2@one:1/3?sentinelServiceName=main&node=two:2\
                  &sentinelUsername=spy&sentinelPassword=hunter3";
    let shown =
        "redis-sentinel://hub@one:1/3?sentinelServiceName=main&node=two:2&sentinelUsername=spy";
    let written = format!("cache.url = {secret:?}");
    let config = load(&written, &[], Overrides::default()).unwrap();
    assert_eq!(config.cache.unwrap().url.secret().expose_secret(), secret);
    for text in super::tests::shown(&written) {
        assert!(text.contains(shown) && !text.contains("hunter"), "{text}");
    }
    let faulty = [
        "http://u:hunter2@h",
        "rediss://u:hunter2@h:1",
        "redis://u:hunter2@h:port",
        "redis-cluster://u:hunter2@h:1?node=two",
        "redis-sentinel://u:hunter2@h:1",
    ];
    for url in faulty {
        let found = faults(&format!("cache.url = {url:?}"), &[]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("cache.url") && !found[0].contains("hunter2"), "{found:?}");
    }
}

#[test]
fn every_key_changes_its_own_setting_and_is_printed_back() {
    let (config, rows) = read(CHANGED, &[], Overrides::default()).unwrap();
    let default = default_rows();
    for (default, changed) in default.iter().zip(&rows) {
        assert_eq!(default.name, changed.name);
        assert_ne!(default.value, changed.value, "{}", default.name);
    }
    let printed = reference::effective(&rows);
    assert_eq!(read(&printed, &[], Overrides::default()), Ok((config, rows)));
    let printed = reference::effective(&default);
    assert_eq!(read(&printed, &[], Overrides::default()), Ok((defaults(), default)));
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let toml = "server.shards = 1\nserver.drain_ms = 1\nserver.listen = \"127.0.0.1:1\"";
    let env = [
        ("SPREADLY__SERVER__SHARDS", "2"),
        ("SPREADLY__SERVER__LISTEN", "127.0.0.1:2"),
        ("SPREADLY_TEST_POSTGRES_URL", "not ours"),
    ];
    let flags = Overrides {
        listen: Some("127.0.0.1:3".to_owned()),
        set: vec![("server.listen".to_owned(), "127.0.0.1:4".to_owned())],
        ..Overrides::default()
    };
    let config = load(toml, &env, flags).unwrap();
    assert_eq!(config.server.drain, Duration::from_millis(1));
    assert_eq!(config.server.shards, 2);
    assert_eq!(config.server.listen.port(), 3);
}

#[test]
fn a_variable_holds_a_list_with_commas_or_as_the_file_writes_it() {
    let config = |text| {
        let env = [("SPREADLY__SERVER__TRUSTED_PROXIES", text)];
        load("", &env, Overrides::default()).unwrap().server.trusted_proxies
    };
    let both: Vec<Network> = ["10.0.0.0/8", "::1"].map(|one| one.parse().unwrap()).to_vec();
    assert_eq!(config("10.0.0.0/8, ::1"), both);
    assert_eq!(config(r#"["10.0.0.0/8", "::1"]"#), both);
    assert_eq!(config(""), []);
}

#[test]
fn all_faults_are_reported_at_once_with_their_lines() {
    let toml = r#"
[server]
listen = "localhost"
shards = -1
origins = ["app.example"]
[limits]
mesage_bytes = 5
query_depth = "deep"
exempt_loopback = 1
[sever]
listen = 1
"#;
    let env = [("SPREADLY__LOG__FORMAT", "xml"), ("SPREADLY__FEEDS__FILES__MODES", "poll")];
    assert_eq!(
        faults(toml, &env),
        [
            "FILE:7: limits.mesage_bytes: is not a known key; the nearest is limits.message_bytes",
            "FILE:10: sever: is not a known section; the nearest is server",
            "environment variable SPREADLY__FEEDS__FILES__MODES: feeds.files.modes: is not a \
             known key; the nearest is feeds.files.mode",
            "FILE:3: server.listen: given \"localhost\", but it must be an address and a port, \
             such as \"127.0.0.1:4000\" or \"[::]:4000\"",
            "FILE:5: server.origins: given [\"app.example\"], but \"app.example\" must begin \
             with http:// or https://, or be \"*\"",
            "FILE:4: server.shards: given -1, but it must be a whole number from 0 to 1024",
            "FILE:9: limits.exempt_loopback: given 1, but it must be true or false",
            "FILE:8: limits.query_depth: given \"deep\", but it must be a whole number from 2 to \
             1000",
            "environment variable SPREADLY__LOG__FORMAT: log.format: given \"xml\", but it must \
             be one of \"text\", \"json\"",
        ]
    );
}

#[test]
fn a_right_name_in_the_wrong_section_is_led_to_its_own() {
    assert_eq!(
        faults("server.message_bytes = 1", &[]),
        ["FILE:1: server.message_bytes: is not a known key; the nearest is limits.message_bytes"]
    );
}

#[test]
fn a_misspelt_section_is_led_to_its_own_wherever_it_is_written() {
    for (toml, expected) in [
        ("[limts]", "FILE:1: limts: is not a known section; the nearest is limits"),
        ("[limts]\na = 1\nb = 2", "FILE:1: limts: is not a known section; the nearest is limits"),
        (
            "[feeds.kafak]\nx = 1",
            "FILE:1: feeds.kafak: is not a known section; the nearest is feeds.kafka",
        ),
        ("limts = 1", "FILE:1: limts: is not a known key; the nearest section is limits"),
        ("limts.book_depth = 1", "FILE:1: limts: is not a known section; the nearest is limits"),
        (
            "[other]\nbook_depth = 1",
            "FILE:2: other.book_depth: is not a known key; the nearest is limits.book_depth",
        ),
    ] {
        assert_eq!(faults(toml, &[]), [expected], "{toml}");
    }
    let env = [("SPREADLY__LIMTS__BOOK_DEPTH", "1")];
    let fault = faults("", &env).pop().unwrap();
    assert!(fault.ends_with("is not a known key; the nearest is limits.book_depth"), "{fault}");
}

#[test]
fn a_faulty_value_is_reported_although_a_stronger_one_hides_it() {
    let env = [("SPREADLY__SERVER__SHARDS", "2")];
    assert_eq!(
        faults("server.shards = 5000", &env),
        ["FILE:1: server.shards: given 5000, but it must be a whole number from 0 to 1024"]
    );
}

#[test]
fn keys_of_later_versions_are_refused_and_not_ignored() {
    assert_eq!(
        faults("archive.url = \"x\"", &[]),
        ["FILE:1: archive.url: is not supported yet by this version: leave it out"]
    );
    assert_eq!(
        faults("", &[("SPREADLY__IDENTITY__TOKEN_KEY", "x")]),
        ["environment variable SPREADLY__IDENTITY__TOKEN_KEY: identity.token_key: is not \
             supported yet by this version: leave it out"]
    );
}

#[test]
fn a_shared_log_is_read_by_the_feed_of_its_database_and_by_no_other() {
    let log = "store.url = \"postgres://user:hunter2@db/spreadly\"";
    let config = load(log, &[], Overrides::default()).unwrap();
    assert_eq!(config.store.path, PathBuf::from("data/replica.db"));
    let connection_wait = Duration::from_millis(250);
    let shared = SharedLogConfig { connections: 8, connection_wait, host: String::new() };
    assert_eq!(config.store.shared, Some(shared));
    let url = "postgres://user:hunter2@db/spreadly";
    assert_eq!(config.feeds.postgres.as_ref().unwrap().url, SecretUrl::new(url));
    assert!(!shown(log).concat().contains("hunter2"));
    let same = format!("{log}\nfeeds.postgres.url = {url:?}");
    assert_eq!(load(&same, &[], Overrides::default()).unwrap(), config);
    let other = format!("{log}\nfeeds.postgres.url = \"postgres://u:hunter2@other/spreadly\"");
    assert_eq!(
        faults(&other, &[]),
        [
            "FILE:2: feeds.postgres.url: store.url is another database, whose table `events` is read \
          already: leave this one out"
        ]
    );
}

#[test]
fn a_secret_is_never_repeated() {
    let found = faults("store.url = \"postgres://user:hunter2@db:port/spreadly\"", &[]);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("FILE:1: store.url: ") && !found[0].contains("hunter2"),
        "{found:?}"
    );
}

#[test]
fn a_secret_comes_from_a_file_that_a_variable_names() {
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(b"sqlite:///var/lib/spreadly.db\n").unwrap();
    let path = secret.path().to_str().unwrap();
    let config = load("", &[("SPREADLY__STORE__URL_FILE", path)], Overrides::default()).unwrap();
    assert_eq!(config.store.path, PathBuf::from("/var/lib/spreadly.db"));

    let both = [("SPREADLY__STORE__URL_FILE", path), ("SPREADLY__STORE__URL", "sqlite:x.db")];
    assert_eq!(
        faults("", &both),
        ["environment variable SPREADLY__STORE__URL_FILE: store.url: is also given by \
             SPREADLY__STORE__URL: keep one of the two"]
    );
    assert_eq!(
        faults("", &[("SPREADLY__SERVER__SHARDS_FILE", path)]),
        ["environment variable SPREADLY__SERVER__SHARDS_FILE: server.shards: is no secret: \
             set it directly, without _FILE"]
    );
}

#[test]
fn values_that_do_not_go_together_are_faults() {
    let toml = "limits.message_bytes = 2000\nlimits.subscribe_rate = 400\n\
                admin.listen = \"127.0.0.1:4000\"\nlimits.operations_per_socket = 5";
    assert_eq!(
        faults(toml, &[]),
        [
            "default: limits.subscribe_burst: given 300, but it may not be below \
             limits.subscribe_rate, which is 400",
            "FILE:1: limits.message_bytes: given 2000, but it may not be below 10000: 100 for each \
             of limits.markets_per_subscription, which is 100",
            "default: limits.message_bytes_before_ack: given 16384, but it may not exceed \
             limits.message_bytes, which is 2000",
            "default: limits.pending_operations_per_socket: given 32, but it may not exceed \
             limits.operations_per_socket, which is 5",
            "FILE:3: admin.listen: given \"127.0.0.1:4000\", but it must differ from \
             server.listen",
        ]
    );
    // What may be open at once may be opened again at once, and fit into the hub.
    assert_eq!(
        faults("limits.operations_per_socket = 301\nlimits.streams = 300", &[]),
        [
            "default: limits.subscribe_burst: given 300, but it may not be below \
             limits.operations_per_socket, which is 301",
            "FILE:2: limits.streams: given 300, but it may not be below \
             limits.operations_per_socket, which is 301",
        ]
    );
    // The deepest book may be asked for with all of its fields.
    assert_eq!(
        faults("limits.book_depth = 8334", &[]),
        ["default: limits.query_list_fields: given 100000, but it may not be below 100008: 12 \
             for each of limits.book_depth, which is 8334"]
    );
    assert!(load("limits.book_depth = 8333", &[], Overrides::default()).is_ok());
    assert_eq!(
        faults("server.header_timeout_ms = 76000\nserver.proxy_protocol = true", &[]),
        [
            "FILE:2: server.proxy_protocol: given true, but server.trusted_proxies is empty: say \
             which proxies send the header",
            "default: server.idle_timeout_ms: given 75000, but it may not be below \
             server.header_timeout_ms, which is 76000",
        ]
    );
    let free = "server.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"";
    assert!(load(free, &[], Overrides::default()).is_ok());
}

#[test]
fn a_file_that_is_no_toml_is_reported_with_its_line() {
    let found = faults("server.shards = 1\nserver.shards = 2\n[limits\n", &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("FILE:3: unclosed table"), "{found:#?}");
    assert_eq!(found[1], "FILE:2: duplicate key");
}

#[test]
fn a_file_of_more_than_a_mib_is_a_fault_also_one_that_has_a_secret() {
    let comment = |bytes: usize| format!("#{}", "x".repeat(bytes - 1));
    assert!(load(&comment(1 << 20), &[], Overrides::default()).is_ok());
    let too_long = faults(&comment((1 << 20) + 1), &[]);
    assert_eq!(too_long, ["FILE: is larger than 1048576 bytes"]);
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(&vec![b'x'; (1 << 20) + 1]).unwrap();
    let path = secret.path().to_str().unwrap();
    let faults = faults("", &[("SPREADLY__STORE__URL_FILE", path)]);
    assert!(faults[0].ends_with("is larger than 1048576 bytes"), "{faults:?}");
}

#[test]
fn a_file_that_can_not_be_read_is_a_fault() {
    let missing = Path::new("no/such/file.toml");
    let found = Config::load(Some(missing), std::iter::empty(), Overrides::default()).unwrap_err();
    assert_eq!(found.len(), 1);
    assert!(found[0].to_string().starts_with("no/such/file.toml: can't be read: "), "{found:?}");
}

#[test]
fn a_store_in_memory_is_refused() {
    for url in ["sqlite:", "sqlite::memory:", "sqlite:folder/", "data.db", "mysql://x"] {
        assert_eq!(faults(&format!("store.url = {url:?}"), &[]).len(), 1, "{url}");
    }
}
