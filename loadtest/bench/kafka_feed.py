#!/usr/bin/env python3
"""What a hub makes of Kafka, against a bare consumer of the same topic in the same run.

    kafka_feed.py HUB LIMIT STORM [--records N] [--rounds N] [--seconds S]

drain   the processor time a record costs a hub without subscribers that reads a full topic into its log,
        and a bare rdkafka consumer that parses each value with serde_json (the limit); in turns
live    records of 100 markets at a rate, to 200 subscribers of their books: whether the hub keeps up, and
        the highest rate of those tried at which it does

LIMIT is the example `kafka_limit`, STORM spreadly-storm. Needs Java and the broker's jars that `make setup`
puts into the cache; starts a broker of its own and stops it.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

import processor
from ports import free_port

MARKETS = 100
PARTITIONS = 8
RATES = [10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 120_000, 150_000]
KEEPS_UP, LAGS, LATE = "keeps up", "lags", "the producer was late"
TRIES = 3


class Broker:
    def __init__(self, folder, limit):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jars = cache / "spreadly" / "kafka" / "libs"
        if not jars.exists():
            sys.exit(f"{jars} is missing: run `make setup`")
        self.jars, self.limit, self.port, control = f"{jars}/*", limit, free_port(), free_port()
        settings = pathlib.Path(folder) / "server.properties"
        settings.write_text(f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{control}
listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{control}
advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
offsets.topic.replication.factor=1
num.partitions={PARTITIONS}
auto.create.topics.enable=true
""")
        made = [
            "java",
            "-cp",
            self.jars,
            "kafka.tools.StorageTool",
            "format",
            "-t",
            uuid.uuid4().hex[:22],
            "-c",
            str(settings),
        ]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        log = open(f"{folder}/log", "w")
        self.process = subprocess.Popen(
            ["java", "-Xmx512m", "-cp", self.jars, "kafka.Kafka", str(settings)],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        self.brokers = f"127.0.0.1:{self.port}"
        deadline = time.time() + 60
        while True:
            # Asking for a topic makes it.
            done = subprocess.run(
                [limit, "produce", self.brokers, "warm", "1", "0"], capture_output=True
            )
            if done.returncode == 0:
                return
            if time.time() > deadline:
                sys.exit(f"Kafka does not start: {pathlib.Path(folder, 'log').read_text()[-2000:]}")
            time.sleep(0.5)

    def make(self, topic):
        while (
            subprocess.run(
                [self.limit, "produce", self.brokers, topic, "0", "0"], capture_output=True
            ).returncode
            != 0
        ):
            time.sleep(0.2)

    def produce(self, topic, records, rate):
        return subprocess.Popen(
            [self.limit, "produce", self.brokers, topic, str(records), str(rate)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self):
        self.process.kill()
        self.process.wait()


class Hub:
    def __init__(self, program, brokers, topic):
        self.folder = tempfile.TemporaryDirectory()
        feeds = pathlib.Path(self.folder.name) / "feeds"
        feeds.mkdir()
        defined = [
            json.dumps(
                {
                    "kind": "market",
                    "market": f"M{n}-USD",
                    "base": f"M{n}",
                    "quote": "USD",
                    "priceDecimals": 1,
                    "sizeDecimals": 8,
                }
            )
            for n in range(MARKETS)
        ]
        (feeds / "markets.ndjson").write_text("\n".join(defined) + "\n")
        self.words = [program, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        # First without Kafka, so that the markets are there before their records.
        self.start()
        while self.metric("events_total", "files") < MARKETS:
            time.sleep(0.02)
        self.stop_process()
        self.words += [
            "--set",
            f"feeds.kafka.brokers={brokers}",
            "--set",
            f"feeds.kafka.topics={topic}",
        ]

    def start(self):
        self.process = subprocess.Popen(
            self.words,
            cwd=self.folder.name,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        said = json.loads(self.process.stdout.readline())
        self.url, self.admin = f"ws://{said['listening']}/graphql", said["admin"]

    def metric(self, name, feed="kafka"):
        host, port = self.admin.split(":")
        with socket.create_connection((host, int(port))) as page:
            page.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: page.recv(65536), b"")).decode()
        lines = [
            line
            for line in text.splitlines()
            if line.startswith(f'spreadly_feed_{name}{{feed="{feed}"}}')
        ]
        return int(lines[0].split()[-1]) if lines else 0

    def processor(self):
        return processor.seconds(self.process.pid)

    def until(self, events, patience):
        deadline = time.time() + patience
        while self.metric("events_total") < events:
            if time.time() > deadline:
                return False
            # Each look at its metrics is processor time of the hub's: at 50 a second a fortieth of
            # what a record cost.
            time.sleep(0.2)
        return True

    def stop_process(self):
        self.process.terminate()
        self.process.wait()

    def stop(self):
        self.stop_process()
        self.folder.cleanup()


def drain(options, broker):
    broker.make("full")
    broker.produce("full", options.records, 0).wait()
    ratios = []
    for _ in range(options.rounds):
        done = subprocess.run(
            [options.limit, "consume", broker.brokers, "full", str(options.records)],
            check=True,
            capture_output=True,
            text=True,
        )
        _, bare = (float(word) for word in done.stdout.split())
        hub = Hub(options.hub, broker.brokers, "full")
        began = time.time()
        hub.start()
        if not hub.until(options.records, 120):
            sys.exit("the hub never read all of it")
        seconds, spent = time.time() - began, hub.processor()
        hub.stop()
        ratios.append(spent / bare)
        per = 1e6 / options.records
        print(
            f"drain  hub {spent * per:6.2f} us a record, {options.records / seconds:8.0f}/s   limit {bare * per:6.2f} us   ratio {spent / bare:5.2f}",
            flush=True,
        )
    print(f"drain  ratio {statistics.median(ratios):.2f} (median of {len(ratios)})")


def live(options, broker):
    best = 0
    for rate in RATES:
        # A producer that is late says nothing of the hub.
        verdicts = (
            live_at(options, broker, rate, f"live{rate}-{number}") for number in range(TRIES)
        )
        if next((verdict for verdict in verdicts if verdict != LATE), LATE) != KEEPS_UP:
            break
        best = rate
    print(
        f"live   keeps up at {best} events/s with 200 subscribers of {MARKETS} markets, on the cores it shares with the broker and the subscribers"
    )


def live_at(options, broker, rate, topic):
    broker.make(topic)
    hub = Hub(options.hub, broker.brokers, topic)
    hub.start()
    markets = [word for n in range(MARKETS) for word in ("--market", f"M{n}-USD")]
    storm = subprocess.Popen(
        [
            options.storm,
            "run",
            "--url",
            hub.url,
            "--connections",
            "200",
            "--duration",
            str(options.seconds),
            "--json",
            *markets,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    records = int(rate * (options.seconds - 2))
    producing = broker.produce(topic, records, rate)
    took = float(producing.communicate()[0])
    # Two seconds after the last record is not keeping up.
    verdict = KEEPS_UP if hub.until(records, 2) else LAGS
    if verdict == KEEPS_UP and took >= 1.1 * records / rate:
        verdict = LATE
    report = json.loads(storm.communicate()[0])
    print(
        f"live   {rate:6}/s  produced in {took:.1f} s  in the log {hub.metric('events_total') / records:.1%}  {verdict}  storm: {json.dumps(report)[:300]}",
        flush=True,
    )
    hub.stop()
    return verdict


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ["hub", "limit", "storm"]:
        options.add_argument(name, type=os.path.abspath)
    options.add_argument("--records", type=int, default=300_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=int, default=10)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(folder, options.limit)
        try:
            drain(options, broker)
            live(options, broker)
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
