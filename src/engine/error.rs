//! What can be wrong with an engine's files, in words that say where, what was expected and what to do.

use std::path::PathBuf;

use super::graph::GraphKind;
use super::precision::Precision;
use super::record::Differences;

/// Why an engine cannot be used, or its files cannot be handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// There is no engine where one was expected.
    #[error("{path}: no such engine; build it with `{rebuild}`", path = path.display())]
    Missing { path: PathBuf, rebuild: String },

    /// The engine is whole, but was built for something else.
    #[error("{path}: the engine does not fit: {differences}. Build it again with `{rebuild}`", path = path.display())]
    Mismatch { path: PathBuf, differences: Differences, rebuild: String },

    /// The engine's bytes are not those that were built.
    #[error(
        "{path}: the engine is damaged or was not written to the end: expected {expected}, found {found}. Build it again \
         with `{rebuild}`",
        path = path.display()
    )]
    Damaged { path: PathBuf, expected: String, found: String, rebuild: String },

    /// The file beside the engine cannot be understood.
    #[error(
        "{path}: the engine's description cannot be read: {problem}. Build the engine again with `{rebuild}`",
        path = path.display()
    )]
    Unreadable { path: PathBuf, problem: String, rebuild: String },

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

impl EngineError {
    pub(super) fn file(path: &std::path::Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.to_path_buf(), action, source }
    }
}
