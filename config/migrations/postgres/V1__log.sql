-- The outbox: one row for each event, inserted in the writer's own transaction by a plain INSERT or
-- by spreadly_publish(). A hub numbers committed rows and reads them in the order of their numbers.
-- Where several hubs keep their log in this database (store.url), hubs insert rows too.

-- A writer rings only while a hub sleeps, because NOTIFY serialises the commits of all who use it.
-- A sleeping hub holds the advisory lock exclusively. A writer that gets the lock shares it until
-- its commit, and no hub falls asleep before that.
CREATE FUNCTION spreadly_ring() RETURNS xid8 LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('spreadly_events', '');
    RETURN pg_current_xact_id();
END $$;

CREATE TABLE events (
    -- The order of rows of one writer. It is not the order of commits: see spreadly_runs.
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- One event as docs/reference/protocol.md has it.
    payload json NOT NULL,
    inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Of a hub's rows: which insertion, and which line of it.
    origin bigint,
    line integer,
    -- Leave it to its default, which is the writer's transaction, and rings. A trigger would cost a
    -- writer more. NULL: spreadly_adopt() has numbered the row.
    xact xid8 DEFAULT
        CASE WHEN pg_try_advisory_xact_lock_shared(1936749172, 1)
            THEN pg_current_xact_id() ELSE spreadly_ring() END
);
CREATE INDEX events_xact ON events (xact, id);

-- Publishes an event and returns the id of its row. `kind` and `market` in `payload` take
-- precedence.
CREATE FUNCTION spreadly_publish(kind text, market text, payload json DEFAULT '{}')
RETURNS bigint LANGUAGE sql AS $$
    INSERT INTO events (payload)
    VALUES ((jsonb_strip_nulls(jsonb_build_object('kind', kind, 'market', market))
             || payload::jsonb)::json)
    RETURNING id
$$;

-- One row: the newest number, and the epoch of the numbers.
CREATE TABLE spreadly_numbering (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL,
    last bigint NOT NULL DEFAULT 0,
    -- All rows that it sees have a number.
    seen pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
    -- The rows that are being numbered now, where that takes several calls: all that this one sees,
    round pg_snapshot,
    -- and how far.
    round_xact xid8,
    round_id bigint
);
INSERT INTO spreadly_numbering (epoch)
VALUES (('x' || md5(random()::text || clock_timestamp()::text || pg_backend_pid()::text))
    ::bit(64)::bigint);

-- The rows that were numbered together: the number of the first, and their ids in order. A number
-- in the row itself would write each row and its indexes a second time.
CREATE TABLE spreadly_runs (
    first bigint PRIMARY KEY,
    ids bigint[] NOT NULL CHECK (cardinality(ids) BETWEEN 1 AND 1024)
);
-- For people.
CREATE VIEW spreadly_positions AS
SELECT first + place - 1 AS position, id
FROM spreadly_runs, unnest(ids) WITH ORDINALITY AS numbered (id, place);

-- Numbers committed rows, at most `most`, and returns them in the order of their numbers. Each row
-- has the newest number and how many rows were numbered now, so a hub that has read up to those
-- needs no second call. It returns only the counts where there are no rows, or more than `bytes` of
-- payloads. A transaction that commits late was not seen, so its rows are new whenever it commits.
-- The rows of one transaction keep their order, and come after those of any that had committed
-- before it began to write. The lock on the one row of spreadly_numbering makes numbering
-- transactions follow one another, so numbers become visible in order. Writers wait for none of
-- them. `look_first`: nothing is locked or written where there are no new rows.
CREATE FUNCTION spreadly_take(most integer, bytes bigint, look_first boolean)
RETURNS TABLE (
    newest bigint, numbered bigint,
    id bigint, payload json, inserted_at timestamptz, origin bigint, line integer
) LANGUAGE plpgsql
-- The statistics of a table that grows this fast are always out of date.
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off
-- The scan of spreadly_numbering can't be avoided, and `enable_seqscan` makes it look expensive
-- enough to compile.
SET jit = off
-- Planning costs more than running.
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    own spreadly_numbering;
    begun_xact xid8;
    begun_id bigint;
