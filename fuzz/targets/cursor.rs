//! Any bytes as a cursor of a client; see `fuzzing` in the hub.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spreadly::fuzzing::cursor(data);
});
