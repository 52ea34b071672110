"""What documents cost, against what their clients are charged for them.

    python3 loadtest/bench/prices.py target/release/spreadly

Starts the hub in a temporary folder with 20 markets. Sends each document many times over one HTTP
connection: as the same text, which is parsed once, and with a comment that makes each text a new
one. Prints a line for each, with two times for a request, in microseconds: the hub's processor time
and what was charged; and their ratio. A ratio far above 1 is work that a client gets for less than
its cost.
It needs Linux (/proc) and the standard library alone.
"""

import http.client
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import processor

MARKETS = 20
LEVELS = 5_000
# Trades of the first market, and as many events of a generic topic.
EVENTS = 1_000
# Of processor time, for each document.
MEASURED_SECONDS = 0.4

BOOK = "{ orderBook(market: \"M0-USD\", depth: %d) { bids { price size } asks { price size } } }"
UNUSED = "".join("fragment F%d on Query { %%s }\n" % one for one in range(230))
DOCUMENTS = {
    "__typename": "{ __typename }",
    "markets": "{ markets { id status priceDecimals } }",
    "markets, id 1,900 times": "{ markets { " + "id " * 1900 + "} }",
    "markets, 1,900 fields": "{ markets { " + "id status base quote tickSize " * 380 + "} }",
    "book of 25": BOOK % 25,
    "book of 5,000": BOOK % 5_000,
    "ticker": '{ ticker(market: "M0-USD") { last high low } }',
    "trades": '{ trades(market: "M0-USD") { nodes { id price size takerSide } } }',
    "1,000 trades": '{ trades(market: "M0-USD", first: 1000) { nodes { id price size } } }',
    "1,000 trades, 90 fields": '{ trades(market: "M0-USD", first: 1000) { nodes { '
    + "id price size " * 30
    + "} } }",
    "1,000 trades, 1,900 fields": '{ trades(market: "M0-USD", first: 1000) { nodes { '
    + "id " * 1900
    + "} } }",
    "1,000 events": '{ events(topic: "news", first: 1000) { edges { cursor node { data } } } }',
    "feeds": "{ feeds { name state } }",
    "types": "{ __schema { types { name } } }",
    "types, spread 150 times": "{ "
    + "...T " * 150
    + "} fragment T on Query { __schema { types { name } } }",
    "possible types": "{ __schema { types { possibleTypes { interfaces { name } } } } }",
    "__typename 1,900 times": "{ " + "__typename " * 1900 + "}",
    "300 inline fragments": "{ __typename " + "... on Query { __typename } " * 300 + "}",
    "230 unused fragments": "{ __typename } " + UNUSED.replace("%s", "__typename"),
    "100 fragments over a dear one": "{ ...F0 } "
    + "".join("fragment F%d on Query { ...F%d }\n" % (one, one + 1) for one in range(100))
    + "fragment F100 on Query { "
    + "__typename " * 900
    + "}",
    "another operation, not run": "query A { __typename } query B { "
    + "markets { id } " * 450
    + "}",
    "an unknown field": "{ nothing }",
    "1,900 unknown fields": "{ " + "nothing " * 1900 + "}",
    "30 variables": "query A("
    + "".join(f"$v{one}: ID! = 1 " for one in range(30))
    + ") { "
    + "".join(f"a{one}: ticker(market: $v{one}) {{ last }} " for one in range(30))
    + "}",
    "a string of 30 KB": '{ market(id: "' + "x" * 30_000 + '") { id } }',
    "arguments of 300 values": "{ markets(a: [" + "1 " * 300 + "]) { id } }",
}


def events():
    for one in range(MARKETS):
        name = f"M{one}-USD"
        yield {
            "kind": "market",
            "market": name,
            "base": f"M{one}",
            "quote": "USD",
            "priceDecimals": 1,
            "sizeDecimals": 3,
        }
        bids = [[f"{9_999 - level}.0", "1"] for level in range(LEVELS)]
        asks = [[f"{10_000 + level}.0", "1"] for level in range(LEVELS)]
        yield {"kind": "book.snapshot", "market": name, "bids": bids, "asks": asks}
    for one in range(EVENTS):
        trade = {"id": str(one), "price": "9999.5", "size": "1", "takerSide": "BUY"}
        yield {"kind": "trade", "market": "M0-USD", **trade}
        yield {"kind": "message", "topic": "news", "data": {"number": one}}


class Hub:
    def __init__(self, program, folder):
        feeds = pathlib.Path(folder) / "feeds"
        feeds.mkdir()
        lines = "".join(json.dumps(event) + "\n" for event in events())
        (feeds / "events.ndjson").write_text(lines)
        words = [program, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said = json.loads(self.process.stdout.readline())
        self.client = http.client.HTTPConnection(said["listening"])
        self.admin = http.client.HTTPConnection(said["admin"])
        query = '{ events(topic: "news", first: 1000) { nodes { sequence } } }'
        while len(self.ask(query)["data"]["events"]["nodes"]) < EVENTS:
            time.sleep(0.1)

    def ask(self, document):
        headers = {"content-type": "application/json"}
        name = "A" if document.startswith("query A") else None
        body = json.dumps({"query": document, "operationName": name})
        self.client.request("POST", "/graphql", body, headers)
        return json.loads(self.client.getresponse().read())

    def charged(self):
        self.admin.request("GET", "/metrics")
        lines = self.admin.getresponse().read().decode().splitlines()
        return sum(int(line.split()[-1]) for line in lines if line.startswith(CHARGED))

    def measure(self, document):
        """Processor time and charge of a request, in microseconds."""
        pid = self.process.pid
        before, charged, count = processor.seconds(pid), self.charged(), 0
        while processor.seconds(pid) - before < MEASURED_SECONDS:
            self.ask(document(count))
            count += 1
        spent = (processor.seconds(pid) - before) * 1e6
        return spent / count, (self.charged() - charged) / count


CHARGED = "spreadly_charged_microseconds_total{"


def main(program, *names):
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(program, folder)
        try:
            print("document                                   same text            each another")
            for name, text in DOCUMENTS.items():
                if names and name not in names:
                    continue
                answer = hub.ask(text)
                same = hub.measure(lambda count, text=text: text)
                fresh = hub.measure(lambda count, text=text: f"{text}#{count}")
                columns = "".join(
                    f"{spent:8.0f} {charged:7.0f} {spent / charged:5.2f}"
                    for spent, charged in (same, fresh)
                )
                refusal = answer["errors"][0]["message"][:60] if "errors" in answer else ""
                print(f"{name:38}{columns}  {refusal}", flush=True)
        finally:
            hub.process.terminate()
            hub.process.wait(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