BEGIN
    IF look_first THEN
        SELECT * INTO own FROM spreadly_numbering;
        IF own.round IS NULL
            AND (SELECT xact FROM events WHERE xact IS NOT NULL ORDER BY xact DESC LIMIT 1)
                < pg_snapshot_xmax(own.seen)
            AND NOT EXISTS (
                SELECT FROM events WHERE xact = ANY (ARRAY(SELECT pg_snapshot_xip(own.seen)))
            )
        THEN
            newest := own.last;
            numbered := 0;
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    SELECT * INTO own FROM spreadly_numbering FOR UPDATE;
    IF own.round IS NULL THEN
        own.round := pg_current_snapshot();
    END IF;
    begun_xact := coalesce(own.round_xact, '0');
    begun_id := coalesce(own.round_id, 0);
    -- A separate statement, so that it sees what the last holder of the lock numbered, and all that
    -- the round saw. Transactions that ran at `seen` began before any transaction that it did not
    -- see.
    RETURN QUERY WITH due AS MATERIALIZED (
        SELECT * FROM (
            SELECT row.*
            FROM (
                    SELECT xact FROM pg_snapshot_xip(own.seen) AS late (xact)
                    WHERE xact >= begun_xact AND pg_visible_in_snapshot(xact, own.round)
                    ORDER BY xact
                ) AS late,
                LATERAL (
                    SELECT xact, id, payload, inserted_at, origin, line FROM events
                    WHERE events.xact = late.xact
                        AND id > CASE WHEN late.xact = begun_xact THEN begun_id ELSE 0 END
                    ORDER BY id LIMIT most
                ) AS row
            LIMIT most
        ) AS late
        UNION ALL
        SELECT * FROM (
            SELECT xact, id, payload, inserted_at, origin, line FROM events
            -- One lower bound, because a search of the index begins at one.
            WHERE (xact, id) > (
                    greatest(begun_xact, pg_snapshot_xmax(own.seen)),
                    CASE WHEN begun_xact >= pg_snapshot_xmax(own.seen) THEN begun_id ELSE 0 END)
                AND xact < pg_snapshot_xmax(own.round)
                AND pg_visible_in_snapshot(xact, own.round)
            ORDER BY xact, id LIMIT most
        ) AS new
        ORDER BY xact, id LIMIT most
    ), run AS MATERIALIZED (
        -- In the order of `due`.
        SELECT array_agg(id) AS ids, count(*) AS count,
            coalesce(sum(octet_length(payload::text)), 0) AS size
        FROM due
    ), placed AS (
        INSERT INTO spreadly_runs (first, ids) SELECT own.last + 1, ids FROM run WHERE count > 0
    ), counted AS (
        UPDATE spreadly_numbering
        SET last = own.last + count,
            seen = CASE WHEN count < most THEN own.round ELSE own.seen END,
            round = CASE WHEN count = most THEN own.round END,
            round_xact = CASE WHEN count = most
                THEN (SELECT xact FROM due ORDER BY xact DESC LIMIT 1) END,
            round_id = CASE WHEN count = most THEN ids[count] END
        FROM run
        -- For other hubs. Only hubs wait for one another because of it.
        RETURNING CASE WHEN count > 0 THEN pg_notify('spreadly_numbered', '') END
    )
    SELECT own.last + count, count, id, payload, inserted_at, origin, line
    FROM run LEFT JOIN due ON size <= bytes;
END $$;

-- A database that was dumped and restored into another server has that server's transaction ids,
-- which may be lower than what `seen` saw. Then every row without a number is new.
CREATE FUNCTION spreadly_adopt() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    own spreadly_numbering;
BEGIN
    SELECT * INTO own FROM spreadly_numbering;
    IF pg_snapshot_xmax(own.seen) <= pg_snapshot_xmax(pg_current_snapshot()) THEN
        RETURN;
    END IF;
    LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO own FROM spreadly_numbering FOR UPDATE;
    IF pg_snapshot_xmax(own.seen) <= pg_snapshot_xmax(pg_current_snapshot()) THEN
        RETURN;
    END IF;
    WITH due AS (
        SELECT id, row_number() OVER (ORDER BY id) AS place FROM events
        WHERE NOT EXISTS (SELECT FROM spreadly_positions WHERE spreadly_positions.id = events.id)
    ), placed AS (
        INSERT INTO spreadly_runs (first, ids)
        SELECT own.last + min(place), array_agg(id ORDER BY place)
        FROM due GROUP BY (place - 1) / 1024
    )
    UPDATE spreadly_numbering
    SET last = own.last + (SELECT count(*) FROM due), seen = pg_current_snapshot(),
        round = NULL, round_xact = NULL, round_id = NULL;
    UPDATE events SET xact = NULL WHERE xact IS NOT NULL;
END $$;

-- Insertions of hubs that were committed: a hub that does not know whether its commit succeeded
-- inserts the same rows again, and they count once. A table, because every writer would pay for an
-- index of `events`.
CREATE TABLE spreadly_insertions (origin bigint PRIMARY KEY);

-- Removes the rows up to a number. Use it as far as every hub has read.
CREATE FUNCTION spreadly_forget(until bigint) RETURNS bigint LANGUAGE sql AS $$
    WITH gone AS MATERIALIZED (
        SELECT id FROM spreadly_runs, unnest(ids[:until - first + 1]) AS id WHERE first <= until
    ), runs AS (
        DELETE FROM spreadly_runs WHERE first <= until AND first + cardinality(ids) - 1 <= until
    ), cut AS (
        UPDATE spreadly_runs SET first = until + 1, ids = ids[until - first + 2:]
        WHERE first <= until AND first + cardinality(ids) - 1 > until
    ), rows AS (
        DELETE FROM events USING gone WHERE events.id = gone.id RETURNING origin
    ), insertions AS (
        DELETE FROM spreadly_insertions USING rows WHERE spreadly_insertions.origin = rows.origin
    )
    SELECT count(*) FROM gone
$$;

-- What hubs read: a watched folder, a partition of Kafka. A hub writes here only while it is
-- `reader`, and holds the row until its commit; a hub that takes the source over waits for that.
CREATE TABLE spreadly_sources (
    feed text PRIMARY KEY,
    reader bigint NOT NULL,
    -- How far it is read, where it numbers its events.
    epoch bigint,
    position bigint,
    -- When its reader last renewed its lease on a partition of Kafka. Unused for a folder: the hub
    -- that begins to read a folder takes it over.
    renewed timestamptz NOT NULL DEFAULT '-infinity',
    -- A hash of what was read last. It distinguishes a topic that was created again.
    mark bigint
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

-- The hubs that share this log. Each renews its row every few seconds, and compares itself with the
-- others. A row that nobody renews is deleted.
CREATE TABLE spreadly_hubs (
    reader bigint PRIMARY KEY,
    host text NOT NULL,
    release text NOT NULL,
    -- The settings that must be equal on all hubs: each with its sorted values.
    settings json NOT NULL,
    -- How far the hub's clock is ahead of this database's. NULL: not measured yet.
    clock_micros bigint,
    seen timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A hash of the names of the partitions that it can read, and when it last said so. Hubs that
    -- can read the same partitions share them.
    claims bigint,
    claimed timestamptz
);
