//! Any bytes as a line of a feed; see `fuzzing` in the hub.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spreadly::fuzzing::event_line(data);
});
