#![no_main]
//! See `fieldpost::fuzz::block`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldpost::fuzz::block(bytes));
