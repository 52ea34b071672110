// The audits of npm `graphql-http`, unchanged: what a server of GraphQL over HTTP must, should and
// may do. Prints a line of JSON for each.
//
//   node graphql_http.mjs URL
import { serverAudits } from 'graphql-http';

const [url] = process.argv.slice(2);
for (const audit of serverAudits({ url })) {
  const { id, name, status, reason } = await audit.fn();
  process.stdout.write(`${JSON.stringify({ fact: 'audit', id, name, status, reason })}\n`);
}
process.stdout.write(`${JSON.stringify({ fact: 'done' })}\n`);
