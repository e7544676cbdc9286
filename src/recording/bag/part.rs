//! One file of a bag, whatever its storage and compression.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempPath;

use super::{
    BagError, BagReport, Fault, Limits, Topic,
    mcap::{McapFile, McapStream},
    message::RawMessage,
    sqlite::{self, SqliteFile, SqliteStream},
    unpack::{ZSTD_MAGIC, unpack_file},
};
use crate::ros::Stamp;

/// Decides which topics are read.
pub(super) type Wanted = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A file of a bag.
#[derive(Clone)]
pub(super) struct Part {
    pub path: PathBuf,
    /// Times of its first and last message, where they are known.
    pub span: Option<(Stamp, Stamp)>,
    /// Set for an MCAP file that needs no unpacking: walked over once.
    opened: Option<Arc<McapFile>>,
}

/// What a file begins with.
enum Content {
    Mcap,
    Sqlite,
    Zstd,
}

impl Part {
    /// A file of which everything that is needed is known before it is read.
    pub fn known(path: PathBuf, span: Option<(Stamp, Stamp)>) -> Self {
        Self { path, span, opened: None }
    }

    /// Whether the file as a whole is compressed.
    pub fn is_packed(path: &Path) -> Result<bool, BagError> {
        Ok(matches!(content(path)?, Content::Zstd))
    }

    /// Opens the file to learn its topics and times. `count` also counts the messages where that takes reading all.
    pub fn learn(
        path: PathBuf,
        count: bool,
        limits: &Limits,
        report: &mut BagReport,
    ) -> Result<(Self, Vec<Topic>), BagError> {
        let opened = Opened::new(&path, limits, report)?;
        let (span, topics, keep) = match &opened.storage {
            Storage::Mcap(file) => {
                (file.span(), file.topics(), opened.unpacked.is_none().then(|| file.clone()))
            }
            Storage::Sqlite(file) => (file.span(report), file.topics(count, report), None),
        };
        Ok((Self { path, span, opened: keep }, topics))
    }

    /// The file's messages in the order of log time.
    pub fn stream(
        &self,
        wanted: &Wanted,
        limits: &Limits,
        report: &mut BagReport,
    ) -> Result<PartStream, BagError> {
        if let Some(file) = &self.opened {
            return Ok(PartStream { storage: Stream::Mcap(file.stream(wanted.clone())), _unpacked: None });
        }
        // What was wrong when the bag was opened is counted already, but for files that were not opened then.
        let mut own = BagReport::default();
        let Opened { storage, unpacked } = Opened::new(&self.path, limits, &mut own)?;
        if unpacked.is_some() {
            report.merge(&own);
        }
        let storage = match storage {
            Storage::Mcap(file) => Stream::Mcap(file.stream(wanted.clone())),
            Storage::Sqlite(file) => Stream::Sqlite(Box::new(file.stream(wanted.as_ref()))),
        };
        Ok(PartStream { storage, _unpacked: unpacked })
    }
}

enum Storage {
    Mcap(Arc<McapFile>),
    Sqlite(Box<SqliteFile>),
}

struct Opened {
    storage: Storage,
    unpacked: Option<TempPath>,
}

impl Opened {
    fn new(path: &Path, limits: &Limits, report: &mut BagReport) -> Result<Self, BagError> {
        let name = file_name(path);
        let (unpacked, content) = match content(path)? {
            Content::Zstd => {
                let unpacked = unpack_file(path, limits.unpacked_file)?;
                if let Some(damage) = unpacked.damage {
                    report.file(&name, Fault::Compression, damage);
                }
                let unpacked = unpacked.file.into_temp_path();
                let content = content(&unpacked).map_err(|error| at_packed(error, path))?;
                (Some(unpacked), content)
            }
            content => (None, content),
        };
        let place = unpacked.as_deref().unwrap_or(path);
        let storage = match content {
            Content::Mcap => Storage::Mcap(Arc::new(McapFile::open(place, &name, limits, report)?)),
            Content::Sqlite => Storage::Sqlite(Box::new(SqliteFile::open(place, &name, limits, report)?)),
            Content::Zstd => {
                return Err(BagError::NotABag {
                    path: path.to_owned(),
                    expected: "an MCAP or SQLite file in the zstd file",
                    found: "another zstd file".to_owned(),
                });
            }
        };
        Ok(Self { storage, unpacked })
    }
}

/// The error of an unpacked file, told of the file that people know.
fn at_packed(error: BagError, path: &Path) -> BagError {
    match error {
        BagError::NotABag { expected, found, .. } => {
            BagError::NotABag { path: path.to_owned(), expected, found }
        }
        other => other,
    }
}

/// What a file is, by its first bytes; names are not always right.
fn content(path: &Path) -> Result<Content, BagError> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(BagError::io(path))?;
    file.take(16).read_to_end(&mut start).map_err(BagError::io(path))?;
    if start.starts_with(mcap::MAGIC) {
        Ok(Content::Mcap)
    } else if start.starts_with(sqlite::MAGIC) {
        Ok(Content::Sqlite)
    } else if start.starts_with(&ZSTD_MAGIC) {
        Ok(Content::Zstd)
    } else {
        let found = match start.len() {
            0 => "an empty file".to_owned(),
            _ => format!(
                "a file that begins with {}",
                start.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
            ),
        };
        let expected = "an MCAP or SQLite file, or one of them compressed with zstd";
        Err(BagError::NotABag { path: path.to_owned(), expected, found })
    }
}

/// The name by which a file is known in the report.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

enum Stream {
    Mcap(McapStream),
    Sqlite(Box<SqliteStream>),
}

/// The messages of a file.
pub(super) struct PartStream {
    storage: Stream,
    /// Deletes the unpacked file; dropped after the storage, which has it open.
    _unpacked: Option<TempPath>,
}

impl PartStream {
    pub fn next(&mut self, report: &mut BagReport) -> Option<RawMessage> {
        match &mut self.storage {
            Stream::Mcap(stream) => stream.next(report),
            Stream::Sqlite(stream) => stream.next(report),
        }
    }
}
