// The npm client `subscriptions-transport-ws`, which speaks the older subprotocol `graphql-ws`, as
// it was last released. Nothing here reconnects or resumes: it sends each operation again by
// itself, and so reads the getter in `extensions` again.
//
//   node subscriptions_transport_ws.mjs URL MARKET LAST_BID_SIZE
import { SubscriptionClient } from 'subscriptions-transport-ws';
import WebSocket from 'ws';

import { Follower, QUERY, fail, say } from './following.mjs';

const [url, market, lastBidSize] = process.argv.slice(2);
const client = new SubscriptionClient(
  url,
  { reconnect: true, reconnectionAttempts: 1000, minTimeout: 10_000 },
  WebSocket,
);
client.onConnected(() => say({ fact: 'connected' }));
client.onReconnected(() => say({ fact: 'connected' }));
client.onDisconnected(() => say({ fact: 'closed' }));

const query = 'query ($market: ID!) { market(id: $market) { id } }';
client.request({ query, variables: { market } }).subscribe({
  next: ({ data, errors }) =>
    errors ? fail(errors) : say({ fact: 'queried', market: data.market.id }),
  error: (error) => fail(String(error)),
});

const follower = new Follower(lastBidSize);
const following = client
  .request({ query: QUERY, variables: { market }, extensions: follower.extensions })
  .subscribe({
    next: ({ data, errors }) => {
      if (errors) fail(errors);
      if (!follower.take(data)) return;
      following.unsubscribe();
      say({ fact: 'done' });
      client.close();
    },
    error: (error) => fail(String(error)),
  });
