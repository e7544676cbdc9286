//! What can be wrong with an engine's files, in words that say where, what was expected and what to do.

use std::path::PathBuf;

use super::graph::GraphKind;
use super::precision::Precision;
use super::rebuild::RebuildCommand;
use super::record::Differences;

/// Why an engine cannot be used, or its files cannot be handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// There is no engine where one was expected.
    #[error("{path}: no such engine{near}; build it with `{rebuild}`", path = path.display(), near = near(nearest))]
    Missing {
        path: PathBuf,
        /// The engine in the folder that comes nearest, and in what it differs.
        nearest: Option<Box<(PathBuf, Differences)>>,
        rebuild: RebuildCommand,
    },

    /// The engine is whole, but was built for something else.
    #[error("{path}: the engine does not fit: {differences}. Build it again with `{rebuild}`", path = path.display())]
    Mismatch { path: PathBuf, differences: Differences, rebuild: RebuildCommand },

    /// The engine's bytes are not those that were built.
    #[error(
        "{path}: the engine is damaged or was not written to the end: expected {expected}, found {found}. Build it again \
         with `{rebuild}`",
        path = path.display()
    )]
    Damaged { path: PathBuf, expected: String, found: String, rebuild: RebuildCommand },

    /// The file beside the engine cannot be understood.
    #[error(
        "{path}: the engine's description cannot be read: {problem}. Build the engine again with `{rebuild}`",
        path = path.display()
    )]
    Unreadable { path: PathBuf, problem: String, rebuild: RebuildCommand },

    /// A precision that would not work.
    #[error("{precision} is refused for the {graph} graph: {reason}; {advice}")]
    Refused { precision: Precision, graph: GraphKind, reason: String, advice: &'static str },

    /// A file could not be read or written.
    #[error("{path}: {action}: {source}", path = path.display())]
    File { path: PathBuf, action: &'static str, source: std::io::Error },

    /// A value outside what is possible.
    #[error("{what}: expected {expected}, found {found}")]
    Invalid { what: String, expected: String, found: String },
}

fn near(nearest: &Option<Box<(PathBuf, Differences)>>) -> String {
    nearest.as_deref().map_or_else(String::new, |(path, differences)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!(" ({name} does not fit: {differences})")
    })
}

impl EngineError {
    /// The command that puts it right. None where building would not help: a folder that cannot be read, a precision that
    /// the GPU does not have.
    pub fn rebuild(&self) -> Option<&RebuildCommand> {
        match self {
            Self::Missing { rebuild, .. }
            | Self::Mismatch { rebuild, .. }
            | Self::Damaged { rebuild, .. }
            | Self::Unreadable { rebuild, .. } => Some(rebuild),
            Self::Refused { .. } | Self::File { .. } | Self::Invalid { .. } => None,
        }
    }

    pub(super) fn file(path: &std::path::Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.to_path_buf(), action, source }
    }
}
