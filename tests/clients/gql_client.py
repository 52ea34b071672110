"""The stock Python client `gql`, unchanged, following one book.

    python gql_client.py URL MARKET LAST_BID_SIZE

gql resumes nothing by itself: after each cut this subscribes again with the argument `after`.
Ends well once a bid of LAST_BID_SIZE was seen. Prints a line of JSON for each thing that happens;
exits with 1 when a frame does not follow the one before.
"""

import asyncio
import json
import sys

from gql import Client, gql
from gql.transport.exceptions import TransportConnectionFailed, TransportError
from gql.transport.websockets import WebsocketsTransport

QUERY = """
subscription ($market: ID!, $after: Cursor) {
  orderBook(market: $market, depth: 25, after: $after) {
    __typename epoch sequence cursor
    ... on BookSnapshot { reason bids { price size } }
    ... on BookDelta { prevSequence mergedEvents bids { price size } }
  }
}
"""
BETWEEN_TRIES = 0.05
MOST_TRIES = 1000


def say(**fact):
    print(json.dumps(fact), flush=True)


class Follower:
    def __init__(self, last_bid_size):
        self.last_bid_size = last_bid_size
        self.position = None
        self.cursor = None

    def apply(self, frame):
        """Whether this frame was the last one awaited."""
        position = (frame["epoch"], frame["sequence"])
        kind = frame["__typename"]
        if kind == "BookDelta" and (frame["epoch"], frame["prevSequence"]) != self.position:
            say(fact="broken", why={"after": self.position, "came": frame})
            sys.exit(1)
        self.position, self.cursor = position, frame["cursor"]
        if kind == "BookHeartbeat":
            return False
        sizes = [bid["size"] for bid in frame["bids"]]
        say(fact=kind, reason=frame.get("reason"), sizes=sizes)
        return self.last_bid_size in sizes


async def follow(url, market, follower):
    """Follows on one connection; whether all that was awaited has come."""
    transport = WebsocketsTransport(
        url=url, subprotocols=[WebsocketsTransport.GRAPHQLWS_SUBPROTOCOL]
    )
    query = gql(QUERY)
    query.variable_values = {"market": market, "after": follower.cursor}
    async with Client(transport=transport) as session:
        say(fact="connected")
        async for result in session.subscribe(query):
            if follower.apply(result["orderBook"]):
                return True
    return False


async def main(url, market, last_bid_size):
    follower = Follower(last_bid_size)
    for _ in range(MOST_TRIES):
        try:
            if await follow(url, market, follower):
                say(fact="done")
                return
            say(fact="closed")
        except (TransportConnectionFailed, OSError):
            say(fact="closed")
        except TransportError as error:
            say(fact="broken", why=str(error))
            sys.exit(1)
        await asyncio.sleep(BETWEEN_TRIES)
    say(fact="broken", why="never came to the end")
    sys.exit(1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
