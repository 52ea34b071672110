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

// What is wrong, for people. Errors of GraphQL are shown as the hub sent them.
function inWords(fault) {
  if (Array.isArray(fault)) return fault;
  let text = fault.message;
  if (fault instanceof CloseEvent && fault.code !== 1006) {
    text = `The hub closed the connection with code ${fault.code}. ${fault.reason}`.trim();
  } else if (fault instanceof Event || fault instanceof TypeError) {
    text = `The hub at ${url.host} does not answer. Is it running?`;
  }
  // GraphiQL would show where in this script the error was made.
  return Object.assign(new Error(text), { stack: undefined });
}

const status = document.getElementById('status');
const client = createClient({
  url: socketUrl.href,
  retryAttempts: Infinity,
  // A hub that restarts refuses connections for a while. The library takes that for a fault that
  // stays, unless it is asked to try again.
  shouldRetry: () => true,
  retryWait: (retries) =>
    new Promise((resolve) => {
      setTimeout(resolve, Math.min(250 * 2 ** retries, 5_000) * (1 + Math.random() / 2));
    }),
  on: {
    connected: () => (status.textContent = ''),
    // 1000: nothing is followed any more.
    closed: (event) => {
      if (event.code === 1000) return;
      status.textContent = `${inWords(event).message} Connecting again…`;
    },
  },
});

async function ask(...request) {
  const answer = await fetch(...request).catch((fault) => {
    throw inWords(fault);
  });
  if (!answer.headers.get('content-type')?.includes('json')) {
    const code = `${answer.status} ${answer.statusText}`.trim();
    throw inWords(new Error(`Not the hub answered, but something before it: ${code}`));
  }
  return answer;
}

const fetcher = createGraphiQLFetcher({
  url: url.href,
  fetch: ask,
  wsClient: {
    ...client,
    subscribe: (payload, sink) =>
      client.subscribe(payload, { ...sink, error: (fault) => sink.error(inWords(fault)) }),
  },
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
