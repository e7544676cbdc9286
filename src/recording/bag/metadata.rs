//! `metadata.yaml`: which files a bag consists of and what is in them.
//!
//! Versions 1 to 9 differ in what they leave out and in how they write the quality of service; a later version is read as
//! far as it goes.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{BagError, limits::METADATA_BYTES, qos::Profiles};
use crate::ros::Stamp;

/// Name of the file.
pub(super) const FILE_NAME: &str = "metadata.yaml";

#[derive(Deserialize)]
struct Document {
    rosbag2_bagfile_information: Metadata,
}

/// What the file says, as far as it is used.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Metadata {
    #[serde(default)]
    pub storage_identifier: String,
    #[serde(default)]
    pub relative_file_paths: Vec<String>,
    #[serde(default)]
    pub topics_with_message_count: Vec<TopicCount>,
    #[serde(default)]
    pub compression_format: Option<String>,
    /// From version 5 on.
    #[serde(default)]
    pub files: Vec<FileInformation>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct TopicCount {
    pub topic_metadata: TopicMetadata,
    #[serde(default)]
    pub message_count: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct TopicMetadata {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default = "cdr")]
    pub serialization_format: String,
    #[serde(default)]
    pub offered_qos_profiles: Profiles,
}

fn cdr() -> String {
    "cdr".to_owned()
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct FileInformation {
    pub path: String,
    pub starting_time: StartingTime,
    pub duration: Nanoseconds,
    #[serde(default)]
    pub message_count: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct StartingTime {
    pub nanoseconds_since_epoch: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Nanoseconds {
    pub nanoseconds: i64,
}

impl FileInformation {
    /// Times of the first and the last message; `None` for a file without messages.
    pub fn span(&self) -> Option<(Stamp, Stamp)> {
        let start = self.starting_time.nanoseconds_since_epoch;
        let end = start.checked_add(self.duration.nanoseconds)?;
        (self.message_count > 0 && end >= start).then_some((Stamp(start), Stamp(end)))
    }
}

impl Metadata {
    /// Reads the metadata of the bag in `folder`; `None` where it has none.
    pub fn read(folder: &Path) -> Result<Option<Self>, BagError> {
        let path = folder.join(FILE_NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BagError::Io { path, error }),
        };
        let mut text = String::new();
        let fail = |problem: String| BagError::Metadata { path: path.clone(), problem };
        let read = file.take(METADATA_BYTES + 1).read_to_string(&mut text);
        read.map_err(|error| fail(error.to_string()))?;
        if text.len() as u64 > METADATA_BYTES {
            return Err(fail(format!("expected at most {METADATA_BYTES} bytes")));
        }
        let document: Document = serde_yaml::from_str(&text).map_err(|error| fail(error.to_string()))?;
        let metadata = document.rosbag2_bagfile_information;
        metadata.check(&path)?;
        Ok(Some(metadata))
    }

    fn check(&self, path: &Path) -> Result<(), BagError> {
        let refuse = |what, expected, found: &str| {
            Err(BagError::Unsupported { path: path.to_owned(), what, expected, found: found.to_owned() })
        };
        // What a file is, its content says; the identifier only must not name something else.
        if !matches!(self.storage_identifier.as_str(), "" | "mcap" | "sqlite3") {
            return refuse("the storage", "mcap or sqlite3", &self.storage_identifier);
        }
        // Format names of old recorders: `zstd`; with a shared library's name in front only in private plugins.
        match self.compression_format.as_deref() {
            None | Some("" | "none" | "zstd") => Ok(()),
            Some(found) => refuse("the compression", "zstd", found),
        }
    }

    /// Where the bag's files are, in order.
    pub fn paths(&self, folder: &Path) -> Result<Vec<PathBuf>, BagError> {
        self.relative_file_paths
            .iter()
            .map(|name| {
                locate(folder, name)
                    .ok_or_else(|| BagError::MissingFile { folder: folder.to_owned(), name: name.clone() })
            })
            .collect()
    }

    /// What is said of the file called `name`.
    pub fn file(&self, name: &str) -> Option<&FileInformation> {
        let stem = |name: &str| file_name(name).trim_end_matches(".zstd").to_owned();
        self.files.iter().find(|file| stem(&file.path) == stem(name))
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// The file that the metadata calls `name`: under that name, without the folders in front (early recorders wrote the
/// bag's own folder there, and bags are renamed), or compressed since.
fn locate(folder: &Path, name: &str) -> Option<PathBuf> {
    let short = file_name(name);
    [name.to_owned(), short.to_owned(), format!("{short}.zstd")]
        .into_iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Metadata>, BagError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
        Metadata::read(folder.path())
    }

    const OLD: &str = "rosbag2_bagfile_information:
  version: 4
  storage_identifier: sqlite3
  relative_file_paths: [x_0.db3]
  duration: {nanoseconds: 5}
  starting_time: {nanoseconds_since_epoch: 7}
  message_count: 2
  topics_with_message_count:
    - topic_metadata: {name: /a, type: std_msgs/msg/String, serialization_format: cdr, offered_qos_profiles: ''}
      message_count: 2
  compression_format: ''
  compression_mode: ''
";

    #[test]
    fn an_old_file_has_what_it_has() {
        let metadata = read(OLD).unwrap().unwrap();
        assert_eq!(metadata.topics_with_message_count[0].message_count, 2);
        assert!(metadata.file("x_0.db3").is_none());
    }

    #[test]
    fn a_file_with_nothing_but_the_heading_is_an_empty_bag() {
        let metadata = read("rosbag2_bagfile_information: {version: 9}").unwrap().unwrap();
        assert_eq!(metadata.paths(Path::new(".")).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (from, to, expected) in [
            ("sqlite3", "my_storage", "the storage mcap or sqlite3, found \"my_storage\""),
            ("compression_format: ''", "compression_format: lz4", "the compression zstd, found \"lz4\""),
            ("rosbag2_bagfile_information", "something", "missing field"),
            ("[x_0.db3]", "{", "repair it, or remove it"),
        ] {
            let error = read(&OLD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_bag_without_the_file_has_none() {
        assert!(Metadata::read(tempfile::tempdir().unwrap().path()).unwrap().is_none());
    }

    #[test]
    fn files_are_found_under_the_names_that_recorders_and_people_give_them() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a_0.db3", "a_1.db3.zstd"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = |name| locate(folder.path(), name).map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(found("a_0.db3").unwrap(), "a_0.db3");
        assert_eq!(found("old_name/a_0.db3").unwrap(), "a_0.db3");
        assert_eq!(found("a_1.db3").unwrap(), "a_1.db3.zstd");
        assert_eq!(found("a_2.db3"), None);
    }

    #[test]
    fn a_file_without_messages_spans_no_time() {
        let file = |start, duration, message_count| FileInformation {
            path: String::new(),
            starting_time: StartingTime { nanoseconds_since_epoch: start },
            duration: Nanoseconds { nanoseconds: duration },
            message_count,
        };
        assert_eq!(file(5, 3, 1).span(), Some((Stamp(5), Stamp(8))));
        assert_eq!(file(5, 3, 0).span(), None);
        assert_eq!(file(i64::MAX, 3, 1).span(), None);
        assert_eq!(file(5, -3, 1).span(), None);
    }
}
