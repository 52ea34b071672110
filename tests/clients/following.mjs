// What every script does with the frames of one book: it says each as a line of JSON, ends the
// process with 1 when a frame does not follow the one before, and keeps the cursor to resume by.
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

export const say = (fact) => process.stdout.write(`${JSON.stringify(fact)}\n`);
export const fail = (why) => {
  say({ fact: 'broken', why });
  process.exit(1);
};

/// The stock client of graphql-transport-ws, that Apollo Client and urql are set up with too.
export const connect = (url) =>
  createClient({
    url,
    webSocketImpl: WebSocket,
    retryAttempts: 1000,
    // By default it gives up at a connection that is refused, as while a hub restarts.
    shouldRetry: () => true,
    retryWait: () => new Promise((resolve) => setTimeout(resolve, 50)),
    on: {
      connected: () => say({ fact: 'connected' }),
      closed: (event) => say({ fact: 'closed', code: event.code }),
    },
  });

export const QUERY = `subscription ($market: ID!) {
  orderBook(market: $market, depth: 25) {
    __typename
    ... on BookFrame { epoch sequence cursor }
    ... on BookSnapshot { reason bids { price size } }
    ... on BookDelta { prevSequence mergedEvents bids { price size } }
  }
}`;

export class Follower {
  #lastBidSize;
  #cursor;
  #position;

  constructor(lastBidSize) {
    this.#lastBidSize = lastBidSize;
    const cursor = () => this.#cursor;
    this.extensions = {
      cursor: true,
      // Read at each reconnect, since the client writes the message again.
      get after() {
        return cursor();
      },
    };
  }

  /// Whether this was the last frame awaited.
  take({ orderBook: frame }) {
    if (frame.__typename === 'BookDelta') {
      if (frame.epoch !== this.#position?.epoch || frame.prevSequence !== this.#position.sequence) {
        fail({ after: this.#position, came: frame });
      }
    }
    this.#position = { epoch: frame.epoch, sequence: frame.sequence };
    this.#cursor = frame.cursor;
    if (frame.__typename === 'BookHeartbeat') return false;
    say({ fact: frame.__typename, reason: frame.reason, sizes: frame.bids.map((bid) => bid.size) });
    return frame.bids.some((bid) => bid.size === this.#lastBidSize);
  }
}
