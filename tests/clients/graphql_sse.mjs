// The stock npm client `graphql-sse`, unchanged, in its mode of distinct connections, following one
// book. It reconnects by itself, and resumes by the header that an EventSource would send.
//
//   node graphql_sse.mjs URL MARKET LAST_BID_SIZE
import { createClient } from 'graphql-sse';

import { Follower, QUERY, fail, say } from './following.mjs';

const [url, market, lastBidSize] = process.argv.slice(2);
const follower = new Follower(lastBidSize);
const client = createClient({
  url: url.replace(/^ws/, 'http'),
  retryAttempts: 1000,
  retry: () => new Promise((resolve) => setTimeout(resolve, 50)),
  headers: () => {
    const cursor = follower.extensions.after;
    return cursor ? { 'last-event-id': cursor } : {};
  },
  on: {
    connecting: (again) => again && say({ fact: 'closed' }),
    connected: () => say({ fact: 'connected' }),
  },
});
for await (const result of client.iterate({ query: QUERY, variables: { market } })) {
  if (result.errors) fail(result.errors);
  if (follower.take(result.data)) break;
}
const query = client.iterate({ query: '{ __typename }' });
const { value } = await query.next();
if (value.data.__typename !== 'Query') fail(value);
if (!(await query.next()).done) fail('a query has one result');
say({ fact: 'done' });
client.dispose();
