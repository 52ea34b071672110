// Pages of two origins in a real browser that ask a hub of a third one: by POST, by GET and by an
// EventSource.
//
//   node cors.mjs LISTED OTHER HUB
//
// Prints a line of JSON for each page, in this order.
import { chromium } from 'playwright-core';

import { say } from './following.mjs';

const [listed, other, hub] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
});

const ask = async (hub) => {
  const query = '{ __typename }';
  const read = async (asked) => (await asked).json();
  const post = (body) =>
    fetch(hub, {
      method: 'POST',
      // Of what clients send, what needs a preflight request.
      headers: {
        'content-type': 'application/json',
        accept: 'application/graphql-response+json',
        authorization: 'Bearer nobody',
        'apollo-require-preflight': '1',
      },
      body: JSON.stringify(body),
    });
  const words = (fault) => String(fault);
  const events = new Promise((resolve) => {
    const subscription = encodeURIComponent('subscription { feedStatus { name } }');
    const source = new EventSource(`${hub}?query=${subscription}`);
    source.addEventListener('next', (event) => resolve(JSON.parse(event.data)));
    source.addEventListener('error', () => resolve('error'));
  });
  return {
    post: await read(post({ query })).catch(words),
    get: await read(fetch(`${hub}?query=${encodeURIComponent(query)}`)).catch(words),
    refused: await post({ query: '{' }).then((answer) => answer.status, words),
    events: await events,
  };
};

for (const origin of [listed, other]) {
  const page = await browser.newPage();
  await page.goto(origin);
  say({ fact: 'page', ...(await page.evaluate(ask, hub)) });
  await page.close();
}
await browser.close();
