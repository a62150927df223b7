#![no_main]
//! See `fieldpost::fuzz::frame`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldpost::fuzz::frame(bytes));
