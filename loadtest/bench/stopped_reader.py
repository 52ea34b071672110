"""A reader that stops for ten seconds while its book moves, beside 200 that read on.

    python3 loadtest/bench/stopped_reader.py target/release/spreadly target/release/spreadly-storm

Prints one JSON line: how the stopped reader was brought up to date, whether its book then equals the
hub's, the hub's resident memory before and after the stop, and the others' p99 latency without and
with the stopped reader.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import many_operations as base

DEPTH = 200
RATE = 200
STOP_SECONDS = 10
QUERY = (
    'subscription { orderBook(market: "HOT", depth: %d) { __typename sequence '
    "... on BookSnapshot { reason bids { price size } asks { price size } } "
    "... on BookDelta { prevSequence mergedEvents bids { price size } asks { price size } } "
    "} }" % DEPTH
)


class Reader(base.Client):
    def __init__(self, address):
        super().__init__(address)
        self.say({"type": "subscribe", "id": "1", "payload": {"query": QUERY}})
        self.book, self.sequence, self.kinds = {}, None, {}
        self.take()

    def take(self):
        frame = json.loads(self.hear())["payload"]["data"]["orderBook"]
        kind = frame["__typename"]
        if kind == "BookSnapshot":
            self.book = {}
            kind += " " + frame["reason"]
        elif kind == "BookDelta":
            assert frame["prevSequence"] == self.sequence, "a gap"
            kind += " merged" if frame["mergedEvents"] > 1 else ""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.sequence = frame["sequence"]
        for side in ("bids", "asks"):
            for level in frame.get(side, ()):
                key = side, level["price"]
                self.book[key] = level["size"]
                if not float(level["size"]):
                    del self.book[key]


def write(folder, stop):
    number = 0
    start = time.monotonic()
    with open(os.path.join(folder, "feeds", "hot.ndjson"), "a", buffering=1) as file:
        while not stop.is_set():
            number += 1
            time.sleep(max(0.0, start + number / RATE - time.monotonic()))
            # Wide deltas, so that the sockets' buffers are full long before the ten seconds are
            # over.
            levels = [
                [f"{99 - one % 50}.{one // 50}", f"{1 + (number + one) % 97}"]
                for one in range(number % 7, 200, 2)
            ]
            file.write(
                json.dumps({"kind": "book.delta", "market": "HOT", "bids": levels, "asks": []})
                + "\n"
            )


def p99(storm, address):
    done = subprocess.run(
        [
            storm,
            "run",
            "--url",
            f"ws://{address}/graphql",
            "--connections",
            "200",
            "--market",
            "HOT",
            "--duration",
            str(STOP_SECONDS - 5),
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return int(re.search(r'"p99[A-Za-z]*":\s*(\d+)', done.stdout).group(1))


def ask(address, query):
    body = json.dumps({"query": query}).encode()
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as http:
        http.sendall(
            b"POST /graphql HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        answer = b""
        while more := http.recv(65536):
            answer += more
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])["data"]


def main(hub, storm):
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [hub, "serve", "--config", base.config(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        stop = threading.Event()
        try:
            address = json.loads(process.stdout.readline())["listening"]
            base.append(folder, "a.ndjson", base.market("HOT"))
            writer = threading.Thread(target=write, args=(folder, stop))
            writer.start()
            time.sleep(1)
            without = p99(storm, address)
            reader = Reader(address)
            before = base.resident(process.pid)
            stopped = time.monotonic()
            beside = p99(storm, address)
            after = base.resident(process.pid)
            time.sleep(max(0.0, stopped + STOP_SECONDS - time.monotonic()))
            stop.set()
            writer.join()
            # Reads again before writer_stall_ms, which counts from when the buffers were full.
            reader.kinds = {}
            reader.take()
            time.sleep(0.5)
            now = ask(
                address,
                '{ orderBook(market: "HOT", depth: %d) { sequence '
                "bids { price size } asks { price size } } }" % DEPTH,
            )["orderBook"]
            while reader.sequence != now["sequence"]:
                reader.take()
            theirs = {
                (side, one["price"]): one["size"] for side in ("bids", "asks") for one in now[side]
            }
            print(
                json.dumps(
                    {
                        "frames_after_the_stop": reader.kinds,
                        "equal": reader.book == theirs,
                        "resident_kib_before": before // 1024,
                        "resident_kib_after": after // 1024,
                        "others_p99_us_without": without,
                        "others_p99_us_beside": beside,
                    }
                )
            )
        finally:
            stop.set()
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main(*map(os.path.abspath, sys.argv[1:3]))
