//! What rosbag2 compresses by itself: whole files, and single messages.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::Path,
};

use tempfile::NamedTempFile;

use super::BagError;

/// How every zstd frame begins. No CDR message does: its first byte is 0.
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bytes that are unpacked at a time.
const PIECE: usize = 1 << 20;

/// A file unpacked to the disk, deleted when this is dropped; and why it ends early, where it does.
pub(super) struct Unpacked {
    pub file: NamedTempFile,
    pub damage: Option<String>,
}

/// Unpacks a file piece by piece. What comes before damage is kept.
///
/// # Errors
/// More than `limit` bytes, or no room on the disk.
pub(super) fn unpack_file(path: &Path, limit: u64) -> Result<Unpacked, BagError> {
    let packed = File::open(path).map_err(BagError::io(path))?;
    let mut file =
        NamedTempFile::with_prefix("groot_policy_bag").map_err(BagError::io(std::env::temp_dir()))?;
    let mut reader = match zstd::Decoder::with_buffer(BufReader::with_capacity(PIECE, packed)) {
        Ok(reader) => reader,
        Err(error) => return Ok(Unpacked { file, damage: Some(error.to_string()) }),
    };
    let mut piece = vec![0; PIECE];
    let mut written = 0_u64;
    let damage = loop {
        let count = match reader.read(&mut piece) {
            Ok(0) => break None,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Some(format!("after {written} unpacked bytes: {error}")),
        };
        written += count as u64;
        if written > limit {
            return Err(BagError::UnpackedTooLarge { path: path.to_owned(), limit });
        }
        // `read` gives at most as many bytes as the piece has.
        file.write_all(&piece[..count]).map_err(BagError::io(file.path()))?;
    };
    file.flush().map_err(BagError::io(file.path()))?;
    Ok(Unpacked { file, damage })
}

/// Unpacks zstd data in memory.
///
/// # Errors
/// Broken data; more than `limit` bytes, which are never held.
pub(super) fn unpack_bytes(packed: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    let reader = zstd::Decoder::with_buffer(packed).map_err(UnpackError::Broken)?;
    read_bounded(reader, limit)
}

/// Why data in memory was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("{0}")]
    Broken(io::Error),
    #[error("more than {0} bytes unpacked, which is the limit")]
    TooLarge(u64),
}

/// Everything that `reader` gives, at most `limit` bytes. Memory grows with what really comes.
pub(super) fn read_bounded(reader: impl Read, limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(UnpackError::Broken)?;
    if bytes.len() as u64 > limit {
        return Err(UnpackError::TooLarge(limit));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 3).unwrap()
    }

    #[test]
    fn data_in_memory_is_unpacked_up_to_the_limit() {
        let data = vec![7; 100_000];
        assert_eq!(packed(&data)[..4], ZSTD_MAGIC);
        assert_eq!(unpack_bytes(&packed(&data), 100_000).unwrap(), data);
        assert!(matches!(unpack_bytes(&packed(&data), 99_999), Err(UnpackError::TooLarge(99_999))));
        let cut = packed(&data);
        assert!(matches!(unpack_bytes(&cut[..cut.len() - 1], 100_000), Err(UnpackError::Broken(_))));
        assert!(unpack_bytes(b"nonsense", 100).is_err());
    }

    #[test]
    fn a_file_is_unpacked_up_to_its_damage_and_removed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.mcap.zstd");
        let mut data: Vec<u8> = Vec::new();
        // Random enough for several blocks.
        let mut state = 1_u32;
        data.extend((0..600_000).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }));
        let whole = packed(&data);
        std::fs::write(&path, &whole).unwrap();
        let unpacked = unpack_file(&path, 600_000).unwrap();
        let place = unpacked.file.path().to_owned();
        assert!(unpacked.damage.is_none() && std::fs::read(&place).unwrap() == data);
        drop(unpacked);
        assert!(!place.exists());
        assert!(matches!(
            unpack_file(&path, 599_999),
            Err(BagError::UnpackedTooLarge { limit: 599_999, .. })
        ));

        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let unpacked = unpack_file(&path, u64::MAX).unwrap();
        let kept = std::fs::read(unpacked.file.path()).unwrap();
        assert!(unpacked.damage.is_some() && kept.len() > 100_000 && data.starts_with(&kept));
    }
}
