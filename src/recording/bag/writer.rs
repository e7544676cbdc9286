//! Bags of our own: one MCAP file and the `metadata.yaml` that ROS 2 from Humble on reads.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use mcap::{Compression, WriteOptions, records::MessageHeader};
use serde::Serialize;

use super::{BagError, definitions::full_definition, metadata, part::file_name};
use crate::ros::{Stamp, cdr, msg::Message, transport::Qos};

/// The version of `metadata.yaml` that Humble writes. Later distributions read it too.
const METADATA_VERSION: u64 = 5;

/// How a bag is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterOptions {
    /// Whether chunks are compressed with zstd. JPEG images do not become smaller by it.
    pub zstd: bool,
    /// Bytes after which a chunk ends.
    pub chunk_size: u64,
}

impl Default for WriterOptions {
    /// Chunks of 1 MiB with zstd.
    fn default() -> Self {
        Self { zstd: true, chunk_size: 1 << 20 }
    }
}

/// Writes a bag. It appears under its name when [`BagWriter::finish`] has written everything; until then it is a hidden
/// folder beside it, which goes when the writer is dropped.
pub struct BagWriter {
    folder: Unfinished,
    target: PathBuf,
    name: String,
    writer: mcap::Writer<BufWriter<File>>,
    topics: BTreeMap<String, Written>,
    span: Option<(Stamp, Stamp)>,
}

/// A topic of the bag.
struct Written {
    channel: u16,
    kind: String,
    qos: String,
    count: u64,
}

/// A folder that is removed unless it got its final name.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // Nobody could be told.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl BagWriter {
    /// Starts a bag in the folder `target`, which must not be there yet. Folders above it are made.
    ///
    /// # Errors
    /// Something is there already, or the file system refuses.
    pub fn create(target: impl AsRef<Path>, options: WriterOptions) -> Result<Self, BagError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = target.as_ref();
        if target.symlink_metadata().is_ok() {
            return Err(BagError::Exists(target.to_owned()));
        }
        let name = file_name(target);
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(BagError::io(parent))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let hidden = parent.join(format!(".{name}.{}.{number}", std::process::id()));
        fs::create_dir(&hidden).map_err(BagError::io(&hidden))?;
        let folder = Unfinished(Some(hidden.clone()));

        let path = hidden.join(format!("{name}_0.mcap"));
        let file = File::create_new(&path).map_err(BagError::io(&path))?;
        let writer = WriteOptions::new()
            .profile("ros2")
            .library(concat!("groot_policy ", env!("CARGO_PKG_VERSION")))
            .compression(options.zstd.then_some(Compression::Zstd))
            .compression_threads(0)
            .chunk_size(Some(options.chunk_size))
            .create(BufWriter::new(file))
            .map_err(|error| broken(&name, error))?;
        Ok(Self { folder, target: target.to_owned(), name, writer, topics: BTreeMap::new(), span: None })
    }

    /// Adds a topic with its quality of service, which `ros2 bag play` offers again. A topic that is not declared gets
    /// [`Qos::reliable`] with a depth of 10 with its first message.
    ///
    /// # Errors
    /// The topic has messages of another type, or the type is not written to bags.
    pub fn declare<M: Message>(&mut self, topic: &str, qos: Qos) -> Result<(), BagError> {
        let kind = format!("{}/msg/{}", M::PACKAGE, M::NAME);
        if let Some(known) = self.topics.get(topic) {
            return if known.kind == kind {
                Ok(())
            } else {
                Err(broken(topic, format!("expected messages of {} as before, found {kind}", known.kind)))
            };
        }
        let definition =
            full_definition::<M>().ok_or_else(|| broken(topic, format!("{kind} is not written to bags")))?;
        let fail = |error| broken(topic, error);
        // The crate gives the same id for the same schema.
        let schema = self.writer.add_schema(&kind, "ros2msg", definition.as_bytes()).map_err(fail)?;
        let qos = profile(qos);
        let metadata = BTreeMap::from([("offered_qos_profiles".to_owned(), qos.clone())]);
        let channel = self.writer.add_channel(schema, topic, "cdr", &metadata).map_err(fail)?;
        self.topics.insert(topic.to_owned(), Written { channel, kind, qos, count: 0 });
        Ok(())
    }

    /// Writes a message with its log time, from 1970 on; messages should come in the order of time.
    ///
    /// # Errors
    /// As [`BagWriter::declare`]; a time before 1970; the file system refuses.
    pub fn write<M: Message>(&mut self, topic: &str, time: Stamp, message: &M) -> Result<(), BagError> {
        self.declare::<M>(topic, Qos::reliable(10))?;
        let fail = |problem: String| broken(topic, problem);
        let log_time = u64::try_from(time.0)
            .map_err(|_| fail(format!("expected a log time from 1970 on, found {time}")))?;
        let data = cdr::encode(message).map_err(|error| fail(error.to_string()))?;
        let Some(written) = self.topics.get_mut(topic) else { return Ok(()) };
        // Counts on in every topic, from 0; the format has 32 bits for it.
        let sequence = written.count as u32;
        let header =
            MessageHeader { channel_id: written.channel, sequence, log_time, publish_time: log_time };
        self.writer.write_to_known_channel(&header, &data).map_err(|error| broken(topic, error))?;
        written.count += 1;
        self.span = Some(self.span.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        Ok(())
    }

    /// Completes the bag and gives it its name.
    ///
    /// # Errors
    /// The file system refuses, or somebody else made something of that name meanwhile.
    pub fn finish(mut self) -> Result<(), BagError> {
        self.writer.finish().map_err(|error| broken(&self.name, error))?;
        let metadata = self.metadata()?;
        let Self { mut folder, target, writer, .. } = self;
        let Some(hidden) = folder.0.clone() else { return Ok(()) };
        let mut file = writer.into_inner();
        file.flush().map_err(BagError::io(&hidden))?;
        file.get_ref().sync_all().map_err(BagError::io(&hidden))?;
        drop(file);
        let path = hidden.join(metadata::FILE_NAME);
        let mut file = File::create_new(&path).map_err(BagError::io(&path))?;
        file.write_all(metadata.as_bytes()).map_err(BagError::io(&path))?;
        file.sync_all().map_err(BagError::io(&path))?;
        // The system would put the bag in place of an empty folder.
        if target.symlink_metadata().is_ok() {
            return Err(BagError::Exists(target));
        }
        fs::rename(&hidden, &target).map_err(BagError::io(&target))?;
        folder.0 = None;
        Ok(())
    }

    fn metadata(&self) -> Result<String, BagError> {
        let (start, end) = self.span.unwrap_or_default();
        let (starting_time, duration) =
            (Start { nanoseconds_since_epoch: start.0 }, Span { nanoseconds: end.since(start) });
        let file = format!("{}_0.mcap", self.name);
        let count = self.topics.values().map(|topic| topic.count).sum();
        let topics = self.topics.iter().map(|(name, written)| TopicCount {
            topic_metadata: TopicMetadata {
                name,
                kind: &written.kind,
                serialization_format: "cdr",
                offered_qos_profiles: &written.qos,
            },
            message_count: written.count,
        });
        let information = Information {
            version: METADATA_VERSION,
            storage_identifier: "mcap",
            duration,
            starting_time,
            message_count: count,
            topics_with_message_count: topics.collect(),
            compression_format: "",
            compression_mode: "",
            relative_file_paths: vec![&file],
            files: vec![FileInformation { path: &file, starting_time, duration, message_count: count }],
        };
        let document = Document { rosbag2_bagfile_information: information };
        serde_yaml::to_string(&document).map_err(|error| broken(metadata::FILE_NAME, error))
    }
}

