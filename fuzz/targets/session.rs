//! Any bytes as steps of a client and its connection; see `fuzzing` in the engine.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spreadly_subscriptions::fuzzing::fuzz_session(data));
