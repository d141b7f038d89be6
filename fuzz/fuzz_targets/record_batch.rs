//! Any bytes through every decoder of the record layer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| eddyline::record::decode_any(data));
