-- A hub that has just been given rows numbers the next ones without looking first whether there are
-- any, which took a seventh of what it did in the database. A hub of before calls this one too.

-- Numbers committed rows, at most `most`, and gives them in the order of their numbers, each with
-- the newest number that was given and how many were numbered now: whoever has read up to those
-- needs no second look. Only the counts where there are none, or more than `bytes` of payloads. A
-- transaction that commits late was not seen, so its rows are new whenever it commits; those of one
-- transaction come in their order, and behind those of any that had committed before it began to
-- write. Numbering transactions follow one another by the lock on the one row, so numbers become
-- visible in their order. Writers wait for none. `look_first`: nothing is locked or written where
-- there are none.
DROP FUNCTION spreadly_take(integer, bigint);
CREATE FUNCTION spreadly_take(most integer, bytes bigint, look_first boolean DEFAULT true) RETURNS TABLE (
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
        -- For other hubs. Only hubs wait for one another here.
        RETURNING CASE WHEN count > 0 THEN pg_notify('spreadly_numbered', '') END
    )
    SELECT own.last + count, count, id, payload, inserted_at, origin, line
    FROM run LEFT JOIN due ON size <= bytes;
END $$;
