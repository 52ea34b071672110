//! Candles and tickers: a venue's recorded trades against its own candles, and clients that follow
//! over kills and sleep.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::harness::client::PATIENCE;
use crate::harness::{Client, Hub, loud, market};

const MARKET: &str = "XBT-USD";
const CANDLE: &str = "start end open high low close volume quoteVolume vwap count closed";
/// A moment long ago, so that every bucket is closed: 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600;
const MINUTE: i64 = 60;
/// Minutes of the recording that lie wholly in it, as its README says.
const RECORDED_TRADED: usize = 272;
const RECORDED_EMPTY: usize = 137;

fn time(micros: i64) -> String {
    let time = jiff::Timestamp::from_microsecond(micros).unwrap();
    format!("{time:.6}")
}

fn trade(id: &str, price: &str, size: &str, side: &str, micros: i64) -> String {
    json!({"kind": "trade", "market": MARKET, "id": id, "price": price, "size": size,
           "takerSide": side, "time": time(micros)})
    .to_string()
}

/// Trade `number` of a made-up sequence: some minutes empty, some trades late by minutes.
fn step(number: u64) -> String {
    let number = number as i64;
    let late = if number % 7 == 3 { 5 * MINUTE } else { 0 };
    let seconds = BEGIN + 3_600 + number * 13 + (number / 20) * 180 - late;
    let price = format!("{}.{}", 100 + number % 23, number % 10);
    let size = format!("0.{:08}", number * 7_919 % 99_999_999 + 1);
    let side = if number % 2 == 0 { "BUY" } else { "SELL" };
    trade(&format!("t{number}"), &price, &size, side, seconds * 1_000_000)
}

async fn knowing(settings: &[&str]) -> Hub {
    let hub = Hub::start_with(settings);
    hub.append_lines("market.ndjson", &market::beginning(MARKET));
    Client::knowing(hub.address(), MARKET).await;
    hub
}

