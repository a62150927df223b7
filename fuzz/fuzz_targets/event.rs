#![no_main]
//! See `fieldpost::fuzz::event`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldpost::fuzz::event(bytes));
