// The page at /graphiql: the stock GraphiQL on the hub that served it, queries by POST and
// subscriptions over graphql-transport-ws, both on the page's own origin.
import 'graphiql/style.css';
import './page.css';

import { createGraphiQLFetcher } from '@graphiql/toolkit';
import { GraphiQL } from 'graphiql';
import { createClient } from 'graphql-ws';
import { createRoot } from 'react-dom/client';

// The build puts each worker's address in place of these names.
const WORKERS = { json: JSON_WORKER, graphql: GRAPHQL_WORKER };
globalThis.MonacoEnvironment = {
  getWorker: (_id, label) => new Worker(WORKERS[label] ?? EDITOR_WORKER),
};

const url = new URL('/graphql', location.href);
const socketUrl = new URL(url);
socketUrl.protocol = url.protocol.replace('http', 'ws');
const fetcher = createGraphiQLFetcher({
  url: url.href,
  wsClient: createClient({ url: socketUrl.href, retryAttempts: Infinity }),
  enableIncrementalDelivery: false,
});

// A market that this hub has, so that the first document runs unchanged.
async function someMarket() {
  const query = '{ markets { id } }';
  const found = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: 'application/json' },
    body: JSON.stringify({ query }),
  }).then((reply) => reply.json());
  return found.data?.markets[0]?.id ?? 'ERG-USD';
}

const subscription = (market) => `# The first frame is a snapshot. Each later frame has what changed since
# the frame before: its prevSequence is the last sequence you saw.
# A size of 0 removes its level.
subscription Book {
  orderBook(market: "${market}", depth: 10) {
    __typename
    ... on BookFrame { sequence checksum eventTime }
    ... on BookSnapshot {
      reason
      bids { price size }
      asks { price size }
    }
    ... on BookDelta {
      prevSequence
      mergedEvents
      bids { price size }
      asks { price size }
    }
    ... on BookHeartbeat { state lastEventAgeMs }
  }
}
`;

const QUERY = `query Markets {
  markets {
    id
    tickSize
    lotSize
  }
  feeds {
    name
    state
    lastEventTime
  }
}
`;

const market = await someMarket().catch(() => 'ERG-USD');
createRoot(document.getElementById('graphiql')).render(
  <GraphiQL fetcher={fetcher} defaultTabs={[{ query: subscription(market) }, { query: QUERY }]} />,
);