fn asked(hub: &Hub, interval: &str, rest: &str) -> Vec<Value> {
    let query =
        format!(r#"{{ candles(market: "{MARKET}", interval: {interval}{rest}) {{ {CANDLE} }} }}"#);
    hub.query(&query)["candles"].as_array().unwrap().clone()
}

/// Waits until the hub has counted this many trades.
fn until_traded(hub: &Hub, trades: u64) {
    let began = std::time::Instant::now();
    let counted = || -> u64 {
        let days =
            asked(hub, "D1", &format!(r#", to: "{}""#, time((BEGIN + 86_400 * 30) * 1_000_000)));
        days.iter().map(|day| day["count"].as_str().unwrap().parse::<u64>().unwrap()).sum()
    };
    while counted() != trades {
        assert!(began.elapsed() < PATIENCE, "{} of {trades} trades were counted", counted());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// What one minute must be: `[open, high, low, close, volume, vwap]` as units of 10^-1 and 10^-8,
/// and the count.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    prices: [u128; 4],
    volume: u128,
    /// None where nothing traded.
    vwap: Option<u128>,
    count: u64,
}

fn units(text: &str, decimals: usize) -> u128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = format!("{fraction:0<decimals$}");
    let (kept, rest) = fraction.split_at(decimals);
    assert!(rest.bytes().all(|digit| digit == b'0'), "{text}");
    format!("{whole}{kept}").parse().unwrap()
}

impl Row {
    fn answered(candle: &Value) -> Self {
        let text = |field: &str| candle[field].as_str().unwrap();
        let price = |field| units(text(field), 1);
        Self {
            prices: [price("open"), price("high"), price("low"), price("close")],
            volume: units(text("volume"), 8),
            vwap: candle["vwap"].as_str().map(|vwap| units(vwap, 1)),
            count: text("count").parse().unwrap(),
        }
    }
}

/// Trades as lines, and every minute between the first and the last of them.
struct Recording {
    lines: Vec<String>,
    minutes: BTreeMap<i64, Row>,
}

/// The venue's, with its own candles; else generated trades and candles computed here in the
/// plainest way.
fn recording() -> Recording {
    let Some(folder) = recorded() else {
        loud::without_capture(
            "the recorded kraken-ohlc is absent: set SPREADLY_TEST_DATA to its folder. Running on \
             generated trades with candles computed by the test instead",
        );
        return generated(20_251_110);
    };
    let read = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        // Numbers stay the text they are.
        let value: BTreeMap<String, Box<serde_json::value::RawValue>> =
            serde_json::from_str(&text).unwrap();
        let result: BTreeMap<String, Box<serde_json::value::RawValue>> =
            serde_json::from_str(value["result"].get()).unwrap();
        let rows: Vec<Vec<Box<serde_json::value::RawValue>>> =
            serde_json::from_str(result["XBTUSDT"].get()).unwrap();
        let plain = |raw: &serde_json::value::RawValue| raw.get().trim_matches('"').to_owned();
        rows.iter().map(|row| row.iter().map(|raw| plain(raw)).collect()).collect::<Vec<Vec<_>>>()
    };
    let lines: Vec<_> = read("http_trades.json")
        .iter()
        .map(|row| {
            let (seconds, fraction) = row[2].split_once('.').unwrap();
            let micros = format!("{seconds}{:0<6.6}", fraction).parse().unwrap();
            let side = if row[3] == "b" { "BUY" } else { "SELL" };
            trade(&row[6], &row[0], &row[1], side, micros)
        })
        .collect();
    let at = |line: &String| -> i64 {
        let event: Value = serde_json::from_str(line).unwrap();
        let time: jiff::Timestamp = event["time"].as_str().unwrap().parse().unwrap();
        time.as_second() / MINUTE * MINUTE
    };
    // The recording begins and ends within a minute.
    let (first, last) = (at(&lines[0]), at(&lines[lines.len() - 1]));
    let minutes: BTreeMap<i64, Row> = read("http_ohlc.json")
        .iter()
        .map(|row| {
            let count = row[7].parse().unwrap();
            let minute = Row {
                prices: [1, 2, 3, 4].map(|place| units(&row[place], 1)),
                volume: units(&row[6], 8),
                vwap: (count > 0).then(|| units(&row[5], 1)),
                count,
            };
            (row[0].parse::<i64>().unwrap(), minute)
        })
        .filter(|(start, _)| (first + MINUTE..last).contains(start))
        .collect();
    let traded = minutes.values().filter(|minute| minute.count > 0).count();
    assert_eq!((traded, minutes.len() - traded), (RECORDED_TRADED, RECORDED_EMPTY));
    Recording { lines, minutes }
}

fn recorded() -> Option<PathBuf> {
    let root = match std::env::var_os("SPREADLY_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => {
            let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
            let beside = checkout.ancestors().skip(1).map(|above| above.join("shared/data"));
            beside.into_iter().find(|root| root.exists())?
        }
    };
    Some(root.join("kraken-ohlc")).filter(|folder| folder.exists())
}

fn generated(seed: u64) -> Recording {
    loud::say(&format!("seed {seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let mut trades = Vec::new();
    let mut now = BEGIN * 1_000_000;
    for _ in 0..1_000 {
        // Some pauses are longer than a minute.
        let pause = if random.random_bool(0.1) { 400_000_000 } else { 30_000_000 };
        now += random.random_range(1..pause);
        trades.push((
            now,
            random.random_range(900..1_100_u128),
            random.random_range(1..10_u128.pow(9)),
        ));
    }
    let lines = trades.iter().enumerate().map(|(number, (at, price, size))| {
        let price = format!("{}.{}", price / 10, price % 10);
        let size = format!("{}.{:08}", size / 100_000_000, size % 100_000_000);
        trade(&number.to_string(), &price, &size, "BUY", *at)
    });
    let bucket = |at: &i64| at / 1_000_000 / MINUTE * MINUTE;
    let (first, last) = (bucket(&trades[0].0), bucket(&now));
    let mut minutes = BTreeMap::new();
    let mut close = None;
    for start in (first..last).step_by(MINUTE as usize) {
        let own: Vec<_> = trades.iter().filter(|(at, ..)| bucket(at) == start).collect();
        let volume: u128 = own.iter().map(|(_, _, size)| size).sum();
        let paid: u128 = own.iter().map(|(_, price, size)| price * size).sum();
        let prices = match (own.first(), own.last()) {
            (Some(open), Some(last)) => {
                close = Some(last.1);
                let high = own.iter().map(|(_, price, _)| *price).max().unwrap();
                let low = own.iter().map(|(_, price, _)| *price).min().unwrap();
                [open.1, high, low, last.1]
            }
            _ => [close.unwrap(); 4],
        };
        let vwap = paid.checked_div(volume);
        minutes.insert(start, Row { prices, volume, vwap, count: own.len() as u64 });
    }
    Recording { lines: lines.collect(), minutes }
}

#[tokio::test]
async fn candles_of_the_venues_trades_are_the_venues_candles() {
    let recording = recording();
    let hub = knowing(&[]).await;
    hub.append_lines("trades.ndjson", &recording.lines);
    until_traded(&hub, recording.lines.len() as u64);
    let (first, last) = (recording.minutes.keys().next(), recording.minutes.keys().next_back());
    let (first, last) = (*first.unwrap(), *last.unwrap() + MINUTE);
    let span = |from: i64, to: i64| {
        format!(
            r#", from: "{}", to: "{}", last: 5000"#,
            time(from * 1_000_000),
            time(to * 1_000_000)
        )
    };
    let answered = asked(&hub, "M1", &span(first, last));
    assert_eq!(answered.len(), recording.minutes.len());
    let (mut traded, mut empty) = (0, 0);
    for (candle, (start, row)) in answered.iter().zip(&recording.minutes) {
        assert_eq!(candle["start"], time(start * 1_000_000));
        assert_eq!(Row::answered(candle), *row, "{candle}");
        *(if row.count > 0 { &mut traded } else { &mut empty }) += 1;
    }
    loud::say(&format!("{traded} minutes with trades and {empty} without are the venue's"));
    assert!(traded > 200 && empty > 50, "this has proven little");

    // The others are sums of the minutes, computed here from the hub's minutes.
    let all = asked(&hub, "M1", &span(first - 86_400, last + 86_400));
    for (interval, seconds) in
        [("M5", 300), ("M15", 900), ("M30", 1_800), ("H1", 3_600), ("H4", 14_400), ("D1", 86_400)]
    {
        let start_of = |candle: &Value| -> i64 {
            let time: jiff::Timestamp = candle["start"].as_str().unwrap().parse().unwrap();
            time.as_second()
        };
        let mut expected: BTreeMap<i64, (Vec<&Value>, u128, u128)> = BTreeMap::new();
        for minute in all.iter().filter(|minute| minute["count"] != "0") {
            let text = |field: &str| minute[field].as_str().unwrap();
            let own = expected.entry(start_of(minute) / seconds * seconds).or_default();
            own.0.push(minute);
            own.1 += units(text("volume"), 8);
            own.2 += units(text("quoteVolume"), 9);
        }
        let answered = asked(&hub, interval, &span(first - 2 * 86_400, last + 86_400));
        let answered: Vec<_> = answered.iter().filter(|candle| candle["count"] != "0").collect();
        assert_eq!(answered.len(), expected.len(), "{interval}");
        for (candle, (start, (minutes, volume, paid))) in answered.iter().zip(expected) {
            let row = Row::answered(candle);
            let minutes: Vec<_> = minutes.iter().map(|minute| Row::answered(minute)).collect();
            let summed = Row {
                prices: [
                    minutes[0].prices[0],
                    minutes.iter().map(|minute| minute.prices[1]).max().unwrap(),
                    minutes.iter().map(|minute| minute.prices[2]).min().unwrap(),
                    minutes[minutes.len() - 1].prices[3],
                ],
                volume,
                vwap: Some(paid / volume),
                count: minutes.iter().map(|minute| minute.count).sum(),
            };
            assert_eq!((start_of(candle), row), (start, summed), "{interval}");
        }
    }
}

/// A client's copy of one market's candles of an interval.
#[derive(Debug, Default)]
struct Copy {
    position: Option<(String, String)>,
    cursor: Option<String>,
    candles: BTreeMap<String, Value>,
    trades: u64,
    merged: u64,
    restated: Vec<String>,
}

impl Copy {
    fn subscription(&self, interval: &str) -> String {
        let after =
            self.cursor.as_ref().map_or(String::new(), |after| format!(r#", after: "{after}""#));
        format!(
            r#"subscription {{ candles(market: "{MARKET}", interval: {interval}{after}) {{
                market interval epoch sequence prevSequence cursor reason mergedEvents state
                lastEventAgeMs eventTime publishTime closed candles {{ {CANDLE} }} }} }}"#
        )
    }

    fn take(&mut self, message: &Value) {
        assert_eq!(message["type"], "next", "{message}");
        let frame = &message["payload"]["data"]["candles"];
        let text = |field: &str| frame[field].as_str().unwrap().to_owned();
        match (frame["prevSequence"].as_str(), &self.position) {
            (Some(previous), Some((epoch, seen))) => {
                assert_eq!((epoch.clone(), &**seen), (text("epoch"), previous), "{frame}");
                let merged = frame["mergedEvents"].as_u64().unwrap();
                assert_eq!(merged == 0, text("sequence") == previous, "{frame}");
                self.trades += merged;
                self.merged += u64::from(merged > 1);
            }
            (Some(_), None) => panic!("a chain that begins in the middle: {frame}"),
            (None, _) => self.restated.push(text("reason")),
        }
        self.position = Some((text("epoch"), text("sequence")));
        self.cursor = Some(text("cursor"));
        for candle in frame["candles"].as_array().unwrap() {
            self.candles.insert(candle["start"].as_str().unwrap().to_owned(), candle.clone());
        }
    }

    async fn follow(&mut self, client: &mut Client, trades: u64) {
        let following = async {
            while self.trades < trades {
                let message = client.message().await;
                self.take(&message);
            }
        };
        let done = tokio::time::timeout(PATIENCE, following).await;
        assert!(done.is_ok(), "{} of {trades} trades came", self.trades);
        assert_eq!(self.trades, trades);
    }

    /// Of the candles that traded long ago: what the query says of the same.
    fn equals_the_query(&self, hub: &Hub, interval: &str) {
        let rest = format!(r#", to: "{}", last: 5000"#, time((BEGIN + 86_400 * 3) * 1_000_000));
        let asked: BTreeMap<_, _> = asked(hub, interval, &rest)
            .into_iter()
            .filter(|candle| candle["count"] != "0")
            .map(|candle| (candle["start"].as_str().unwrap().to_owned(), candle))
            .collect();
        let held: BTreeMap<_, _> = self
            .candles
            .iter()
            .filter(|(_, candle)| candle["count"] != "0")
            .map(|(start, candle)| (start.clone(), candle.clone()))
            .collect();
        assert_eq!(held, asked);
    }
}

#[tokio::test]
async fn a_client_goes_on_after_its_cursor_over_kills_and_holds_what_the_query_says() {
    let mut hub = knowing(&[]).await;
    let (mut written, mut copies) = (0, [("M1", Copy::default()), ("H1", Copy::default())]);
    for round in 0..4 {
        let mut clients = Vec::new();
        for (interval, copy) in &mut copies {
            let mut client = Client::connected(hub.address()).await;
            client.subscribe("candles", &copy.subscription(interval)).await;
            if round == 0 {
                // Before the first trade: only the position.
                let first = client.message().await;
                assert_eq!(first["payload"]["data"]["candles"]["candles"], json!([]), "{first}");
                copy.take(&first);
            }
            clients.push(client);
        }
        let live: Vec<_> = (written..written + 60).map(step).collect();
        hub.append_lines("trades.ndjson", &live);
        written += 60;
        for ((_, copy), client) in copies.iter_mut().zip(&mut clients) {
            copy.follow(client, written).await;
        }
        hub.kill9();
        // While it is away, and before anyone is back.
        let missed: Vec<_> = (written..written + 25).map(step).collect();
        hub.append_lines("trades.ndjson", &missed);
        written += 25;
        hub.restart();
        until_traded(&hub, written);
    }
    for (interval, copy) in &mut copies {
        let mut client = Client::connected(hub.address()).await;
        client.subscribe("candles", &copy.subscription(interval)).await;
        copy.follow(&mut client, written).await;
        assert_eq!(copy.restated, ["INITIAL"]);
        copy.equals_the_query(&hub, interval);
        assert!(copy.merged > 0, "nobody resumed over several trades: this has proven nothing");
    }
}

#[tokio::test]
async fn a_reader_that_sleeps_receives_merged_candles_and_holds_what_the_query_says() {
    // Fewer than the hub remembers of a market, so that all of them can be merged.
    const TRADES: u64 = 4_000;
    let hub = knowing(&[
        "limits.ring_bytes_per_stream=65536",
        "server.send_buffer_bytes=65536",
        "limits.writer_stall_ms=60000",
    ])
    .await;
    let (mut late, mut awake) = (Copy::default(), Copy::default());
    let mut clients = Vec::new();
    for copy in [&mut late, &mut awake] {
        let mut client = Client::connected(hub.address()).await;
        client.subscribe("candles", &copy.subscription("H1")).await;
        copy.take(&client.message().await);
        clients.push(client);
    }
    for first in (0..TRADES).step_by(100) {
        hub.append_lines("trades.ndjson", &(first..first + 100).map(step).collect::<Vec<_>>());
        awake.follow(&mut clients[1], first + 100).await;
    }
    let reading = async {
        while late.position != awake.position {
            let message = clients[0].message().await;
            late.take(&message);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("it wakes up");
    loud::say(&format!("asleep for {TRADES} trades: {} merged frames", late.merged));
    assert!(late.merged > 0, "it never lagged: this has proven nothing");
    for copy in [&late, &awake] {
        assert_eq!((copy.trades, &*copy.restated), (TRADES, &["INITIAL".to_owned()][..]));
        copy.equals_the_query(&hub, "H1");
    }
}

const TICKER: &str = "market last lastSize lastTime lastSide open high low volume quoteVolume \
    change vwap count bid { price size } ask { price size }";

/// The next frame that has a ticker.
async fn ticker(client: &mut Client) -> Value {
    let next = async {
        loop {
            let message = client.message().await;
            assert_eq!(message["type"], "next", "{message}");
            let frame = message["payload"]["data"]["tickers"].clone();
            if !frame["ticker"].is_null() {
                break frame;
            }
            assert_eq!(frame["prevSequence"], frame["sequence"], "{frame}");
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("a ticker comes")
}

#[tokio::test]
async fn a_ticker_shows_trades_and_offers_and_goes_on_after_its_cursor_over_a_kill() {
    let mut hub = knowing(&[]).await;
    let subscription = format!(
        r#"subscription {{ tickers {{ market epoch sequence prevSequence cursor eventTime
            publishTime state lastEventAgeMs ticker {{ {TICKER} }} }} }}"#
    );
    let mut client = Client::connected(hub.address()).await;
    client.subscribe("tickers", &subscription).await;
    let first = ticker(&mut client).await;
    assert_eq!(first["prevSequence"], Value::Null);
    let bid = json!({"price": "100.0", "size": "1.00000000"});
    assert_eq!(first["ticker"]["bid"], bid);
    assert_eq!((&first["ticker"]["last"], &first["ticker"]["count"]), (&Value::Null, &json!("0")));

    // Within the last 24 hours by any clock that runs this.
    let now = jiff::Timestamp::now().as_microsecond();
    let lines = [
        trade("1", "100.5", "0.5", "BUY", now - 7_200_000_000),
        trade("2", "90.0", "1.5", "SELL", now - 3_600_000_000),
        trade("3", "500", "1", "BUY", now - 2 * 86_400_000_000),
    ];
    let mut seen = first["sequence"].clone();
    let mut last = Value::Null;
    for line in &lines {
        hub.append_lines("trades.ndjson", &[line]);
        last = ticker(&mut client).await;
        assert_eq!(last["prevSequence"], seen);
        seen = last["sequence"].clone();
    }
    let whole = json!({
        "market": MARKET, "last": "90.0", "lastSize": "1.50000000",
        "lastTime": time(now - 3_600_000_000), "lastSide": "SELL", "open": "100.5",
        "high": "100.5", "low": "90.0", "volume": "2.00000000", "quoteVolume": "185.250000000",
        "change": "-10.5", "vwap": "92.6", "count": "2", "bid": bid,
        "ask": {"price": "101.0", "size": "1.00000000"},
    });
    assert_eq!(last["ticker"], whole);
    let query = format!(r#"{{ ticker(market: "{MARKET}") {{ {TICKER} }} }}"#);
    assert_eq!(hub.query(&query)["ticker"], whole);

    hub.kill9();
    hub.restart();
    assert_eq!(hub.query(&query)["ticker"], whole, "the same after a restart");
    hub.append_lines("market.ndjson", &[market::delta(MARKET, &[("100.2", "7")], &[])]);
    let mut again = Client::connected(hub.address()).await;
    let cursor = last["cursor"].as_str().unwrap();
    let resumed = json!({"query": subscription, "extensions": {"after": cursor}});
    again.send(json!({"id": "tickers", "type": "subscribe", "payload": resumed})).await;
    let mut frame = ticker(&mut again).await;
    assert_eq!(frame["prevSequence"], seen, "the chain goes on over the kill");
    if frame["sequence"] == seen {
        frame = ticker(&mut again).await;
        assert_eq!(frame["prevSequence"], seen);
    }
    assert_eq!(frame["ticker"]["bid"], json!({"price": "100.2", "size": "7.00000000"}));
    assert_eq!(frame["ticker"]["last"], "90.0");
}

#[tokio::test]
async fn a_store_of_a_release_without_candles_gets_the_same_ones_at_its_next_start() {
    let mut hub = knowing(&[]).await;
    hub.append_lines("trades.ndjson", &(0..200).map(step).collect::<Vec<_>>());
    until_traded(&hub, 200);
    let rest = format!(r#", to: "{}", last: 5000"#, time((BEGIN + 86_400 * 3) * 1_000_000));
    let before = ["M1", "M15", "D1"].map(|interval| asked(&hub, interval, &rest));
    hub.kill9();
    let store = rusqlite::Connection::open(hub.folder().join("data/spreadly.db")).unwrap();
    store.execute_batch("DROP TABLE candles; DROP TABLE derived").unwrap();
    drop(store);
    hub.restart();
    assert_eq!(["M1", "M15", "D1"].map(|interval| asked(&hub, interval, &rest)), before);
    assert!(before.iter().all(|candles| !candles.is_empty()));
}
