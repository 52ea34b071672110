#!/usr/bin/env python3
"""Whether two hubs send the same frames, byte for byte, but for cursors, epochs and times.

    compare_frames.py HUB OTHER [--events N] [--seed N]

Each hub gets the same seeded events, one line at a time, and has one client for each subscription
below. The next line is written after the frame of another subscription shows that the hub took the
previous one. It checks a change that clients must not see. It exits with 1 at the first difference.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time

import many_operations

MARKETS = ["A-B", "C-D"]
# All fields of each are selected.
SUBSCRIPTIONS = [
    'orderBook(market: "A-B", depth: 5)',
    'orderBook(market: "C-D", depth: 500)',
    'orderBook(market: "A-B", depth: 1)',
    'bestBidOffer(markets: ["A-B", "C-D"])',
    'trades(markets: ["A-B", "C-D"])',
    'candles(market: "A-B", interval: M1)',
    'tickers(markets: ["A-B"])',
    'orders(market: "C-D")',
    'events(topic: "news")',
]
QUERIES = [
    "markets",
    'market(market: "A-B")',
    'orderBook(market: "A-B", depth: 10)',
    'orderBook(market: "none", depth: 10)',
    'trades(market: "A-B", last: 20)',
    'events(topic: "news", first: 5)',
    'candles(market: "A-B", interval: M1)',
    'ticker(market: "A-B")',
    "nothing",
]
INTROSPECTION = """{ __schema { types { name kind possibleTypes { name }
    fields { name args { name type { kind } }
        type { name ofType { name ofType { name ofType { name } } } } } } } }"""
DEPTH = 5
# What differs between two runs of one hub.
OWN = re.compile(
    r'"(cursor|startCursor|endCursor|epoch|receivedAt|eventTime|publishTime|start|end|time'
    r'|since|until)":("[^"]*"|\d+|null)'
)


class Schema:
    def __init__(self, client):
        answer = ask(client, INTROSPECTION)
        self.types = {
            one["name"]: one for one in json.loads(answer)["payload"]["data"]["__schema"]["types"]
        }

    def selection(self, name, depth=DEPTH, renamed=()):
        """All fields of a type that need no argument, with theirs; empty for a scalar. GraphQL
        wants another name for those whose types differ between members of an interface."""
        of = self.types[name]
        if not of["fields"] or depth == 0:
            return ""
        fields = ["__typename"]
        if of["possibleTypes"]:
            members = [one["name"] for one in of["possibleTypes"]]
            types = {}
            for field in (field for member in members for field in self.types[member]["fields"]):
                types.setdefault(field["name"], set()).add(json.dumps(field["type"]))
            renamed = [name for name, several in types.items() if len(several) > 1]
            fields += [
                f"... on {member} {self.selection(member, depth, renamed)}" for member in members
            ]
            return "{ " + " ".join(fields) + " }"
        for field in of["fields"]:
            if any(argument["type"]["kind"] == "NON_NULL" for argument in field["args"]):
                continue
            inner = named(field["type"])
            below = self.selection(inner, depth - 1)
            if below or not self.types[inner]["fields"]:
                alias = f"{name}__{field['name']}: " if field["name"] in renamed else ""
                fields.append(f"{alias}{field['name']} {below}")
        return "{ " + " ".join(fields) + " }"

    def document(self, root, call):
        name = re.match(r"\w+", call)[0]
        fields = self.types[root]["fields"]
        field = next((one for one in fields if one["name"] == name), None)
        return (
            f"{root.lower()} {{ {call} {self.selection(named(field['type'])) if field else ''} }}"
        )


def named(kind):
    while kind["name"] is None:
        kind = kind["ofType"]
    return kind["name"]


def ask(client, query):
    client.say({"type": "subscribe", "id": "ask", "payload": {"query": query}})
    answer = client.hear()
    if b'"type":"error"' not in answer:
        assert b'"complete"' in client.hear()
    return answer


def masked(message):
    return OWN.sub(r'"\1":"*"', re.sub(r'"[A-Z]\w*?__(\w+)":', r'"\1":', message.decode()))


def rest(client):
    """All frames up to now, without heartbeats."""
    time.sleep(1)
    client.say({"type": "ping"})
    frames = []
    while True:
        message = client.hear()
        if message == b'{"type":"pong"}':
            return [frame for frame in frames if "Heartbeat" not in frame]
        frames.append(masked(message))


def events(seed, count):
    choice = random.Random(seed)
    for market in MARKETS:
        yield from many_operations.market(market)
    price = lambda: f"{choice.randint(900, 1100) / 10:.1f}"
    for number in range(count):
        market = choice.choice(MARKETS)
        kind = choice.randrange(10)
        if kind < 6:
            side = choice.choice(["bids", "asks"])
            levels = [[price(), str(choice.randint(0, 9))] for _ in range(choice.randint(1, 4))]
            yield {"kind": "book.delta", "market": market, "bids": [], "asks": [], side: levels}
        elif kind < 8:
            yield {
                "kind": "trade",
                "market": market,
                "price": price(),
                "size": str(choice.randint(1, 9)),
                "side": choice.choice(["BUY", "SELL"]),
                "time": "2026-01-31T12:00:00Z",
            }
        else:
            yield {"kind": "message", "topic": "news", "data": {"number": number}}


def record(program, seed, count):
    """The frames of each subscription, and the answers to the queries, masked."""
    # A candle of the current minute is sent when the minute ends.
    seconds = time.time() % 60
    if seconds > 20:
        time.sleep(60 - seconds)
    with tempfile.TemporaryDirectory() as folder:
        words = [program, "serve", "--config", many_operations.config(folder)]
        hub = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder)
        try:
            address = json.loads(hub.stdout.readline())["listening"]
            lines = list(events(seed, count))
            many_operations.append(folder, "a.ndjson", lines[:4])
            fence = many_operations.Client(address)
            fence.say(
                {
                    "type": "subscribe",
                    "id": "fence",
                    "payload": {"query": 'subscription { events(topic: "fence") { sequence } }'},
                }
            )
            fence.hear()
            many_operations.append(
                folder, "a.ndjson", [{"kind": "message", "topic": "fence", "data": 1}]
            )
            fence.hear()
            asking = many_operations.Client(address)
            schema = Schema(asking)
            clients = {}
            for call in SUBSCRIPTIONS:
                client = clients[call] = many_operations.Client(address)
                client.say(
                    {
                        "type": "subscribe",
                        "id": "1",
                        "payload": {"query": schema.document("Subscription", call)},
                    }
                )
            frames = {call: rest(client) for call, client in clients.items()}
            for line in lines[4:]:
                many_operations.append(
                    folder, "a.ndjson", [line, {"kind": "message", "topic": "fence", "data": 1}]
                )
                fence.hear()
            for call, client in clients.items():
                frames[call] += rest(client)
            for call in QUERIES:
                frames["query " + call] = [masked(ask(asking, schema.document("Query", call)))]
            return frames
        finally:
            hub.kill()
            hub.wait()


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("hub")
    options.add_argument("other")
    options.add_argument("--events", type=int, default=500)
    options.add_argument("--seed", type=int, default=1)
    options = options.parse_args()
    one, other = (
        record(program, options.seed, options.events) for program in (options.hub, options.other)
    )
    for call, frames in one.items():
        print(f"{len(frames):5} frames, {sum(map(len, frames)):8} bytes  {call}")
        if frames == other[call]:
            continue
        pairs = zip(frames + [None], other[call] + [None])
        at, (ours, theirs) = next((at, pair) for at, pair in enumerate(pairs) if pair[0] != pair[1])
        print(f"frame {at} differs:\n  {ours}\n  {theirs}")
        sys.exit(1)
    print("equal")


if __name__ == "__main__":
    main()
