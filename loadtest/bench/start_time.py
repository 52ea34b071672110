#!/usr/bin/env python3
"""How long a hub takes to be ready with a log, by the log's length: from exec to 200 on /readyz,
after kill -9. The same markets and the same kinds of events in each log; only their number differs.
A start replays one to two stretches of 2,000 events of each book, and these markets' books grow in
step, so where a log happens to end makes up to a factor of two: what was replayed is printed too.

    start_time.py HUB [--events N,N,…] [--markets N] [--starts N] [--redis]

A log is filled through the watched folder, each in a temporary folder that goes afterwards.
The last column is the median against that of the first log. With --redis the hub goes on from a cache
(redis-server, Debian: redis-server) that has every market's state.
"""

import argparse
import atexit
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from ports import free_port

PATIENCE_S = 1800


def lines(events, markets):
    """Definitions, then each market in turn: of its 20 events 18 are deltas, one a trade, one a message."""
    clock = "2026-01-02T%02d:%02d:%02d.%06dZ"
    for market in range(markets):
        yield {
            "kind": "market",
            "market": f"M{market}-USD",
            "base": f"M{market}",
            "quote": "USD",
            "priceDecimals": 2,
            "sizeDecimals": 2,
            "tickSize": "0.01",
            "lotSize": "0.01",
            "status": "ACTIVE",
        }
    for number in range(events - markets):
        market = f"M{number % markets}-USD"
        turn = number // markets
        second, micros = divmod(number * 1000, 1_000_000)
        at = clock % (second // 3600 % 24, second // 60 % 60, second % 60, micros)
        if turn % 20 == 19:
            yield {"kind": "message", "topic": "news", "data": number, "time": at}
        elif turn % 10 == 9:
            yield {
                "kind": "trade",
                "market": market,
                "id": str(number),
                "price": "100.00",
                "size": "1.00",
                "takerSide": "BUY",
                "time": at,
            }
        else:
            level = turn % 200
            yield {
                "kind": "book.delta",
                "market": market,
                "bids": [[f"{90 + level / 100:.2f}", f"{1 + turn % 7}.00"]],
                "asks": [[f"{110 + level / 100:.2f}", f"{1 + turn % 5}.00"]],
                "time": at,
            }


class Hub:
    def __init__(self, binary, folder, cache):
        self.port, self.admin = free_port(), free_port()
        settings = {
            "store.url": f"sqlite:{folder}/spreadly.db",
            "feeds.files.path": f"{folder}/feeds",
            "server.listen": f"127.0.0.1:{self.port}",
            "admin.listen": f"127.0.0.1:{self.admin}",
            "cache.url": cache,
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        began = time.perf_counter()
        self.log = pathlib.Path(folder, "log")
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [binary, "serve", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=log
            )
        while not self.ready():
            if self.process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                sys.exit("the hub did not become ready")
            time.sleep(0.002)
        self.took = time.perf_counter() - began

    def ready(self):
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.admin}/readyz", timeout=5
            ) as answer:
                return answer.status == 200
        except OSError:
            return False

    def replayed(self):
        return int(re.search(r"replayed=(\d+)", self.log.read_text(encoding="utf-8"))[1])

    def events(self):
        body = json.dumps({"query": "{ feeds { eventsTotal refusedTotal } }"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            feed = json.load(answer)["data"]["feeds"][0]
        if feed["refusedTotal"] != "0":
            sys.exit(f"the hub refused {feed['refusedTotal']} events")
        return int(feed["eventsTotal"])

    def kept(self, cache, markets):
        """Whether the cache has every market's newest state."""
        port = cache.rsplit(":", 1)[1]
        asked = (
            "{ "
            + " ".join(
                f'm{one}: orderBook(market: "M{one}-USD") {{ sequence }}' for one in range(markets)
            )
            + " }"
        )
        body = json.dumps({"query": asked}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            books = json.load(answer)["data"]
        for one in range(markets):
            words = ["redis-cli", "-p", port, "hget", f"spreadly:{{M{one}-USD}}:state", "sequence"]
            if (
                subprocess.run(words, capture_output=True, text=True).stdout.strip()
                != books[f"m{one}"]["sequence"]
            ):
                return False
        return True

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def measure(binary, events, markets, starts, cache):
    with tempfile.TemporaryDirectory(prefix="start-time-") as folder:
        feeds = pathlib.Path(folder, "feeds")
        feeds.mkdir()
        with open(feeds / "bench.ndjson", "w", encoding="utf-8") as file:
            for line in lines(events, markets):
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
        hub = Hub(binary, folder, cache)
        began = time.perf_counter()
        while (entered := hub.events()) < events:
            if time.perf_counter() - began > PATIENCE_S:
                sys.exit(f"only {entered} of {events} events entered")
            time.sleep(0.2)
        filled = time.perf_counter() - began
        while cache and not hub.kept(cache, markets):
            time.sleep(0.2)
        hub.kill()
        took = []
        for _ in range(starts):
            hub = Hub(binary, folder, cache)
            took.append(hub.took)
            replayed = hub.replayed()
            hub.kill()
        size = sum(os.path.getsize(file) for file in pathlib.Path(folder).glob("spreadly.db*"))
        return took, replayed, filled, size


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("hub", help="the hub's program, a release build")
    parser.add_argument(
        "--events",
        default="100000,5000000",
        help="of each log, the limit first: enough that each market has two checkpoints, which a start goes on from",
    )
    parser.add_argument("--markets", type=int, default=20)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--redis", action="store_true", help="with a cache")
    asked = parser.parse_args()
    binary, first = os.path.abspath(asked.hub), None
    cache = ""
    if asked.redis:
        port = free_port()
        redis = subprocess.Popen(
            [
                shutil.which("redis-server") or sys.exit("redis-server is missing"),
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ],
            stdout=subprocess.DEVNULL,
        )
        atexit.register(redis.kill)
        cache = f"redis://127.0.0.1:{port}"
    for events in map(int, asked.events.split(",")):
        took, replayed, filled, size = measure(binary, events, asked.markets, asked.starts, cache)
        median = statistics.median(took)
        first = first or median
        print(
            f"{events:>10} events, {size / 1e6:8.1f} MB, filled in {filled:6.1f} s: ready after "
            f"{median:.3f} s (of {asked.starts}: {min(took):.3f} to {max(took):.3f}), {replayed} replayed, "
            f"ratio {median / first:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
