#![no_main]
//! See `fieldpost::fuzz::topic`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldpost::fuzz::topic(bytes));
