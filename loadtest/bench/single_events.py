#!/usr/bin/env python3
"""What a hub pays for events that come one by one, in turns with another hub where one is given.

    single_events.py HUB [BASE] [--limit LIMIT] [--rates R ...] [--events N] [--rounds N]

Each event is one line that is appended to a file in the watched folder, at an even rate. There are
two passes for each rate, each with a hub of its own:

cost     without subscribers: processor time an event, in all and by thread, less an idle hub's
latency  with one subscriber of the book: from before the line is written until its frame is read

Each hub is first given more than its write-ahead log holds before a checkpoint. From then on,
commits write over pages in memory, as in a hub that has run for a while. At first each commit makes
the file longer, which costs a virtual machine twice as much as the commit.

LIMIT is a program that does no more than it must (`single_event_limit.rs`). Its cost is measured in
turns with the hub's.

Figures are medians of the rounds. Between machines, and between runs on a busy one, only the ratios
mean anything. It needs Linux (schedstat) and the standard library alone.
"""

import argparse
import collections
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time

import many_operations

IDLE_SECONDS = 3
# A checkpoint is due at 4,000 pages of 4 KiB.
WARM_EVENTS, WARM_BYTES = 2_000, 10_000
LISTED_MICROS = 0.5
QUERY = (
    'subscription { orderBook(market: "A-B", depth: 1, speed: RAW) '
    "{ ... on BookDelta { bids { size } } } }"
)


class Hub:
    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory()
        feeds = pathlib.Path(self.folder.name) / "feeds"
        feeds.mkdir()
        words = [program, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            words,
            cwd=self.folder.name,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        said = json.loads(self.process.stdout.readline())
        self.address, self.admin = said["listening"], said["admin"]
        warm = json.dumps({"kind": "message", "topic": "warm", "data": "x" * WARM_BYTES}) + "\n"
        (feeds / "warm.ndjson").write_text(warm * WARM_EVENTS)
        while self.events() < WARM_EVENTS:
            time.sleep(0.1)
        self.file = open(feeds / "a.ndjson", "ab", buffering=0)
        self.say(
            {
                "kind": "market",
                "market": "A-B",
                "base": "A",
                "quote": "B",
                "priceDecimals": 1,
                "sizeDecimals": 0,
            },
            {
                "kind": "book.snapshot",
                "market": "A-B",
                "bids": [["1.0", "1"]],
                "asks": [["2.0", "1"]],
            },
        )
        time.sleep(1)

    def events(self):
        host, port = self.admin.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as page:
            page.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: page.recv(65536), b"")).decode()
        name = 'spreadly_feed_events_total{feed="files"} '
        return sum(
            int(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)
        )

    def say(self, *events):
        self.file.write("".join(json.dumps(event) + "\n" for event in events).encode())

    def tick(self, number):
        # No size twice in a row, so that each event changes the book.
        self.say(
            {
                "kind": "book.delta",
                "market": "A-B",
                "bids": [["1.0", str(2 + number % 1000)]],
                "asks": [],
            }
        )

    def processor(self):
        """Microseconds by name of thread."""
        spent = collections.Counter()
        for thread in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                name = (thread / "comm").read_text().strip()
                spent[name] += int((thread / "schedstat").read_text().split()[0]) / 1000
            except (FileNotFoundError, ProcessLookupError):
                pass
        return spent

    def stop(self):
        self.file.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


class Limit(Hub):
    """The same for the program that does no more than it must: a file, and processor time."""

    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory()
        words = [program, self.folder.name]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"
        self.file = open(pathlib.Path(self.folder.name) / "a.ndjson", "ab", buffering=0)
        # As much as a hub is given first.
        for _ in range(WARM_EVENTS):
            self.say({"kind": "message", "topic": "warm", "data": "x" * WARM_BYTES})
        time.sleep(1)


def evenly(rate, events):
    """The number of each event, when it is its time."""
    began = time.monotonic()
    for number in range(events):
        time.sleep(max(0, began + number / rate - time.monotonic()))
        yield number


def cost(start, program, rate, events):
    hub = start(program)
    try:
        began, before = time.monotonic(), hub.processor()
        time.sleep(IDLE_SECONDS)
        idle = hub.processor() - before
        idle_seconds = time.monotonic() - began
        began, before = time.monotonic(), hub.processor()
        for number in evenly(rate, events):
            hub.tick(number)
        # The last one may be under way.
        time.sleep(0.2)
        seconds, after = time.monotonic() - began, hub.processor()
        names = {
            "main" if name == pathlib.Path(program).name[:15] else name: name for name in after
        }
        return {
            shown: (after[name] - before[name] - idle[name] / idle_seconds * seconds) / events
            for shown, name in names.items()
        }
    finally:
        hub.stop()


def latency(program, rate, events):
    hub = Hub(program)
    try:
        client = many_operations.Client(hub.address)
        client.say({"type": "subscribe", "id": "1", "payload": {"query": QUERY}})
        client.hear()
        micros = []
        for number in evenly(rate, events):
            before = time.monotonic_ns()
            hub.tick(number)
            client.hear()
            micros.append((time.monotonic_ns() - before) / 1000)
        micros.sort()
        return micros[len(micros) // 2], micros[len(micros) * 99 // 100]
    finally:
        hub.stop()


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("hub", type=os.path.abspath)
    options.add_argument("base", type=os.path.abspath, nargs="?")
    options.add_argument("--limit", type=os.path.abspath)
    options.add_argument("--rates", type=float, nargs="+", default=[50, 100, 200])
    options.add_argument("--events", type=int, default=600)
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()
    hubs = {"base": options.base, "hub": options.hub} if options.base else {"hub": options.hub}
    for rate in options.rates:
        costs, waits = collections.defaultdict(list), collections.defaultdict(list)
        for _ in range(options.rounds):
            for name, program in hubs.items():
                costs[name].append(cost(Hub, program, rate, options.events))
                waits[name].append(latency(program, rate, options.events))
            if options.limit:
                costs["limit"].append(cost(Limit, options.limit, rate, options.events))
        totals = {}
        for name in hubs:
            threads = {
                thread: statistics.median(one.get(thread, 0) for one in costs[name])
                for thread in costs[name][0]
            }
            totals[name] = statistics.median(sum(one.values()) for one in costs[name])
            middle, late = (statistics.median(column) for column in zip(*waits[name]))
            listed = ", ".join(
                f"{thread} {micros:.0f}"
                for thread, micros in threads.items()
                if micros > LISTED_MICROS
            )
            print(
                f"{rate:4.0f}/s {name:4}  {totals[name]:4.0f} us an event ({listed})   "
                f"latency p50 {middle:.0f} us, p99 {late:.0f} us",
                flush=True,
            )
        if options.base:
            print(f"{rate:4.0f}/s ratio {totals['hub'] / totals['base']:.2f}", flush=True)
        if options.limit:
            limit = statistics.median(sum(one.values()) for one in costs["limit"])
            print(
                f"{rate:4.0f}/s limit {limit:4.0f} us an event, ratio {totals['hub'] / limit:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
