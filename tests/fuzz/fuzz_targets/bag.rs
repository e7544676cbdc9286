//! Any bytes as a file of a bag: MCAP, SQLite, either compressed.
#![no_main]

#[path = "../../bag/anything.rs"]
mod anything;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    anything::read_file(folder.path(), bytes);
});
