-- The log in SQLite: src/store.

-- `reserved`: no sequence above it was given out. `indexed`: the event up to which `runs` is
-- complete.
CREATE TABLE log (
    epoch INTEGER NOT NULL,
    reserved INTEGER NOT NULL DEFAULT 0,
    indexed INTEGER NOT NULL DEFAULT 0
) STRICT;

-- A row never changes. A rollback moves it to `undone`. An `id` is unique within its topic and
-- kind. A row without an `id` has no `kind`. If the block of this `height` is removed, the event is
-- too.
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    id TEXT,
    kind TEXT,
    body TEXT NOT NULL,
    received_micros INTEGER NOT NULL,
    height INTEGER
) STRICT;
CREATE UNIQUE INDEX events_id ON events (id, kind, topic) WHERE id IS NOT NULL;
CREATE INDEX events_height ON events (height) WHERE height IS NOT NULL;

-- Which events each topic has. No two runs of a topic overlap; `last` is the last sequence of its
-- run.
CREATE TABLE runs (
    topic TEXT NOT NULL,
    last INTEGER NOT NULL,
    sequences BLOB NOT NULL,
    PRIMARY KEY (topic, last)
) STRICT, WITHOUT ROWID;

-- States of markets, so that a start need not replay the log from its begin. Safe to lose.
CREATE TABLE checkpoints (
    topic TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    state BLOB NOT NULL,
    PRIMARY KEY (topic, sequence)
) STRICT;

-- Which sources each topic had events of: a file of a feed, a partition. Safe to lose.
CREATE TABLE topic_sources (
    topic TEXT NOT NULL,
    feed TEXT NOT NULL,
    source TEXT NOT NULL,
    PRIMARY KEY (topic, feed, source)
) STRICT, WITHOUT ROWID;

-- How far each file of a feed is read. `moved` rises over all rows. Without it files are read
-- again.
CREATE TABLE files (
    feed TEXT NOT NULL,
    stream INTEGER NOT NULL,
    name TEXT NOT NULL,
    device INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    line INTEGER NOT NULL,
    head_bytes INTEGER NOT NULL,
    head_hash INTEGER NOT NULL,
    tail_bytes INTEGER NOT NULL,
    tail_hash INTEGER NOT NULL,
    moved INTEGER NOT NULL,
    PRIMARY KEY (feed, stream)
) STRICT, WITHOUT ROWID;

-- How far a feed is read whose source numbers its events. `mark` is a hash of what was read last.
CREATE TABLE feed_positions (
    feed TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    mark INTEGER
) STRICT, WITHOUT ROWID;

-- Each order in its current state. `placed` is the sequence of its placement.
CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    placed INTEGER NOT NULL,
    market TEXT NOT NULL,
    account TEXT,
    side TEXT NOT NULL,
    status TEXT NOT NULL,
    open INTEGER NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE INDEX orders_placed ON orders (placed);
CREATE INDEX orders_market ON orders (market, placed);
CREATE INDEX orders_account ON orders (account, placed) WHERE account IS NOT NULL;
CREATE INDEX orders_open ON orders (market, placed) WHERE open = 1;
CREATE INDEX orders_account_open ON orders (account, placed) WHERE open = 1;

-- The state of an order after each of its events.
CREATE TABLE order_updates (
    sequence INTEGER PRIMARY KEY,
    state TEXT NOT NULL
) STRICT;

-- Further topics of an event: those of an order's account.
CREATE TABLE event_topics (
    topic TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (topic, sequence)
) STRICT, WITHOUT ROWID;

-- Events that a reorganisation removed, and the event that removed each. For operators to look at.
CREATE TABLE undone (
    sequence INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    id TEXT,
    body TEXT NOT NULL,
    received_micros INTEGER NOT NULL,
    height INTEGER,
    undone_by INTEGER NOT NULL
) STRICT;

-- The epoch that each rollback or gap began, of each scope of topics that it touched.
CREATE TABLE epoch_changes (
    scope TEXT NOT NULL,
    at INTEGER NOT NULL,
    first INTEGER NOT NULL,
    PRIMARY KEY (scope, at)
) STRICT, WITHOUT ROWID;
CREATE INDEX epoch_changes_at ON epoch_changes (at);
