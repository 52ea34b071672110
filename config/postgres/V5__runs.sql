-- What the outbox costs its writers and its readers is less. All hubs on one database change to it
-- together.

-- Rows that were numbered together stand in one row: the number of the first, and their ids in
-- order.
CREATE TABLE spreadly_runs (
    first bigint PRIMARY KEY,
    ids bigint[] NOT NULL CHECK (cardinality(ids) BETWEEN 1 AND 1024)
);
LOCK TABLE events IN ACCESS EXCLUSIVE MODE;
INSERT INTO spreadly_runs (first, ids)
SELECT min(position), array_agg(id ORDER BY position)
FROM (SELECT position, id, position - row_number() OVER (ORDER BY position) AS island FROM spreadly_positions) AS old
GROUP BY island, position / 1024 ORDER BY 1;
DROP TABLE spreadly_positions;
-- For people.
CREATE VIEW spreadly_positions AS
SELECT first + place - 1 AS position, id
FROM spreadly_runs, unnest(ids) WITH ORDINALITY AS numbered (id, place);

-- Numbers committed rows, at most `most`, and gives them in the order of their numbers, each with
-- the newest number that was given and how many were numbered now: whoever has read up to those
-- needs no second look. Only the counts where there are none, or more than `bytes` of payloads. A
-- transaction that commits late was not seen, so its rows are new whenever it commits; those of one
-- transaction come in their order, and behind those of any that had committed before it began to
-- write. Numbering transactions follow one another by the lock on the one row, so numbers become
-- visible in their order. Writers wait for none.
DROP FUNCTION spreadly_number;
CREATE FUNCTION spreadly_take(most integer, bytes bigint) RETURNS TABLE (
    newest bigint, numbered bigint,
    id bigint, payload json, inserted_at timestamptz, origin bigint, line integer
) LANGUAGE plpgsql
-- A table that grows this fast is never what its statistics say.
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off
-- Where a scan is not wanted and can't be helped, of the one row of spreadly_numbering, its price
-- is beyond all.
SET jit = off
-- Planning them anew costs more than they do.
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    own spreadly_numbering;
    begun_xact xid8;
    begun_id bigint;
BEGIN
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
    SELECT * INTO own FROM spreadly_numbering FOR UPDATE;
    IF own.round IS NULL THEN
        own.round := pg_current_snapshot();
    END IF;
    begun_xact := coalesce(own.round_xact, '0');
    begun_id := coalesce(own.round_id, 0);
    -- A statement of its own: it sees what whoever held the lock has numbered, and all that the
    -- round saw. Transactions that were under way at `seen` began before any that it did not know.
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
            -- One bound below, as a search of the index begins at one.
            WHERE (xact, id) > (
                    greatest(begun_xact, pg_snapshot_xmax(own.seen)),
                    CASE WHEN begun_xact >= pg_snapshot_xmax(own.seen) THEN begun_id ELSE 0 END)
                AND xact < pg_snapshot_xmax(own.round)
                AND pg_visible_in_snapshot(xact, own.round)
            ORDER BY xact, id LIMIT most
        ) AS new
        ORDER BY xact, id LIMIT most
    ), run AS MATERIALIZED (
        -- As they stand there: in that order.
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
            round_xact = CASE WHEN count = most THEN (SELECT xact FROM due ORDER BY xact DESC LIMIT 1) END,
            round_id = CASE WHEN count = most THEN ids[count] END
        FROM run
    )
    SELECT own.last + count, count, id, payload, inserted_at, origin, line
    FROM run LEFT JOIN due ON size <= bytes;
    IF own.last < (SELECT last FROM spreadly_numbering) THEN
        -- For other hubs. Only hubs wait for one another here.
        PERFORM pg_notify('spreadly_numbered', '');
    END IF;
END $$;

-- A database that was dumped and put back into another server has transactions of that one's
-- counting, which may be lower than what `seen` saw. Then every row that has no number is new.
CREATE OR REPLACE FUNCTION spreadly_adopt() RETURNS void LANGUAGE plpgsql AS $$
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
        SELECT own.last + min(place), array_agg(id ORDER BY place) FROM due GROUP BY (place - 1) / 1024
    )
    UPDATE spreadly_numbering
    SET last = own.last + (SELECT count(*) FROM due), seen = pg_current_snapshot(),
        round = NULL, round_xact = NULL, round_id = NULL;
    UPDATE events SET xact = NULL WHERE xact IS NOT NULL;
END $$;

-- Which insertions of hubs are in: a hub that does not know whether its commit came through inserts
-- the same again, and it counts once. Not an index of `events`, which every writer would pay for.
CREATE TABLE spreadly_insertions (origin bigint PRIMARY KEY);
INSERT INTO spreadly_insertions SELECT DISTINCT origin FROM events WHERE origin IS NOT NULL;
DROP INDEX events_origin;

-- Removes rows up to a number, as far back as every hub has read.
CREATE OR REPLACE FUNCTION spreadly_forget(until bigint) RETURNS bigint LANGUAGE sql AS $$
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

-- Whether to ring is asked where a row gets its transaction, in the plan of the insertion itself: a
-- trigger that asks costs a writer more. It is as before in all else: a writer rings only where it
-- does not get the lock that a sleeping hub holds alone, and shares it until its commit otherwise.
DROP TRIGGER spreadly_ring ON events;
DROP FUNCTION spreadly_ring;
CREATE FUNCTION spreadly_ring() RETURNS xid8 LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('spreadly_events', '');
    RETURN pg_current_xact_id();
END $$;
ALTER TABLE events ALTER COLUMN xact SET DEFAULT
    CASE WHEN pg_try_advisory_xact_lock_shared(1936749172, 1)
        THEN pg_current_xact_id() ELSE spreadly_ring() END;
