//! Any bytes as what a client and the owner of its socket do; see `fuzzing` in the engine.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spreadly_subscriptions::fuzzing::fuzz_session(data));
