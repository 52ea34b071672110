// GraphiQL in a real browser that can reach nothing but the hub: what is served at `/`, its default
// subscription and its default query, by the buttons a person would press.
//
//   node graphiql.mjs ORIGIN SCREENSHOT
//
// Prints a line of JSON for each thing it saw. A change of the response, or of the line that says
// what is wrong, is printed until the standard input ends. Then the subscription is stopped and the
// query run. At last the page is opened as a phone would open it.
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
  // The hub is away for a while.
  if (message.type() === 'error' && !message.text().includes('ERR_CONNECTION_')) {
    faults.push(message.text());
  }
});

// What a person sees; the editor draws blanks as unbreakable ones.
const shown = () =>
  page.evaluate(() =>
    (document.querySelector('.graphiql-response .view-lines')?.innerText ?? '').replaceAll('\u00a0', ' '),
  );
const execute = page.locator('.graphiql-execute-button');

await page.goto(`${origin}/`);
await execute.waitFor();
// The editor loads its workers late, and the hub will be away.
await page.waitForLoadState('networkidle');
say({ fact: 'loaded', path: new URL(page.url()).pathname });

await execute.click();
let ended = false;
process.stdin.on('end', () => (ended = true)).resume();
let last = '';
let lastStatus = '';
while (!ended) {
  const text = await shown();
  if (text !== last) say({ fact: 'response', text });
  last = text;
  const status = await page.locator('#status').innerText();
  if (status !== lastStatus) say({ fact: 'status', text: status });
  lastStatus = status;
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

const phone = await browser.newPage({ viewport: { width: 390, height: 844 } });
// Deltas may follow the snapshot of an earlier client at once, so that nobody can see it.
const snapshot = phone.waitForEvent('websocket').then((socket) =>
  socket.waitForEvent('framereceived', ({ payload }) => payload.includes('BookSnapshot')),
);
await phone.goto(`${origin}/graphiql`);
await phone.locator('.graphiql-execute-button').click();
await snapshot;
const frame = /"Book(Snapshot|Delta|Heartbeat)"/;
await phone.locator('.graphiql-response .view-lines').getByText(frame).waitFor();
const boxes = {};
for (const part of ['.graphiql-query-editor', '.graphiql-response', '.graphiql-execute-button']) {
  boxes[part] = await phone.locator(part).boundingBox();
}
const scrollWidth = await phone.evaluate(() => document.documentElement.scrollWidth);
await phone.screenshot({ path: screenshot.replace('.png', '-phone.png') });
say({ fact: 'phone', boxes, scrollWidth });
say({ fact: 'done', foreign });
await browser.close();
