-- A row's number stands beside it instead of in it: numbering no longer writes each row and its
-- indexes a second time. Which rows are new is known by their transactions: those that `seen` did
-- not see.

CREATE TABLE spreadly_positions (
    position bigint PRIMARY KEY,
    -- Of the row of events.
    id bigint NOT NULL
);

LOCK TABLE events IN ACCESS EXCLUSIVE MODE;
INSERT INTO spreadly_positions (position, id)
SELECT position, id FROM events WHERE position IS NOT NULL ORDER BY position;
WITH due AS (
    SELECT id, row_number() OVER (ORDER BY id) AS place FROM events WHERE position IS NULL
), placed AS (
    INSERT INTO spreadly_positions (position, id)
    SELECT last + place, due.id FROM due, spreadly_numbering ORDER BY place
)
UPDATE spreadly_numbering SET last = last + (SELECT count(*) FROM due);

-- With its indexes.
ALTER TABLE events DROP COLUMN position;
-- Leave it to its default. NULL: from before, and numbered.
ALTER TABLE events ADD COLUMN xact xid8;
ALTER TABLE events ALTER COLUMN xact SET DEFAULT pg_current_xact_id();
CREATE INDEX events_xact ON events (xact, id);
ALTER TABLE events RESET (fillfactor, autovacuum_vacuum_scale_factor);

ALTER TABLE spreadly_numbering
    -- All that it saw has a number.
    ADD COLUMN seen pg_snapshot,
    -- What is being numbered now, where that takes several calls: all that this one saw,
    ADD COLUMN round pg_snapshot,
    -- and how far.
    ADD COLUMN round_xact xid8,
    ADD COLUMN round_id bigint;
UPDATE spreadly_numbering SET seen = pg_current_snapshot();
ALTER TABLE spreadly_numbering ALTER COLUMN seen SET NOT NULL;

-- Numbers up to `most` committed rows; gives the newest number. A transaction that commits late was
-- not seen, so its rows are new whenever it commits; those of one transaction come in their order,
-- and behind those of any that had committed before it began to write. Numbering transactions
-- follow one another by the lock on the one row, so numbers become visible in their order. Writers
-- wait for none.
CREATE OR REPLACE FUNCTION spreadly_number(most integer) RETURNS bigint LANGUAGE plpgsql
-- A table that grows this fast is never what its statistics say.
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off
-- Where a scan is not wanted and can't be helped, of the one row of spreadly_numbering, its price
-- is beyond all.
SET jit = off
-- Planning them anew costs more than they do.
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    own spreadly_numbering;
    begun_xact xid8;
    begun_id bigint;
    numbered bigint;
    last_xact xid8;
    last_id bigint;
BEGIN
    SELECT * INTO own FROM spreadly_numbering;
    IF own.round IS NULL
        AND (SELECT max(xact) FROM events) < pg_snapshot_xmax(own.seen)
        AND NOT EXISTS (
            SELECT FROM events WHERE xact = ANY (ARRAY(SELECT pg_snapshot_xip(own.seen)))
        )
    THEN
        RETURN own.last;
    END IF;
    SELECT * INTO own FROM spreadly_numbering FOR UPDATE;
    IF own.round IS NULL THEN
        own.round := pg_current_snapshot();
    END IF;
    begun_xact := coalesce(own.round_xact, '0');
    begun_id := coalesce(own.round_id, 0);
    -- A statement of its own: it sees what whoever held the lock has numbered, and all that the
    -- round saw. Transactions that were under way at `seen` began before any that it did not know.
    WITH due AS (
        SELECT xact, id FROM (
            SELECT row.xact, row.id
            FROM (
                    SELECT xact FROM pg_snapshot_xip(own.seen) AS late (xact)
                    WHERE xact >= begun_xact AND pg_visible_in_snapshot(xact, own.round)
                    ORDER BY xact
                ) AS late,
                LATERAL (
                    SELECT xact, id FROM events
                    WHERE events.xact = late.xact
                        AND id > CASE WHEN late.xact = begun_xact THEN begun_id ELSE 0 END
                    ORDER BY id LIMIT most
                ) AS row
            LIMIT most
        ) AS late
        UNION ALL
        SELECT xact, id FROM (
            SELECT xact, id FROM events
            -- One bound below, as a search of the index begins at one.
            WHERE (xact, id) > (
                    greatest(begun_xact, pg_snapshot_xmax(own.seen)),
                    CASE WHEN begun_xact >= pg_snapshot_xmax(own.seen) THEN begun_id ELSE 0 END)
                AND xact < pg_snapshot_xmax(own.round)
                AND pg_visible_in_snapshot(xact, own.round)
            ORDER BY xact, id LIMIT most
        ) AS new
        LIMIT most
    ), placed AS (
        INSERT INTO spreadly_positions (position, id)
        SELECT own.last + row_number() OVER (ORDER BY xact, id), id FROM due ORDER BY xact, id
    )
    SELECT count(*), max(xact), (array_agg(id ORDER BY xact DESC, id DESC))[1]
    INTO numbered, last_xact, last_id FROM due;
    IF numbered < most THEN
        UPDATE spreadly_numbering
        SET last = own.last + numbered, seen = own.round,
            round = NULL, round_xact = NULL, round_id = NULL;
    ELSE
        UPDATE spreadly_numbering
        SET last = own.last + numbered,
            round = own.round, round_xact = last_xact, round_id = last_id;
    END IF;
    IF numbered > 0 THEN
        -- For other hubs. Only hubs wait for one another here.
        PERFORM pg_notify('spreadly_numbered', '');
    END IF;
    RETURN own.last + numbered;
END $$;

-- A database that was dumped and put back into another server has transactions of that one's
-- counting, which may be lower than what `seen` saw. Then every row that has no number is new.
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
        INSERT INTO spreadly_positions (position, id)
        SELECT own.last + place, id FROM due ORDER BY place
    )
    UPDATE spreadly_numbering
    SET last = own.last + (SELECT count(*) FROM due), seen = pg_current_snapshot(),
        round = NULL, round_xact = NULL, round_id = NULL;
    UPDATE events SET xact = NULL WHERE xact IS NOT NULL;
END $$;

-- Removes rows up to a number, as far back as every hub has read.
CREATE FUNCTION spreadly_forget(until bigint) RETURNS bigint LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM spreadly_positions WHERE position <= until RETURNING id),
        rows AS (DELETE FROM events USING gone WHERE events.id = gone.id)
    SELECT count(*) FROM gone
$$;