fn broken(topic: &str, problem: impl std::fmt::Display) -> BagError {
    BagError::Write { topic: topic.to_owned(), problem: problem.to_string() }
}

/// A quality of service as Humble writes it, with the numbers of the `rmw` enums. Times without end are the greatest that
/// the middlewares take.
fn profile(qos: Qos) -> String {
    let (reliability, durability) = (if qos.reliable { 1 } else { 2 }, if qos.latched { 1 } else { 2 });
    let endless = "\n    sec: 9223372036\n    nsec: 854775807";
    format!(
        "- history: 1\n  depth: {}\n  reliability: {reliability}\n  durability: {durability}\n  deadline:{endless}\n  \
         lifespan:{endless}\n  liveliness: 1\n  liveliness_lease_duration:{endless}\n  \
         avoid_ros_namespace_conventions: false",
        qos.depth
    )
}

#[derive(Serialize)]
struct Document<'a> {
    rosbag2_bagfile_information: Information<'a>,
}

#[derive(Serialize)]
struct Information<'a> {
    version: u64,
    storage_identifier: &'a str,
    duration: Span,
    starting_time: Start,
    message_count: u64,
    topics_with_message_count: Vec<TopicCount<'a>>,
    compression_format: &'a str,
    compression_mode: &'a str,
    relative_file_paths: Vec<&'a str>,
    files: Vec<FileInformation<'a>>,
}

#[derive(Serialize, Clone, Copy)]
struct Span {
    nanoseconds: i64,
}

#[derive(Serialize, Clone, Copy)]
struct Start {
    nanoseconds_since_epoch: i64,
}

#[derive(Serialize)]
struct TopicCount<'a> {
    topic_metadata: TopicMetadata<'a>,
    message_count: u64,
}

#[derive(Serialize)]
struct TopicMetadata<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    serialization_format: &'a str,
    offered_qos_profiles: &'a str,
}

#[derive(Serialize)]
struct FileInformation<'a> {
    path: &'a str,
    starting_time: Start,
    duration: Span,
    message_count: u64,
}
