//! Any bytes as headers of a request; see `fuzzing` in the hub.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spreadly::fuzzing::negotiation(data);
});
