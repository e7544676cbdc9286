//! Any bytes as every message.
#![no_main]

#[path = "../../bag/anything.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod anything;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| anything::decode_bytes(bytes));
