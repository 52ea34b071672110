//! Any bytes as a GraphQL document; see `fuzzing` in the hub.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    spreadly::fuzzing::document_cost(data);
});
