//! What is believed of the sizes that a file claims, so that a damaged or hostile file cannot fill the memory.

/// Limits of sizes, in bytes. What is larger is skipped and counted, with its claim and the limit in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest chunk of an MCAP file, packed and unpacked. The recorder makes them 768 KiB, or as large as one message.
    pub chunk: u64,
    /// Largest message, unpacked.
    pub message: u64,
    /// Most that is held at once to bring messages of overlapping chunks into the order of time. Beyond it they are given
    /// out of order, and counted.
    pub reorder: u64,
    /// Largest file that a compressed one (`.mcap.zstd`, `.db3.zstd`) is unpacked to, on disk.
    pub unpacked_file: u64,
}

impl Default for Limits {
    /// Chunks and messages of 256 MiB, 512 MiB for reordering, unpacked files of 64 GiB.
    fn default() -> Self {
        Self { chunk: 256 << 20, message: 256 << 20, reorder: 512 << 20, unpacked_file: 64 << 30 }
    }
}

/// Largest `metadata.yaml`.
pub(super) const METADATA_BYTES: u64 = 16 << 20;

/// Largest schema or channel record, and longest list of messages in one statistics record.
pub(super) const RECORD_BYTES: u64 = 16 << 20;

/// Longest name of a topic or type; the middlewares allow 255.
pub(super) const NAME_BYTES: usize = 4096;
