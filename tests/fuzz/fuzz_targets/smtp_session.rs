#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pombo_tests::fuzzing::smtp_session(input));
