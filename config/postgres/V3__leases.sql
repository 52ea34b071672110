-- Several hubs may be told to read the same partition of Kafka. One of them does, as long as it
-- says so again and again; where it does not, any other goes on from `position`. Not looked at
-- where a folder is read: whoever begins to read that takes it over.
ALTER TABLE spreadly_sources ADD COLUMN renewed timestamptz NOT NULL DEFAULT '-infinity';
-- Of what was read last: tells a topic that was made anew from the one that was read.
ALTER TABLE spreadly_sources ADD COLUMN mark bigint;
