// The stock npm client `graphql-ws`, unchanged, following one book. Nothing here reconnects or
// resumes: the client does, by its own retry and the getter in `extensions`.
//
//   node graphql_ws.mjs URL MARKET LAST_BID_SIZE
//
// Ends well once a bid of LAST_BID_SIZE was seen. Prints a line of JSON for each thing that
// happens; exits with 1 when a frame does not follow the one before.
import { Follower, QUERY, connect, fail, say } from './following.mjs';

const [url, market, lastBidSize] = process.argv.slice(2);
const client = connect(url);
const follower = new Follower(lastBidSize);
const results = client.iterate({
  query: QUERY,
  variables: { market },
  extensions: follower.extensions,
});
for await (const result of results) {
  if (result.errors) fail(result.errors);
  if (result.extensions?.cursor !== result.data.orderBook.cursor) {
    fail('extensions.cursor is not the cursor');
  }
  if (follower.take(result.data)) break;
}
say({ fact: 'done' });
await client.dispose();
