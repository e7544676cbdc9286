//! Why a bag cannot be read or written at all. Damage inside a bag is no error, see [`BagReport`](super::BagReport).

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a bag cannot be opened, read on, or written.
#[derive(Debug, Error)]
pub enum BagError {
    /// The file system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// There is something else at the path.
    #[error("{}: expected {expected}, found {found}", path.display())]
    NotABag {
        /// The file or folder.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// `metadata.yaml` cannot be read.
    #[error("{}: {problem}; repair it, or remove it: the bag is then read without it", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file of the bag is not there.
    #[error(
        "{}: metadata.yaml names {name:?}, which is not there; put the file back, or take its name out of \
         metadata.yaml to read the rest",
        folder.display()
    )]
    MissingFile {
        /// The bag.
        folder: PathBuf,
        /// The file as the metadata names it.
        name: String,
    },
    /// The bag is kept in a way that is not known.
    #[error("{}: expected {what} {expected}, found {found:?}", path.display())]
    Unsupported {
        /// `metadata.yaml`.
        path: PathBuf,
        /// Which entry it is.
        what: &'static str,
        /// What is known.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A compressed file unpacks to more than the limit.
    #[error(
        "{}: unpacks to more than {limit} bytes; raise `Limits::unpacked_file` where the disk has room for it",
        path.display()
    )]
    UnpackedTooLarge {
        /// The compressed file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The topic to be read is not in the bag.
    #[error("{}: expected the topic {topic}, found {}", path.display(), listed(found))]
    NoTopic {
        /// The bag.
        path: PathBuf,
        /// The topic.
        topic: String,
        /// The topics that are there.
        found: Vec<String>,
    },
    /// The bag to be written is there already.
    #[error("{}: is there already; choose another name or remove it", .0.display())]
    Exists(PathBuf),
    /// A message cannot be written.
    #[error("{topic}: {problem}")]
    Write {
        /// The topic.
        topic: String,
        /// What is wrong.
        problem: String,
    },
}

impl BagError {
    /// Adds the path to what the system says.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }
}

/// Most names that a message lists.
const LISTED: usize = 32;

fn listed(names: &[String]) -> String {
    match names.len() {
        0 => "no topics".to_owned(),
        count if count > LISTED => format!("{} and {} more", names[..LISTED].join(", "), count - LISTED),
        _ => names.join(", "),
    }
}
