//! What can be wrong with a dataset.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a LeRobot dataset, or what a checkpoint needs of it, cannot be read.
#[derive(Debug, Error)]
pub enum LeRobotError {
    /// A file is missing or unreadable.
    #[error("{path}: cannot be read: {source}; {advice}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
        advice: &'static str,
    },
    /// A clone without its large files.
    #[error(
        "{path}: expected the file's contents, found a git-LFS pointer of {bytes} bytes; run `git lfs pull` in the \
         dataset (or download it with `hf download`)"
    )]
    LfsPointer { path: PathBuf, bytes: u64 },
    /// A file of text that is far larger than any real one.
    #[error("{path}: expected at most {limit} bytes, found more; this is no file of a dataset")]
    TooLarge { path: PathBuf, limit: u64 },
    /// Text that is no JSON, or a value of the wrong type.
    #[error("{path}: at {at}: {message}")]
    Json { path: PathBuf, at: String, message: String },
    /// A well-formed value that makes no sense, or not with the checkpoint.
    #[error("{path}: at {at}: expected {expected}, found {found}; {advice}")]
    Invalid { path: PathBuf, at: String, expected: String, found: String, advice: String },
    /// A table that cannot be decoded.
    #[error("{path}: {message}; the file is damaged or cut off: copy it again")]
    Table { path: PathBuf, message: String },
    /// A recorded value that is not a number, infinite or missing.
    #[error(
        "{path}: row {row}, column {column}, value {index}: expected a finite number, found {value}; leave the episode \
         out or repair the recording"
    )]
    NotFinite { path: PathBuf, row: u64, column: String, index: usize, value: f64 },
    /// `meta/modality.json` is missing, and what it would say cannot be guessed.
    #[error(
        "{path}: missing, and without it only one state key and one action key that span their columns can be read. \
         The checkpoint needs: {needed}. The dataset has: {found}. Write the file, for example:\n{example}"
    )]
    NoModality { path: PathBuf, needed: String, found: String, example: String },
    /// An episode that is not in the dataset.
    #[error(
        "{path}: expected an episode that is there ({present}), found {episode}; name others with --episodes"
    )]
    Episode { path: PathBuf, episode: u64, present: String },
    /// A stored picture that cannot be decoded.
    #[error("{path}: row {row}, column {column}: expected a PNG or JPEG picture, found {found}")]
    Picture { path: PathBuf, row: u64, column: String, found: String },
    /// There is nothing to decode video with.
    #[error(
        "{video}: decoding video needs FFmpeg, and {tried} cannot be run: {source}. Install it (Debian, Ubuntu, \
         JetPack: `sudo apt-get install ffmpeg`), or name one in GROOT_FFMPEG, or build with `--features video`, which \
         uses FFmpeg's libraries"
    )]
    NoDecoder {
        video: PathBuf,
        tried: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A video that cannot be decoded.
    #[error("{path}: {message}; the video is damaged or cut off: copy it again")]
    Video { path: PathBuf, message: String },
    /// A video without the frame of a row.
    #[error(
        "{path}: expected a frame at {wanted:.6} s for row {row}, give or take {tolerance:.6} s, found {found}; the \
         video is cut off or does not belong to the rows"
    )]
    Frame { path: PathBuf, row: u64, wanted: f64, tolerance: f64, found: String },
    /// A dataset cannot be written.
    #[error("{path}: cannot be written: {message}")]
    Write { path: PathBuf, message: String },
}
