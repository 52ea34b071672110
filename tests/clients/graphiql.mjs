// GraphiQL in a real browser that can reach nothing but the hub: what is served at `/`, its default
// subscription and its default query, by the buttons a person would press.
//
//   node graphiql.mjs ORIGIN SCREENSHOT
//
// Prints a line of JSON for each thing it saw. A change of the response is printed until the
// standard input ends; then the subscription is stopped and the query run.
import { chromium } from 'playwright-core';

import { fail, say } from './following.mjs';

const [origin, screenshot] = process.argv.slice(2);
const DEADLINE_MS = 60_000;
const MOST_TRIES = 100;
const LOOKS_A_TRY = 100;

const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    // No name can be looked up, so nothing but the hub's address can be reached.
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
  ],
});
const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
page.setDefaultTimeout(DEADLINE_MS);
const faults = [];
const foreign = [];
const sockets = [];
page.on('request', (request) => {
  const { protocol, origin: asked } = new URL(request.url());
  if (!['data:', 'blob:'].includes(protocol) && asked !== origin) foreign.push(request.url());
});
page.on('websocket', (socket) => sockets.push(socket.url()));
page.on('pageerror', (error) => faults.push(String(error)));
// Breaches of the page's policy are among them.
page.on('console', (message) => {
  if (message.type() === 'error') faults.push(message.text());
});

// What a person sees; the editor draws blanks as unbreakable ones.
const shown = () =>
  page.evaluate(() =>
    (document.querySelector('.graphiql-response .view-lines')?.innerText ?? '').replaceAll('\u00a0', ' '),
  );
const execute = page.locator('.graphiql-execute-button');

await page.goto(`${origin}/`);
await execute.waitFor();
say({ fact: 'loaded', path: new URL(page.url()).pathname });

await execute.click();
let ended = false;
process.stdin.on('end', () => (ended = true)).resume();
let last = '';
while (!ended) {
  const text = await shown();
  if (text !== last) say({ fact: 'response', text });
  last = text;
  await new Promise((resolve) => setTimeout(resolve, 20));
}
await page.screenshot({ path: screenshot });
say({ fact: 'followed', sockets });
// The button stops what it has started.
await execute.click();
if (faults.length > 0) fail(faults);

await page.getByRole('tab', { name: 'Markets' }).click();
// For a moment GraphiQL still asks for the operation of the tab before, and the answer says that
// none has this name: then the button is pressed again.
let text = '';
for (let tries = 0; !text.includes('lotSize') && tries < MOST_TRIES; tries += 1) {
  await execute.click();
  for (let looks = 0; !text.includes('lotSize') && looks < LOOKS_A_TRY; looks += 1) {
    text = await shown();
  }
}
say({ fact: 'queried', text });
say({ fact: 'done', foreign });
await browser.close();
