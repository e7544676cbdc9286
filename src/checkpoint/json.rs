//! Reading the JSON files of a checkpoint: bounded, and aware of what git-LFS leaves behind.

use std::fs;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::CheckpointError;

/// No JSON file of a checkpoint comes near this; the largest, the shard index, has some 150 kB.
const MAX_JSON_BYTES: u64 = 8 << 20;

/// How the text begins that git-LFS leaves in place of a file it has not fetched.
const LFS_POINTER_PREFIX: &[u8] = b"version https://git-lfs";

/// Whether these are the first bytes of a git-LFS pointer instead of a file's own.
pub(super) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(LFS_POINTER_PREFIX)
}

/// Reads and parses one JSON file.
///
/// # Errors
/// Unreadable, not a regular file, larger than any such file can be, a git-LFS pointer, or not JSON for `T`.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, CheckpointError> {
    let read = |source| CheckpointError::Read { path: path.to_owned(), source };
    // The kind of file is asked before it is opened: opening a pipe would wait for its other end.
    let metadata = fs::metadata(path).map_err(read)?;
    if !metadata.is_file() {
        return Err(read(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    if metadata.len() > MAX_JSON_BYTES {
        return Err(CheckpointError::TooLarge {
            path: path.to_owned(),
            limit: MAX_JSON_BYTES,
            found: metadata.len(),
        });
    }
    let bytes = fs::read(path).map_err(read)?;
    if is_lfs_pointer(&bytes) {
        return Err(CheckpointError::LfsPointer { path: path.to_owned() });
    }
    serde_json::from_slice(&bytes).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

/// The entries of a JSON object in the file's order, repeated keys included: a map would silently keep the last.
pub(super) struct Entries<T>(pub Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}
