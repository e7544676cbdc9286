//! Reading the small files that lie beside the weights: configurations, statistics, vocabulary.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Largest side file that is read, in bytes. The statistics of some thirty embodiments are a few MB, as is the vocabulary.
const MAX_BYTES: u64 = 64 << 20;

/// What is wrong with a small file of the model.
#[derive(Debug, thiserror::Error)]
pub enum SideFileError {
    /// The file cannot be opened or read.
    #[error("{path}: cannot be read: {source}; the model cannot run without this file")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is far larger than any real one.
    #[error("{path}: expected at most {limit} bytes, found {found}; this is no file of the model")]
    TooLarge { path: PathBuf, limit: u64, found: u64 },
    /// A small text stands where git-LFS would have put the file itself.
    #[error(
        "{path}: expected the file itself, found a git-LFS pointer to it; run `git lfs pull` in the checkpoint's repository"
    )]
    LfsPointer { path: PathBuf },
    /// The file is no JSON, or a value has the wrong type. `message` says what was expected and found.
    #[error("{path}: at {at}: {message}")]
    Json { path: PathBuf, at: String, message: String },
    /// The file is well-formed but a value makes no sense.
    #[error("{path}: at {at}: expected {expected}, found {found}")]
    Invalid { path: PathBuf, at: String, expected: String, found: String },
}

impl SideFileError {
    pub(crate) fn invalid(
        path: &Path,
        at: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Invalid { path: path.to_owned(), at: at.into(), expected: expected.into(), found: found.into() }
    }
}

/// How the text begins that git-LFS leaves in place of a file it has not fetched.
pub(crate) const LFS_PREFIX: &[u8] = b"version https://git-lfs";

/// Whether these are the first bytes of a git-LFS pointer instead of a file's own.
pub(super) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(LFS_PREFIX)
}

/// Reads a whole side file, refusing one that is too large before it is in memory.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SideFileError> {
    let failed = |source| SideFileError::Read { path: path.to_owned(), source };
    // The kind of file is asked before it is opened: opening a pipe would wait for its other end.
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    if metadata.len() > MAX_BYTES {
        return Err(SideFileError::TooLarge {
            path: path.to_owned(),
            limit: MAX_BYTES,
            found: metadata.len(),
        });
    }
    let bytes = fs::read(path).map_err(failed)?;
    if is_lfs_pointer(&bytes) {
        return Err(SideFileError::LfsPointer { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Reads and parses a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, SideFileError> {
    parse(path, &read(path)?)
}

/// Parses JSON; an error carries the path inside the document.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, json: &[u8]) -> Result<T, SideFileError> {
    let failed = |at: String, error: serde_json::Error| SideFileError::Json {
        path: path.to_owned(),
        at: if at == "." { "the top level".to_owned() } else { at },
        message: error.to_string(),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| failed(error.path().to_string(), error.into_inner()))?;
    deserializer.end().map_err(|error| failed("the end".to_owned(), error))?;
    Ok(value)
}

/// `a, b, c` for messages that list what there is; "nothing" for an empty list.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
