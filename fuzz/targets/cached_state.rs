//! Any bytes as a state that Redis gives back; see `fuzzing` in the hub.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spreadly::fuzzing::cached_state(data);
});
