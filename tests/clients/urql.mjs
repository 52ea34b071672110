// The stock urql client, unchanged: queries over HTTP, subscriptions over graphql-ws, as its
// documentation sets it up. Nothing here reconnects or resumes: graphql-ws and the getter do.
//
//   node urql.mjs URL MARKET LAST_BID_SIZE
import { Client, fetchExchange, subscriptionExchange } from '@urql/core';

import { Follower, QUERY, connect, fail, say } from './following.mjs';

const [url, market, lastBidSize] = process.argv.slice(2);
const socket = connect(url);
const follower = new Follower(lastBidSize);
const client = new Client({
  url: url.replace(/^ws/, 'http'),
  preferGetMethod: false,
  exchanges: [
    subscriptionExchange({
      forwardSubscription: ({ query, variables }) => ({
        subscribe: (sink) => ({
          unsubscribe: socket.subscribe(
            { query, variables, extensions: follower.extensions },
            sink,
          ),
        }),
      }),
    }),
    fetchExchange,
  ],
});

const query = 'query ($market: ID!) { market(id: $market) { id } }';
const queried = await client.query(query, { market }).toPromise();
if (queried.error) fail(String(queried.error));
say({ fact: 'queried', market: queried.data.market.id });

await new Promise((done) => {
  const following = client.subscription(QUERY, { market }).subscribe(({ data, error }) => {
    if (error) fail(String(error));
    if (!follower.take(data)) return;
    following.unsubscribe();
    done();
  });
});
say({ fact: 'done' });
await socket.dispose();
