//! Runs as JSON files.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{Run, SCHEMA};
use crate::atomic_file::write_atomically;

/// Largest file that is read as a run; those written are a hundred times smaller.
pub const MAX_RUN_BYTES: u64 = 512 << 20;

/// A run that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    /// The system refuses.
    #[error("cannot {action} the run {path}: {error}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// Too large to be a run.
    #[error(
        "expected a run of at most {MAX_RUN_BYTES} bytes in {path}, found more; is it the file that --save-run wrote?"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not a run.
    #[error("expected a run that --save-run wrote in {path}, found {found}")]
    NotARun {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// Written by a newer version.
    #[error(
        "expected a run of schema {SCHEMA} or lower in {path}, found schema {found} (written by {tool}); read it with that version or a newer one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// Who wrote it.
        tool: String,
    },
}

impl Run {
    /// Writes the run as JSON, beside its place first and then moved there, so that no half file is ever left.
    ///
    /// # Errors
    /// The system refuses to write.
    pub fn save(&self, path: &Path) -> Result<(), RunFileError> {
        let io = |error: io::Error| RunFileError::Io { action: "write", path: path.to_owned(), error };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| io(error.into()))?;
        text.push(b'\n');
        write_atomically(path, &text).map_err(io)
    }

    /// Reads a run that [`save`](Self::save) wrote, also one of another version with the same or a lower schema number.
    ///
    /// # Errors
    /// The system refuses, the file is no run, or a newer version wrote it.
    pub fn load(path: &Path) -> Result<Self, RunFileError> {
        let io = |error| RunFileError::Io { action: "read", path: path.to_owned(), error };
        let mut text = Vec::new();
        let file = File::open(path).map_err(io)?;
        file.take(MAX_RUN_BYTES + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_RUN_BYTES {
            return Err(RunFileError::TooLarge { path: path.to_owned() });
        }
        let not_a_run = |found: String| RunFileError::NotARun { path: path.to_owned(), found };
        let head: Head = serde_json::from_slice(&text).map_err(|error| not_a_run(error.to_string()))?;
        let schema = head.schema.ok_or_else(|| not_a_run("no schema number".to_owned()))?;
        if schema > u64::from(SCHEMA) {
            let tool = head.tool.unwrap_or_default();
            let tool = format!("{} {}", tool.name, tool.version);
            return Err(RunFileError::Newer { path: path.to_owned(), found: schema, tool });
        }
        let deserializer = &mut serde_json::Deserializer::from_slice(&text);
        serde_path_to_error::deserialize(deserializer)
            .map_err(|error| not_a_run(format!("at {}: {}", error.path(), error.inner())))
    }
}

/// What decides whether the rest is read.
#[derive(serde::Deserialize)]
struct Head {
    schema: Option<u64>,
    tool: Option<super::Tool>,
}
