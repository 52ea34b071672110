// The stock Apollo Client, unchanged: queries over HTTP with persisted documents, subscriptions
// over graphql-ws, as its documentation sets it up. Nothing here reconnects or resumes: the link
// and the getter do.
//
//   node apollo_client.mjs URL MARKET LAST_BID_SIZE
import { ApolloClient, ApolloLink, HttpLink, InMemoryCache, gql } from '@apollo/client';
import { PersistedQueryLink } from '@apollo/client/link/persisted-queries';
import { GraphQLWsLink } from '@apollo/client/link/subscriptions';
import { getMainDefinition } from '@apollo/client/utilities';
import { createHash } from 'node:crypto';
import WebSocket from 'ws';

import { Follower, QUERY, connect, fail, say } from './following.mjs';

// Its link distinguishes a socket's errors by the browser's class, which Node has from 22 on.
globalThis.WebSocket ??= WebSocket;

const [url, market, lastBidSize] = process.argv.slice(2);
const socket = connect(url);
const requests = [];
const noted = (address, options) => {
  const brought = new URL(address).searchParams.has('query') || /"query":/.test(options.body ?? '');
  requests.push(`${options.method} ${brought ? 'document' : 'hash'}`);
  return fetch(address, options);
};
const client = new ApolloClient({
  cache: new InMemoryCache(),
  link: ApolloLink.split(
    ({ query }) => getMainDefinition(query).operation === 'subscription',
    new GraphQLWsLink(socket),
    ApolloLink.from([
      new PersistedQueryLink({
        sha256: (text) => createHash('sha256').update(text).digest('hex'),
        useGETForHashedQueries: true,
      }),
      new HttpLink({ uri: url.replace(/^ws/, 'http'), fetch: noted }),
    ]),
  ),
});

const query = gql`
  query ($market: ID!) {
    market(id: $market) {
      id
    }
  }
`;
for (const _ of [1, 2]) {
  const { data } = await client.query({ query, variables: { market }, fetchPolicy: 'no-cache' });
  if (data.market.id !== market) fail(data);
}
// Not known by its hash, so brought once; then named.
if (requests.join() !== 'GET hash,POST document,GET hash') fail(requests);
say({ fact: 'queried', requests });

const follower = new Follower(lastBidSize);
await new Promise((done) => {
  const following = client
    .subscribe({
      query: gql(QUERY),
      variables: { market },
      extensions: follower.extensions,
      fetchPolicy: 'no-cache',
    })
    .subscribe({
      // The link hands on what a result says, without its extensions.
      next: ({ data, error }) => {
        if (error) fail(String(error));
        if (!follower.take(data)) return;
        following.unsubscribe();
        done();
      },
      error: (error) => fail(String(error)),
    });
});
say({ fact: 'done' });
await socket.dispose();
