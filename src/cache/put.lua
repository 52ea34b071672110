-- Replaces KEYS[1], unless it holds the same or a later position of the same log.
-- ARGV: the log's epoch, the sequence, then names and values of further fields.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'hash' then
    local log, sequence = unpack(redis.call('HMGET', KEYS[1], 'log', 'sequence'))
    -- As text: Lua's numbers lose digits beyond 2^53. What is no number is no position.
    if log == ARGV[1] and sequence and string.match(sequence, '^[1-9]%d*$')
        and (#sequence > #ARGV[2] or (#sequence == #ARGV[2] and sequence >= ARGV[2])) then
        return 0
    end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'log', ARGV[1], 'sequence', ARGV[2], unpack(ARGV, 3))
return 1
