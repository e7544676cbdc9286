//! rosbag2 recordings: read in the order of time and in bounded memory, whatever their storage, and written as MCAP.
//!
//! | file | part |
//! |---|---|
//! | `metadata`, `qos` | `metadata.yaml` |
//! | `part`, `unpack` | one file of a bag, unpacked where it is compressed as a whole |
//! | `mcap`, `sqlite` | the two storages |
//! | `messages` | the messages of all files, merged |
//! | `message` | a message that is not yet decoded |
//! | `limits`, `report` | what is believed of a file, and what was wrong with it |
//! | [`samples`] | messages to what the policy would have seen, and what the robot did then |
//! | `writer`, `definitions` | bags of our own |
//!
//! What is read: MCAP files with chunks of zstd, lz4 or no compression, or without chunks; SQLite files; both compressed
//! as files or message by message, split or not, with `metadata.yaml` (versions 1 to 9) or without. Damage is skipped,
//! counted and named in a [`BagReport`]; only what is no bag, or what is not there, is an error.
//!
//! **Memory** does not grow with the bag, but for 40 bytes per chunk (2.6 MB for a bag of 50 GB with the recorder's
//! chunks). At any time there are the chunk being read, packed and unpacked, and the messages of chunks that overlap in
//! time; all bounded by [`Limits`].
//!
//! ```no_run
//! use groot_policy::recording::bag::Bag;
//! use groot_policy::ros::msg::JointState;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bag = Bag::open("recordings/pick_and_place")?;
//! for topic in bag.topics() {
//!     println!("{} {} {:?}", topic.name, topic.kind, topic.count);
//! }
//! let mut messages = bag.messages_of(["/joint_states"]);
//! while let Some(message) = messages.next() {
//!     let message = message?;
//!     match message.decode::<JointState>() {
//!         Ok(joints) => println!("{}: {:?}", message.log_time, joints.position),
//!         Err(error) => eprintln!("{error}"),
//!     }
//! }
//! eprint!("{}", messages.report());
//! # Ok(())
//! # }
//! ```

mod definitions;
mod error;
mod limits;
mod mcap;
mod message;
mod messages;
mod metadata;
mod part;
mod qos;
mod report;
pub mod samples;
mod sqlite;
mod unpack;
mod waiting;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use error::BagError;
pub use limits::Limits;
pub use message::{Channel, DecodeError, Payload, RawMessage, is_type};
pub use messages::Messages;
pub use qos::OfferedQos;
pub use report::{BagReport, Fault, Tally};
pub use samples::{Samples, SamplesError, SamplesOptions, SamplesReport, Stride, TruthSource};
pub use writer::{BagWriter, WriterOptions};

use crate::ros::Stamp;
use metadata::Metadata;
use part::{Part, Wanted, file_name};

/// A topic of a bag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its type, e.g. `sensor_msgs/msg/Image`.
    pub kind: String,
    /// How its messages are serialised: `cdr`.
    pub encoding: String,
    /// Messages, where the bag says; a damaged bag may hold fewer.
    pub count: Option<u64>,
    /// What its publishers offered.
    pub qos: Vec<OfferedQos>,
}

/// A recording.
pub struct Bag {
    name: String,
    path: PathBuf,
    parts: Vec<Part>,
    topics: Vec<Topic>,
    limits: Limits,
    report: BagReport,
}

