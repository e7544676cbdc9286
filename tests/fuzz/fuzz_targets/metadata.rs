//! Any bytes as `metadata.yaml`.
#![no_main]

#[path = "../../bag/anything.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod anything;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    anything::read_metadata(folder.path(), bytes);
});
