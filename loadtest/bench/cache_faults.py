#!/usr/bin/env python3
"""Whether a push ever waits for Redis: how long after a line was written into the watched folder a
subscriber has its delta, without a cache, with a healthy one, a stopped one (SIGSTOP) and a dead one.

    cache_faults.py HUB [--rounds N] [--seconds S] [--rate N]

Two hubs in turns, each with the same book of 2,000 levels a side; the one with a cache writes its state,
some 150 KB, each second. Prints the median and the 99th percentile of each in microseconds, of all rounds,
and their ratios to those without a cache in the same run. Needs redis-server (Debian: redis-server).
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import many_operations as base
from ports import free_port

LEVELS = 2_000
NAMES = ("none", "healthy", "stopped", "dead")


class Redis:
    def __init__(self, folder):
        self.port, self.folder, self.process = free_port(), folder, None
        self.start()

    def start(self):
        words = [
            shutil.which("redis-server") or sys.exit("redis-server is missing"),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self.folder,
        ]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def become(self, name):
        if self.process.poll() is not None:
            self.start()
        self.process.send_signal(signal.SIGSTOP if name == "stopped" else signal.SIGCONT)
        if name == "dead":
            self.process.kill()
            self.process.wait()


class Hub:
    def __init__(self, binary, cache=None):
        self.folder = tempfile.TemporaryDirectory(prefix="cache-faults-")
        # The client answers no pings.
        words = ["--set", "server.ping_interval_ms=3600000", "--set", f"cache.url={cache or ''}"]
        self.process = subprocess.Popen(
            [binary, "serve", "--config", base.config(self.folder.name), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder.name,
        )
        address = json.loads(self.process.stdout.readline())["listening"]
        definition, snapshot = base.market("HOT")
        snapshot["bids"] = [[f"{10_000 - level}.0", "1"] for level in range(LEVELS)]
        snapshot["asks"] = [[f"{10_001 + level}.0", "1"] for level in range(LEVELS)]
        base.append(self.folder.name, "hot.ndjson", [definition, snapshot])
        self.number = 0
        deadline = time.monotonic() + 30
        while True:
            self.client = base.Client(address)
            query = (
                'subscription { orderBook(market: "HOT") { ... on BookDelta { bids { size } } } }'
            )
            self.client.say({"type": "subscribe", "id": "1", "payload": {"query": query}})
            if b'"next"' in self.client.hear():
                break
            if time.monotonic() > deadline:
                sys.exit("the market never came")
            time.sleep(0.05)

    def latencies(self, seconds, rate):
        """Of each line in seconds, from before it is written until its size was read back."""
        taken, start = [], time.perf_counter()
        with open(
            os.path.join(self.folder.name, "feeds", "hot.ndjson"), "a", encoding="utf-8"
        ) as file:
            for turn in range(int(seconds * rate)):
                time.sleep(max(0.0, start + turn / rate - time.perf_counter()))
                self.number += 1
                size = f"{2 + self.number}.000"
                line = json.dumps(
                    {"kind": "book.delta", "market": "HOT", "bids": [["10000.0", size]], "asks": []}
                )
                began = time.perf_counter()
                file.write(line + "\n")
                file.flush()
                while size.encode() not in self.client.hear():
                    pass
                taken.append(time.perf_counter() - began)
        return taken

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("hub", help="the hub's program, a release build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rate", type=int, default=200, help="lines a second")
    asked = parser.parse_args()
    binary = os.path.abspath(asked.hub)
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        redis = Redis(folder)
        hubs = [Hub(binary), Hub(binary, f"redis://127.0.0.1:{redis.port}")]
        taken = {name: [] for name in NAMES}
        try:
            for _ in range(asked.rounds):
                for name in NAMES:
                    redis.become(name)
                    time.sleep(1)
                    taken[name] += hubs[name != "none"].latencies(asked.seconds, asked.rate)
        finally:
            redis.become("healthy")
            redis.process.kill()
            for hub in hubs:
                hub.stop()
    limits = None
    for name in NAMES:
        percentiles = statistics.quantiles(taken[name], n=100)
        measured = percentiles[49] * 1e6, percentiles[98] * 1e6
        limits = limits or measured
        ratios = [one / limit for one, limit in zip(measured, limits)]
        print(
            f"{name:>8}: {len(taken[name])} pushes, "
            f"p50 {measured[0]:7.0f} us, p99 {measured[1]:7.0f} us, "
            f"ratio {ratios[0]:.2f} and {ratios[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
