// The stock npm client `graphql-ws`, unchanged, with many operations on one socket, each opened
// once the one before has its first result. After a cut it opens all of them again at once, by
// itself.
//
//   node many_operations.mjs URL COUNT
//
// Says `open` when all have a result; after a cut `again` when all have one more, and `live` when
// each was sent an event.
import { connect, fail, say } from './following.mjs';

const [url, count] = process.argv.slice(2);
const client = connect(url);
let waiting = new Set();
const silent = new Set(Array(Number(count)).keys());
let live;
const done = new Promise((resolve) => (live = resolve));

const open = (number) =>
  new Promise((first) => {
    const query = `subscription { events(topic: "t${number}") { events { data } } }`;
    client.subscribe(
      { query },
      {
        next: (result) => {
          if (result.errors) fail({ number, errors: result.errors });
          first();
          if (waiting.delete(number) && waiting.size === 0) say({ fact: 'again' });
          const [event] = result.data.events.events;
          if (!event) return;
          if (event.data !== number) fail({ number, event });
          if (silent.delete(number) && silent.size === 0) live();
        },
        error: (error) => fail({ number, error: String(error.message ?? JSON.stringify(error)) }),
        complete: () => fail({ number, completed: true }),
      },
    );
  });

for (let number = 0; number < Number(count); number += 1) await open(number);
client.on('closed', () => {
  waiting = new Set(Array(Number(count)).keys());
});
say({ fact: 'open', count: Number(count) });
await done;
say({ fact: 'live' });
process.exit(0);
