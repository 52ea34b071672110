"""Many operations on one socket: what each costs, and whether they slow a hot one down.

    python3 loadtest/bench/many_operations.py target/release/spreadly

Starts the hub in a temporary folder with the operation limits raised. Prints one JSON line:
- bytes_per_subscription: resident memory per further subscription of a quiet market, over 20
  sockets with 5,000 each;
- hot_alone, hot_beside_idle: frames a second of a busy market's subscription when 100,000 events are
  already in its folder, alone on its socket and beside 5,000 subscriptions of the quiet one (median
  of five interleaved rounds), and their ratio.
Only the standard library; the WebSocket is spoken by hand, as cheaply as Python can.
"""

import base64
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

EVENTS = 100_000
ROUNDS = 5


def config(folder):
    os.makedirs(os.path.join(folder, "feeds"))
    path = os.path.join(folder, "hub.toml")
    with open(path, "w") as file:
        file.write(f"""
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[store]
url = "sqlite:{folder}/hub.db"
[feeds.files]
path = "{folder}/feeds"
[limits]
operations_per_socket = 6000
subscribe_rate = 100000
subscribe_burst = 100000
""")
    return path


def market(name):
    levels = [[f"{100 + level}.0", "1"] for level in range(10)]
    bids = [[f"{99 - level}.0", "1"] for level in range(10)]
    return [
        {
            "kind": "market",
            "market": name,
            "base": "A",
            "quote": "B",
            "priceDecimals": 1,
            "sizeDecimals": 3,
            "tickSize": "0.1",
            "lotSize": "0.001",
            "status": "ACTIVE",
        },
        {"kind": "book.snapshot", "market": name, "bids": bids, "asks": levels},
    ]


def append(folder, name, events):
    lines = "".join(json.dumps(event) + "\n" for event in events)
    with open(os.path.join(folder, "feeds", name), "a") as file:
        file.write(lines)


class Client:
    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            (
                f"GET /graphql HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
            ).encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(65536)
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        self.at = 0
        assert b" 101 " in head, head
        self.say({"type": "connection_init"})
        assert json.loads(self.hear())["type"] == "connection_ack"

    def say(self, *messages):
        frames = b""
        for message in messages:
            text = json.dumps(message).encode()
            size = (
                struct.pack(">BBH", 0x81, 0xFE, len(text))
                if len(text) > 125
                else struct.pack(">BB", 0x81, 0x80 | len(text))
            )
            frames += size + b"\0\0\0\0" + text
        self.socket.sendall(frames)

    def hear(self):
        """The payload of the next text frame; pings are passed over."""
        while True:
            start, length = self.header()
            while start is None or len(self.buffer) < start + length:
                self.buffer = self.buffer[self.at :]
                self.at = 0
                more = self.socket.recv(1 << 18)
                assert more, "the hub closed the socket"
                self.buffer += more
                start, length = self.header()
            first, self.at = self.buffer[self.at], start + length
            if first == 0x81:
                return self.buffer[start : start + length]

    def header(self):
        """Where the next frame's payload starts and how long it is; None before its header came."""
        have = len(self.buffer) - self.at
        if have < 2 or have < 10 and self.buffer[self.at + 1] > 125:
            return None, 0
        short = self.buffer[self.at + 1]
        if short == 126:
            return self.at + 4, struct.unpack_from(">H", self.buffer, self.at + 2)[0]
        if short == 127:
            return self.at + 10, struct.unpack_from(">Q", self.buffer, self.at + 2)[0]
        return self.at + 2, short

    def subscribe(self, ids, name):
        query = (
            'subscription { orderBook(market: "%s") { __typename sequence '
            "... on BookDelta { prevSequence mergedEvents bids { price size } } } }" % name
        )
        self.say(*({"type": "subscribe", "id": one, "payload": {"query": query}} for one in ids))
        for _ in ids:
            assert b"BookSnapshot" in self.hear()

    def drain(self, events):
        """Seconds until this many events were received, counting merged ones."""
        received, start = 0, time.monotonic()
        while received < events:
            message = self.hear()
            if b'"id":"hot"' in message and b"BookDelta" in message:
                received += json.loads(message)["payload"]["data"]["orderBook"]["mergedEvents"]
        return time.monotonic() - start


def resident(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def main(hub):
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [hub, "serve", "--config", config(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        try:
            address = json.loads(process.stdout.readline())["listening"]
            append(folder, "a.ndjson", market("QUIET") + market("HOT"))
            print(json.dumps(measure(process.pid, address, folder)))
        finally:
            process.terminate()
            process.wait(30)


def measure(pid, address, folder):
    time.sleep(1)
    sockets = [Client(address) for _ in range(20)]
    for number, client in enumerate(sockets):
        client.subscribe([f"{number}-first"], "QUIET")
    before = resident(pid)
    # As many as make the doubling of tables even out.
    for batch in range(50):
        for client in sockets:
            client.subscribe([f"{batch:016}-{one:019}" for one in range(100)], "QUIET")
    bytes_each = (resident(pid) - before) / (20 * 5000)
    for client in sockets:
        client.socket.close()
    rates = {"alone": [], "beside": []}
    for number in range(ROUNDS):
        for kind in rates:
            client = Client(address)
            if kind == "beside":
                for batch in range(50):
                    client.subscribe([f"idle-{batch}-{one}" for one in range(100)], "QUIET")
            client.subscribe(["hot"], "HOT")
            events = [
                {
                    "kind": "book.delta",
                    "market": "HOT",
                    "asks": [],
                    "bids": [[f"{99 - one % 10}.0", f"{1 + one % 97 + number}"]],
                }
                for one in range(EVENTS)
            ]
            append(folder, f"{kind}-{number}.ndjson", events)
            rates[kind].append(EVENTS / client.drain(EVENTS))
            client.socket.close()
    alone, beside = (statistics.median(rates[kind]) for kind in ("alone", "beside"))
    return {
        "bytes_per_subscription": round(bytes_each),
        "hot_alone": round(alone),
        "hot_beside_idle": round(beside),
        "ratio": round(beside / alone, 3),
    }


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
