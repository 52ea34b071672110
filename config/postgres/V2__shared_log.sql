-- Where hubs keep their log in this database (store.url), what clients and the feeds of a hub bring
-- is inserted by the hub itself, and goes out to every hub like everyone's rows.

-- Which insertion of a hub a row is of, and which line of it. A hub that does not know whether its
-- commit came through inserts the same again: it counts once. Rows of others have neither, and are
-- not in the index.
ALTER TABLE events ADD COLUMN origin bigint, ADD COLUMN line integer;
CREATE UNIQUE INDEX events_origin ON events (origin, line) WHERE origin IS NOT NULL;

-- What hubs bring in: a watched folder, a partition of Kafka. Whoever reads it writes only while it
-- is `reader`, and holds the row until its commit; whoever takes it over waits for that.
CREATE TABLE spreadly_sources (
    feed text PRIMARY KEY,
    reader bigint NOT NULL,
    -- How far it is read, where it numbers its events.
    epoch bigint,
    position bigint
);

-- How far each file of a folder is read.
CREATE SEQUENCE spreadly_moves;
CREATE TABLE spreadly_files (
    feed text NOT NULL REFERENCES spreadly_sources,
    stream bigint NOT NULL,
    state json NOT NULL,
    -- Rises with each write, over all rows.
    moved bigint NOT NULL DEFAULT nextval('spreadly_moves'),
    PRIMARY KEY (feed, stream)
);
