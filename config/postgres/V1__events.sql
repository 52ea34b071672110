-- The outbox of whoever writes events: a row for each, inserted in the writer's own transaction by
-- a plain INSERT or by spreadly_publish(). The hub numbers committed rows and reads them by that
-- number.

CREATE TABLE events (
    -- The order of rows of one writer. Not the order of commits: see `position`.
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- One event as PROTOCOL.md has it.
    payload json NOT NULL,
    inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Given by spreadly_number() once the row is committed, so that a row that commits late gets a
    -- number behind those that were read before it, and is never stepped over.
    position bigint
);
CREATE UNIQUE INDEX events_position ON events (position) WHERE position IS NOT NULL;
CREATE INDEX events_new ON events (id) WHERE position IS NULL;
-- Each row is updated once, soon after it came: room for it in the same page.
ALTER TABLE events SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

-- One row: the newest number given, and which numbering it is of.
CREATE TABLE spreadly_numbering (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL,
    last bigint NOT NULL DEFAULT 0
);
INSERT INTO spreadly_numbering (epoch)
VALUES (('x' || md5(random()::text || clock_timestamp()::text || pg_backend_pid()::text))::bit(64)::bigint);

-- Numbers up to `most` committed rows; gives the newest number. Numbering transactions follow one
-- another by the lock on the one row, so numbers become visible in their order. Writers wait for
-- none.
CREATE FUNCTION spreadly_number(most integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    before bigint;
    numbered bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM events WHERE position IS NULL) THEN
        RETURN (SELECT last FROM spreadly_numbering);
    END IF;
    SELECT last INTO before FROM spreadly_numbering FOR UPDATE;
    -- A statement of its own: it sees what whoever held the lock has numbered.
    WITH due AS (
        SELECT id, row_number() OVER (ORDER BY id) AS place
        FROM (SELECT id FROM events WHERE position IS NULL ORDER BY id LIMIT most) AS new
    )
    UPDATE events SET position = before + due.place FROM due WHERE events.id = due.id;
    GET DIAGNOSTICS numbered = ROW_COUNT;
    UPDATE spreadly_numbering SET last = before + numbered;
    -- For other hubs. Only hubs wait for one another here.
    PERFORM pg_notify('spreadly_numbered', '');
    RETURN before + numbered;
END $$;

-- The doorbell. NOTIFY makes the commits of all who use it wait for one another, so a writer rings
-- only where a hub sleeps: then that one holds the advisory lock alone. Otherwise the writer shares
-- it until its commit, and no hub falls asleep before that.
CREATE FUNCTION spreadly_ring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(1936749172, 1) THEN
        PERFORM pg_notify('spreadly_events', '');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER spreadly_ring AFTER INSERT ON events
    FOR EACH STATEMENT EXECUTE FUNCTION spreadly_ring();

-- Publishes an event; gives the row's id. What `payload` has of `kind` and `market` wins.
CREATE FUNCTION spreadly_publish(kind text, market text, payload json DEFAULT '{}')
RETURNS bigint LANGUAGE sql AS $$
    INSERT INTO events (payload)
    VALUES ((jsonb_strip_nulls(jsonb_build_object('kind', kind, 'market', market))
             || payload::jsonb)::json)
    RETURNING id
$$;