impl Bag {
    /// Opens a bag: its folder, or a single `.mcap` or `.db3` file, also with `.zstd` behind it.
    ///
    /// Reads the headers of all chunks, but no message unless the files themselves do not say what is in them: an MCAP
    /// file that was cut off is read once, and so is a database of a bag without `metadata.yaml`.
    ///
    /// # Errors
    /// No bag at `path`, a file of it that is missing or is something else, metadata that cannot be understood.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, BagError> {
        Self::open_with(path, Limits::default())
    }

    /// [`Bag::open`] with other limits.
    ///
    /// # Errors
    /// See there.
    pub fn open_with(path: impl AsRef<Path>, limits: Limits) -> Result<Self, BagError> {
        let path = path.as_ref();
        let found = std::fs::metadata(path).map_err(BagError::io(path))?;
        let (paths, metadata) = if found.is_dir() {
            let metadata = Metadata::read(path)?;
            let paths = match &metadata {
                Some(metadata) => metadata.paths(path)?,
                None => files_of(path)?,
            };
            (paths, metadata)
        } else {
            (vec![path.to_owned()], None)
        };
        let mut bag = Self {
            name: bag_name(path),
            path: path.to_owned(),
            parts: Vec::new(),
            topics: metadata.as_ref().map(topics_of).unwrap_or_default(),
            limits,
            report: BagReport::default(),
        };
        let told = !bag.topics.is_empty();
        for path in paths {
            let known = metadata.as_ref().and_then(|metadata| metadata.file(&file_name(&path)));
            // Unpacking a file takes as long as reading it: not for what is known.
            if let Some(known) = known
                && told
                && Part::is_packed(&path)?
            {
                bag.parts.push(Part::known(path, known.span()));
                continue;
            }
            let (part, topics) = Part::learn(path, !told, &limits, &mut bag.report)?;
            bag.parts.push(part);
            if !told {
                bag.add(topics);
            }
        }
        Ok(bag)
    }

    fn add(&mut self, topics: Vec<Topic>) {
        for topic in topics {
            match self.topics.iter_mut().find(|known| known.name == topic.name) {
                Some(known) => {
                    known.count =
                        known.count.zip(topic.count).map(|(ours, theirs)| ours.saturating_add(theirs));
                }
                None => self.topics.push(topic),
            }
        }
    }

    /// The bag's name: that of its folder, or of its file without ending.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its topics.
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// The topic called `name`.
    ///
    /// # Errors
    /// There is none; the error names those that there are.
    pub fn topic(&self, name: &str) -> Result<&Topic, BagError> {
        self.topics.iter().find(|topic| topic.name == name).ok_or_else(|| BagError::NoTopic {
            path: self.path.clone(),
            topic: name.to_owned(),
            found: self.topics.iter().map(|topic| topic.name.clone()).collect(),
        })
    }

    /// Log time of the first message; `None` in an empty bag.
    pub fn start(&self) -> Option<Stamp> {
        self.parts.iter().filter_map(|part| part.span).map(|(start, _)| start).min()
    }

    /// Log time of the last message; `None` in an empty bag.
    pub fn end(&self) -> Option<Stamp> {
        self.parts.iter().filter_map(|part| part.span).map(|(_, end)| end).max()
    }

    /// From the first message to the last.
    pub fn duration(&self) -> Duration {
        match (self.start(), self.end()) {
            (Some(start), Some(end)) => end.elapsed_since(start),
            _ => Duration::ZERO,
        }
    }

    /// What was wrong when the bag was opened. [`Messages::report`] holds this and what was wrong since.
    pub fn report(&self) -> &BagReport {
        &self.report
    }

    /// All messages in the order of log time.
    pub fn messages(&self) -> Messages {
        self.select(Arc::new(|_: &str| true))
    }

    /// The messages of some topics in the order of log time. A topic that is not there has none.
    pub fn messages_of<S: Into<String>>(&self, topics: impl IntoIterator<Item = S>) -> Messages {
        let topics: BTreeSet<String> = topics.into_iter().map(Into::into).collect();
        self.select(Arc::new(move |topic: &str| topics.contains(topic)))
    }

    fn select(&self, wanted: Wanted) -> Messages {
        Messages::new(&self.parts, wanted, self.limits, self.report.clone())
    }
}

fn topics_of(metadata: &Metadata) -> Vec<Topic> {
    // A topic stands there once for each of its types.
    let mut topics: BTreeMap<&str, Topic> = BTreeMap::new();
    for entry in &metadata.topics_with_message_count {
        let topic = &entry.topic_metadata;
        let count = entry.message_count;
        topics
            .entry(&topic.name)
            .and_modify(|known| known.count = known.count.map(|known| known.saturating_add(count)))
            .or_insert_with(|| Topic {
                name: topic.name.clone(),
                kind: topic.kind.clone(),
                encoding: topic.serialization_format.clone(),
                count: Some(count),
                qos: topic.offered_qos_profiles.parse(),
            });
    }
    topics.into_values().collect()
}

/// The endings of a bag's files.
const ENDINGS: [&str; 4] = [".mcap", ".db3", ".mcap.zstd", ".db3.zstd"];

/// The files of a bag without metadata, by the number at the end of their names.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>, BagError> {
    let mut files = Vec::new();
    let mut others = 0;
    for entry in std::fs::read_dir(folder).map_err(BagError::io(folder))? {
        let path = entry.map_err(BagError::io(folder))?.path();
        let name = file_name(&path);
        match ENDINGS.iter().rev().find_map(|ending| name.strip_suffix(ending)) {
            Some(stem) if path.is_file() => {
                let digits = stem.bytes().rev().take_while(u8::is_ascii_digit).count();
                let number = stem[stem.len() - digits..].parse::<u64>().unwrap_or(0);
                files.push((number, name, path));
            }
            _ => others += 1,
        }
    }
    if files.is_empty() {
        return Err(BagError::NotABag {
            path: folder.to_owned(),
            expected: "a folder with metadata.yaml or with .mcap or .db3 files",
            found: format!("a folder with {others} other entries"),
        });
    }
    files.sort();
    Ok(files.into_iter().map(|(_, _, path)| path).collect())
}

fn bag_name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = file_name(&path);
    let stem = ENDINGS.iter().rev().find_map(|ending| name.strip_suffix(ending));
    stem.unwrap_or(&name).to_owned()
}
