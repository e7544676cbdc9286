//! What can go wrong when a graph is exported.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::checkpoint::CheckpointError;

/// Why no graph was exported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The checkpoint lacks something, or something in it is damaged.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),

    /// What was asked for does not fit the checkpoint, or makes no sense.
    #[error("{what}: expected {expected}, found {found}")]
    Request { what: &'static str, expected: String, found: String },

    /// An operator was given what it cannot take: a mistake in the exporter, found before any file is written.
    #[error("graph {graph}: {operator} at {place}: expected {expected}, found {found}")]
    Operator { graph: String, operator: &'static str, place: String, expected: String, found: String },

    /// A weight has no finite value in the type it would be stored in.
    #[error(
        "tensor {tensor}: value {value} at index {index} cannot be stored as {kind}: expected a finite value of at \
         most {largest}; {advice}"
    )]
    Range { tensor: String, index: usize, value: f32, kind: &'static str, largest: f32, advice: &'static str },

    /// The operating system refused to write.
    #[error("{path}: {action} failed: {source}; {advice}", path = path.display())]
    Output { path: PathBuf, action: &'static str, source: io::Error, advice: &'static str },

    /// What would be written where something else already is.
    #[error("{path}: expected {expected}, found {found}; {advice}", path = path.display())]
    Occupied { path: PathBuf, expected: &'static str, found: &'static str, advice: &'static str },
}

impl OnnxError {
    pub(super) fn request(what: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Request { what, expected: expected.into(), found: found.into() }
    }

    /// An I/O error with what to do about it.
    pub(super) fn output(path: &Path, action: &'static str, source: io::Error) -> Self {
        let advice = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free disk space (a 3B graph takes up to 5 GB) or choose another output directory"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "choose an output directory that you may write to"
            }
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                "choose an output directory that is a directory"
            }
            _ => "check the output directory",
        };
        Self::Output { path: path.to_owned(), action, source, advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_operating_system_says_what_to_do() {
        for (kind, advice) in [
            (io::ErrorKind::StorageFull, "free disk space"),
            (io::ErrorKind::QuotaExceeded, "free disk space"),
            (io::ErrorKind::ReadOnlyFilesystem, "that you may write to"),
            (io::ErrorKind::PermissionDenied, "that you may write to"),
            (io::ErrorKind::NotADirectory, "that is a directory"),
        ] {
            let error = OnnxError::output(Path::new("out/dit.onnx.data"), "writing", kind.into());
            let text = error.to_string();
            assert!(
                text.starts_with("out/dit.onnx.data: writing failed: ") && text.contains(advice),
                "{text}"
            );
        }
    }
}
