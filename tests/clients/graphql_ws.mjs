// The stock npm client `graphql-ws`, unchanged, following one book. Nothing here reconnects or
// resumes: the client does, by its own retry and the getter in `extensions`.
//
//   node graphql_ws.mjs URL MARKET LAST_BID_SIZE
//
// Ends well once a bid of LAST_BID_SIZE was seen. Prints a line of JSON for each thing that
// happens; exits with 1 when a frame does not follow the one before.
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

const [url, market, lastBidSize] = process.argv.slice(2);
const say = (fact) => process.stdout.write(`${JSON.stringify(fact)}\n`);
const fail = (why) => {
  say({ fact: 'broken', why });
  process.exit(1);
};

let cursor;
let position;

const client = createClient({
  url,
  webSocketImpl: WebSocket,
  retryAttempts: 1000,
  retryWait: () => new Promise((resolve) => setTimeout(resolve, 50)),
  on: {
    connected: () => say({ fact: 'connected' }),
    closed: (event) => say({ fact: 'closed', code: event.code }),
  },
});

const query = `subscription ($market: ID!) {
  orderBook(market: $market, depth: 25) {
    __typename epoch sequence cursor
    ... on BookSnapshot { reason bids { price size } }
    ... on BookDelta { prevSequence mergedEvents bids { price size } }
  }
}`;

const results = client.iterate({
  query,
  variables: { market },
  extensions: {
    cursor: true,
    // Read anew at each reconnect, since the client writes the message anew.
    get after() {
      return cursor;
    },
  },
});

for await (const result of results) {
  if (result.errors) fail(result.errors);
  const frame = result.data.orderBook;
  if (result.extensions?.cursor !== frame.cursor) fail('extensions.cursor is not the cursor');
  if (frame.__typename === 'BookDelta') {
    if (frame.epoch !== position?.epoch || frame.prevSequence !== position?.sequence) {
      fail({ after: position, came: frame });
    }
  }
  position = { epoch: frame.epoch, sequence: frame.sequence };
  cursor = frame.cursor;
  if (frame.__typename === 'BookHeartbeat') continue;
  say({ fact: frame.__typename, reason: frame.reason, sizes: frame.bids.map((bid) => bid.size) });
  if (frame.bids.some((bid) => bid.size === lastBidSize)) break;
}
say({ fact: 'done' });
await client.dispose();
